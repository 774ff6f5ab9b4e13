"""The choice among columns as a mixed-integer program.

With x a whole column, p and k best effort on it, m and n a mix of accelerators, z leaving the current one:

    Σ_j x_j + Σ_j p_j + m ≤ 1                    for every server, = 1 with whole columns where it must be served
    least_j p_j ≤ k_j ≤ (replicas_j − 1) p_j
    Σ_a n_a / needed_a ≥ m,  n_a ≤ replicas_a m,  minimum m ≤ Σ_a n_a ≤ maximum m,  z ≥ m − n_current
    Σ_j units_j (replicas_j x_j + k_j) + Σ_a units_a n_a ≤ limit,    for every limit
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from services.optimizer.problem import SERVED_ROUNDING, SWITCHING_SHARE, Problem, ServerProblem
from services.optimizer.solvers.columns import Array, Columns, Flags, Ints
from services.optimizer.solvers.highs import Program
from services.optimizer.solvers.levels import Formulation, Kind, Level
from services.optimizer.solvers.matrix import Matrix


@dataclass(frozen=True)
class Mix:
    """What a mix of one server is made of: columns with replicas needed alone, and the cost of switching.

    cost: per replica, switching included. needed: replicas that one column alone would need. current: position
    in `columns` of the current accelerator, None when it is none of them. held_cost: of what it has now.
    """

    server: int
    columns: tuple[int, ...]
    cost: tuple[float, ...]
    needed: tuple[float, ...]
    current: int | None
    held_cost: float
    minimum: int
    maximum: float


def mixes_of(problem: Problem) -> tuple[Mix, ...]:
    """The mixes that an ordered problem allows: servers with load and two accelerators or more, served fully."""
    found = []
    first = 0
    for position, server in enumerate(problem.servers):
        columns = _best_by_accelerator(server, first)
        first += len(server.candidates)
        if not problem.options.heterogeneous or len(columns) < 2 or server.rate_rps <= 0:
            continue
        chosen = [server.candidates[c - first + len(server.candidates)] for c in columns]
        if not any(c.objectives_met for c in chosen):
            continue
        held = chosen[0].held
        stays = [held is not None and c.accelerator == held.accelerator for c in chosen]
        found.append(
            Mix(
                server=position,
                columns=columns,
                cost=tuple(
                    c.cost_per_replica_per_hour * (1.0 if stay else 1.0 + SWITCHING_SHARE)
                    for c, stay in zip(chosen, stays, strict=True)
                ),
                needed=tuple(c.needed_replicas * (1.0 - SERVED_ROUNDING) for c in chosen),
                current=stays.index(True) if any(stays) else None,
                held_cost=held.cost_per_hour if held else 0.0,
                minimum=server.min_replicas,
                maximum=server.max_replicas or sum(c.replicas for c in chosen),
            )
        )
    return tuple(found)


def _best_by_accelerator(server: ServerProblem, first: int) -> tuple[int, ...]:
    """The column of most rate for each accelerator: a mix has each once."""
    best: dict[str, int] = {}
    for i, candidate in enumerate(server.candidates):
        known = best.get(candidate.accelerator)
        if candidate.replicas and (
            known is None or candidate.max_rate_rps > server.candidates[known].max_rate_rps
        ):
            best[candidate.accelerator] = i
    return tuple(first + i for i in sorted(best.values()))


def formulate(columns: Columns, mixes: tuple[Mix, ...], whole: Set[int]) -> "Choices":
    """The choices of a problem; of the priorities in `whole` every server must be served in full."""
    certain = np.isin(columns.priority, list(whole))
    partial = np.flatnonzero(
        columns.best_effort & ~certain[columns.server] & (columns.replicas > columns.least)
    )
    return Choices(columns, mixes, whole, certain, partial, len(columns.server))


@dataclass(frozen=True, eq=False)
class Choices:
    """The variables of a program: x (C,), then p and k (P,) of the columns `partial`, then m, n, z of mixes.

    whole, certain: priorities that must be served in full, and shape (S,), whether a server is of one.
    count: C.
    """

    columns: Columns
    mixes: tuple[Mix, ...]
    whole: Set[int]
    certain: Flags
    partial: Ints
    count: int

    @property
    def _mix_starts(self) -> list[int]:
        """The first variable of each mix, and the number of all variables."""
        starts = [self.count + 2 * len(self.partial)]
        for mix in self.mixes:
            starts.append(starts[-1] + 2 + len(mix.columns))
        return starts

    def formulation(self) -> Formulation:
        """The program with its levels."""
        return Formulation(self._program(), self._level, self.whole)

    @property
    def _first_link(self) -> int:
        return self.columns.servers + len(self.columns.most)

    def encode(self, chosen: Mapping[int, int]) -> Array:
        """The x of replicas by column; several columns of a server are a mix."""
        x = np.zeros(self._mix_starts[-1])
        mixes = {mix.server: (mix, start) for mix, start in zip(self.mixes, self._mix_starts, strict=False)}
        by_server: dict[int, list[int]] = {}
        for column in chosen:
            by_server.setdefault(int(self.columns.server[column]), []).append(column)
        place = {int(column): i for i, column in enumerate(self.partial)}
        for server, listed in by_server.items():
            if len(listed) > 1:
                mix, start = mixes[server]
                x[start] = 1.0
                for i, column in enumerate(mix.columns):
                    x[start + 1 + i] = chosen.get(column, 0)
                left = mix.current is None or x[start + 1 + mix.current] == 0
                x[start + 1 + len(mix.columns)] = float(left)
            elif chosen[listed[0]] == self.columns.replicas[listed[0]]:
                x[listed[0]] = 1.0
            else:
                i = place[listed[0]]
                x[self.count + i], x[self.count + len(self.partial) + i] = 1.0, chosen[listed[0]]
        return x

    def decode(self, x: Array) -> dict[int, int]:
        """Replicas by column of a whole x."""
        whole = np.flatnonzero(x[: self.count] > 0.5)
        chosen = {int(c): int(self.columns.replicas[c]) for c in whole}
        k = x[self.count + len(self.partial) : self.count + 2 * len(self.partial)]
        for given in np.flatnonzero(k > 0.5).tolist():
            chosen[int(self.partial[given])] = round(float(k[given]))
        for mix, start in zip(self.mixes, self._mix_starts, strict=False):
            for i, column in enumerate(mix.columns):
                if x[start + 1 + i] > 0.5:
                    chosen[column] = round(float(x[start + 1 + i]))
        return chosen

    def _level(self, level: Level) -> Array:
        columns = self.columns
        of = columns.priority == level.priority
        if level.kind is Kind.SERVED:
            x = np.where(of[columns.server] & columns.full, columns.weight[columns.server], 0.0)
            per_replica = np.zeros(len(self.partial))
            mixed = [columns.weight[m.server] * of[m.server] for m in self.mixes]
        else:
            x = np.where(of[columns.server], columns.rate[columns.server] * columns.share, 0.0)
            per_replica = (x / np.maximum(columns.replicas, 1))[self.partial]
            mixed = [columns.rate[m.server] * of[m.server] for m in self.mixes]
        row = np.concatenate([x, np.zeros(len(self.partial)), per_replica, np.zeros(self._mix_size)])
        for start, gain in zip(self._mix_starts, mixed, strict=False):
            row[start] = gain
        return row / level.scale

    @property
    def _mix_size(self) -> int:
        return self._mix_starts[-1] - self._mix_starts[0]

    def _program(self) -> Program:
        columns, partial = self.columns, self.partial
        usable = ~self.certain[columns.server] | columns.full
        per_replica = (columns.value / np.maximum(columns.replicas, 1))[partial]
        cost = [columns.value, np.zeros(len(partial)), per_replica]
        upper = [usable.astype(float), np.ones(len(partial)), (columns.replicas[partial] - 1).astype(float)]
        for mix in self.mixes:
            switching = SWITCHING_SHARE * mix.held_cost
            cost.append(np.array([-mix.held_cost - columns.violation[mix.server], *mix.cost, switching]))
            upper.append(np.array([1.0, *(columns.replicas[c] for c in mix.columns), 1.0]))
        matrix, lower, most = self._rows()
        return Program(
            cost=np.concatenate(cost),
            upper=np.concatenate(upper),
            integer=np.ones(self._mix_starts[-1], dtype=bool),
            matrix=matrix,
            row_lower=lower,
            row_upper=most,
        )

    def _rows(self) -> tuple[Matrix, Array, Array]:
        """Rows of choice by server, of limits, and the links between the variables of best effort and mixes."""
        columns, partial, count = self.columns, self.partial, self.count
        servers, limits, p = columns.servers, len(columns.most), len(partial)
        blocks = _Entries()
        blocks.add(columns.server, np.arange(count), np.ones(count))
        blocks.add(columns.server[partial], count + np.arange(p), np.ones(p))
        for i in range(limits):
            use = columns.units[i] * columns.replicas
            some = np.flatnonzero(use)
            blocks.add(np.full(len(some), servers + i), some, use[some])
            blocks.add(np.full(p, servers + i), count + p + np.arange(p), columns.units[i][partial])
        lower = [np.where(self.certain, 1.0, 0.0), np.full(limits, -np.inf)]
        upper = [np.ones(servers), columns.most]
        row = int(self._first_link)
        each = np.arange(p)
        most = (columns.replicas[partial] - 1).astype(float)
        for sign, coefficient in ((1.0, most), (-1.0, -columns.least[partial].astype(float))):
            # (replicas − 1) p − k ≥ 0, then k − least p ≥ 0.
            blocks.add(row + each, count + each, coefficient)
            blocks.add(row + each, count + p + each, -sign * np.ones(p))
            row += p
        lower.append(np.zeros(2 * p))
        upper.append(np.full(2 * p, np.inf))
        for mix, start in zip(self.mixes, self._mix_starts, strict=False):
            row = self._mix_rows(blocks, mix, int(start), row, lower, upper)
        return blocks.matrix(row, self._mix_starts[-1]), np.concatenate(lower), np.concatenate(upper)

    def _mix_rows(
        self, blocks: "_Entries", mix: Mix, start: int, row: int, lower: list[Array], upper: list[Array]
    ) -> int:
        columns, size = self.columns, len(mix.columns)
        parts = start + 1 + np.arange(size)
        blocks.one(mix.server, start, 1.0)
        for i in range(len(columns.most)):
            units = columns.units[i][list(mix.columns)]
            blocks.add(np.full(size, columns.servers + i), parts, units)
        blocks.add(np.full(size, row), parts, 1.0 / np.array(mix.needed))
        blocks.one(row, start, -1.0)
        blocks.add(np.full(size, row + 1), parts, np.ones(size))
        blocks.one(row + 1, start, -float(mix.minimum))
        blocks.add(np.full(size, row + 2), parts, -np.ones(size))
        blocks.one(row + 2, start, float(mix.maximum))
        for i, column in enumerate(mix.columns):
            blocks.one(row + 3 + i, start, float(columns.replicas[column]))
            blocks.one(row + 3 + i, start + 1 + i, -1.0)
        last = row + 3 + size
        blocks.one(last, start + 1 + size, 1.0)
        blocks.one(last, start, -1.0)
        if mix.current is not None:
            blocks.one(last, start + 1 + mix.current, 1.0)
        lower.append(np.zeros(4 + size))
        upper.append(np.full(4 + size, np.inf))
        return last + 1


class _Entries:
    """The entries of a sparse matrix as they are added."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Ints, Array]] = []

    def add(self, rows: Ints, columns: Ints, values: Array) -> None:
        """Entries in rows and columns of equal length."""
        self._parts.append((np.asarray(rows), np.asarray(columns), np.asarray(values, dtype=np.float64)))

    def one(self, row: int, column: int, value: float) -> None:
        """One entry."""
        self.add(np.array([row]), np.array([column]), np.array([value]))

    def matrix(self, rows: int, columns: int) -> Matrix:
        """All of them."""
        return Matrix.together(rows, columns, self._parts)
