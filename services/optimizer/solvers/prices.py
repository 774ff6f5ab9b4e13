"""Prices on what servers share: the Lagrangian dual of the choice among columns, by column generation.

    min c·x  s.t.  one column or none for every server (one where it must be served),  A x ≤ b
    L(θ) = Σ_s min(0, min_j (c_j + θ·A_j)) − θ·b ≤ the optimum,  for every θ ≥ 0

Rows that must reach a value are rows of A with the opposite sign. Choosing under prices is separable, so a
bound costs one pass over all columns. The θ of the best bound are the duals of a linear program that holds
only the columns which some prices asked for (Dantzig and Wolfe, 1960); its x has at most as many servers with
more than one column as there are rows in A.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from services.optimizer.solvers.columns import Array, Flags, Ints
from services.optimizer.solvers.highs import Growing, left

# A column enters when it is better than its server's others by this share of the largest cost.
PRICED_IN = 1e-9
MOST_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Priced:
    """A choice with prices. cost: shape (E,). rows: A, shape (R, E), sparse by row. limit: b, shape (R,).

    server, starts: as in `Columns`, over E columns. usable: shape (E,), columns that may be chosen at all.
    must: shape (S,), servers that must have a column.
    """

    cost: Array
    rows: Any
    limit: Array
    server: Ints
    starts: Ints
    usable: Flags
    must: Flags

    def priced(self, prices: Array) -> Array:
        """Cost and price of every column, shape (E,), infinite for those that may not be chosen."""
        return np.where(self.usable, self.cost + prices @ self.rows, np.inf)

    def least(self, priced: Array) -> Array:
        """The least of every server, shape (S,)."""
        least: Array = np.minimum.reduceat(priced, self.starts[:-1])
        return least

    def bound(self, prices: Array) -> float:
        """L at some prices, of shape (R,)."""
        least = self.least(self.priced(prices))
        return float(np.where(self.must, least, np.minimum(least, 0.0)).sum() - prices @ self.limit)


@dataclass(frozen=True, eq=False)
class Dual:
    """Prices, shape (R,), with the bound there, the share of every column, shape (E,), and which ones entered."""

    prices: Array
    bound: float
    share: Array
    entered: Flags


def best_prices(problem: Priced, first: Ints, end: float, known: Array | None = None) -> Dual:
    """The prices of the highest bound, or of the best so far at the deadline.

    first: columns of a choice that keeps every row; the program begins with them. known: prices to begin with.
    """
    servers, rows = len(problem.must), len(problem.limit)
    by_column = sparse.csc_matrix(problem.rows)
    master = Growing(
        np.concatenate([np.full(rows, -np.inf), np.where(problem.must, 1.0, -np.inf)]),
        np.concatenate([problem.limit, np.ones(servers)]),
    )
    inside = np.zeros(len(problem.cost), dtype=bool)
    tolerance = PRICED_IN * max(1.0, float(np.abs(problem.cost[problem.usable]).max(initial=0.0)))
    start = np.zeros(rows) if known is None or len(known) != rows else known
    entering = np.unique(np.concatenate([first, _cheapest(problem, problem.priced(start))]))
    best = Dual(start, problem.bound(start), np.zeros(len(problem.cost)), inside)
    order: list[Ints] = []
    for _ in range(MOST_ROUNDS if left(end) > 0 else 0):
        inside[entering] = True
        order.append(entering)
        places = sparse.csc_matrix(
            (np.ones(len(entering)), (problem.server[entering], np.arange(len(entering)))),
            shape=(servers, len(entering)),
        )
        master.add(problem.cost[entering], sparse.vstack([by_column[:, entering], places]))
        solved = master.solve(left(end))
        if solved is None:
            break
        x, duals = solved
        prices = np.maximum(0.0, -duals[:rows])
        bound = problem.bound(prices)
        share = np.zeros(len(problem.cost))
        share[np.concatenate(order)] = x
        if bound < best.bound:
            prices, bound = best.prices, best.bound
        best = Dual(prices, bound, share, inside)
        priced = problem.priced(np.maximum(0.0, -duals[:rows]))
        found = _cheapest(problem, priced)
        better = priced[found] < np.minimum(0.0, duals[rows:][problem.server[found]]) - tolerance
        better |= problem.must[problem.server[found]] & (
            priced[found] < duals[rows:][problem.server[found]] - tolerance
        )
        entering = found[better & ~inside[found]]
        if not entering.size or left(end) <= 0:
            break
    return best


def _cheapest(problem: Priced, priced: Array) -> Ints:
    """The column of least price of every server that has a usable one."""
    hits = np.flatnonzero((priced == problem.least(priced)[problem.server]) & np.isfinite(priced))
    _, first = np.unique(problem.server[hits], return_index=True)
    return np.asarray(hits[first])
