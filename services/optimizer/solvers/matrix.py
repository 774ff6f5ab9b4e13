"""Sparse matrices by their entries: all that programs need of them, without the import of a library for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.optimizer.solvers.columns import Array, Flags, Ints


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of so many rows and columns, zero where it has no entry.

    row, column, value: shape (K,), at most one entry in a place.
    """

    rows: int
    columns: int
    row: Ints
    column: Ints
    value: Array

    @classmethod
    def of(cls, dense: Array) -> "Matrix":
        """The entries of an array of shape (m, n) that are not zero, row by row."""
        row, column = np.nonzero(dense)
        return cls(dense.shape[0], dense.shape[1], row, column, dense[row, column])

    @classmethod
    def together(cls, rows: int, columns: int, parts: Sequence[tuple[Ints, Ints, Array]]) -> "Matrix":
        """The matrix whose entries are those of all parts, by row, column and value."""
        row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(rows, columns, row, column, value)

    def over(self, below: "Matrix") -> "Matrix":
        """The rows of this matrix, then those of another of as many columns."""
        return Matrix.together(
            self.rows + below.rows,
            self.columns,
            ((self.row, self.column, self.value), (self.rows + below.row, below.column, below.value)),
        )

    def some(self, kept: Flags) -> "Matrix":
        """The columns that are kept, a flag for each."""
        entries = kept[self.column]
        place = np.cumsum(kept) - 1
        return replace(
            self,
            columns=int(kept.sum()),
            row=self.row[entries],
            column=place[self.column[entries]],
            value=self.value[entries],
        )

    def weighted(self, weights: Array) -> Array:
        """The sum of the rows by weights of shape (m,), of shape (n,)."""
        return np.bincount(self.column, self.value * weights[self.row], self.columns).astype(np.float64)

    def by_column(self) -> tuple[Ints, Ints, Array]:
        """Where each column starts among the entries, and at last their number; their rows; their values."""
        order = np.argsort(self.column, kind="stable")
        starts = np.searchsorted(self.column[order], np.arange(self.columns + 1))
        return starts, self.row[order], self.value[order]
