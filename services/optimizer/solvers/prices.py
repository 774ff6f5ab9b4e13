"""Prices on what servers share: the Lagrangian dual of the choice among columns, by cutting planes.

    min c·x  s.t.  one column or none for every server (one where it must be served),  A x ≤ b
    L(θ) = Σ_s min(0, min_j (c_j + θ·A_j)) − θ·b ≤ the optimum,  for every θ ≥ 0

Rows that must reach a value are rows of A with the opposite sign. Choosing under prices is separable, so a
bound costs one pass over all columns. L is concave and made of planes, one for each choice: a linear program of
the planes seen so far, those of some servers added up in each of a few groups, says where to look next, within a
box around the best prices that grows where it helps and shrinks where the planes promised too much (Marsten, Hogan
and Blankenship, 1975).
"""

from dataclasses import dataclass

import numpy as np

from services.optimizer.solvers.columns import Array, Flags, Ints
from services.optimizer.solvers.highs import Cuts, Program, left, solve_integer
from services.optimizer.solvers.matrix import Matrix

# What more is promised than this share of the bound is not looked for.
PRECISION = 1e-7
MOST_ROUNDS = 150
# Servers are added up in so many groups.
GROUPS = 24
# What leaving out a server costs that must have a column, in units of the largest cost.
MISSING = 30.0
# The box is this share of the largest cost over the largest use at first; a step that brings this part of what was
# promised was worth it.
FIRST_BOX, WORTH = 0.2, 0.1
# Small exact programs end with the root of their search.
NODES = 1


def charged(prices: Array, rows: Array) -> Array:
    """What prices, shape (R,), charge each column for what it uses, rows of shape (R, E).

    Not as a matrix product, for which a thread of BLAS would wake on every core and spin there for a while.
    """
    charges: Array = np.einsum("r,re->e", prices, rows)
    return charges


@dataclass(frozen=True, eq=False)
class Priced:
    """A choice with prices. cost: shape (E,). rows: A, shape (R, E). limit: b, shape (R,).

    server, starts: as in `Columns`, over E columns. usable: shape (E,), columns that may be chosen at all.
    must: shape (S,), servers that must have a column.
    """

    cost: Array
    rows: Array
    limit: Array
    server: Ints
    starts: Ints
    usable: Flags
    must: Flags

    def priced(self, prices: Array) -> Array:
        """Cost and price of every column, shape (E,), infinite for those that may not be chosen."""
        return np.where(self.usable, self.cost + charged(prices, self.rows), np.inf)

    def least(self, priced: Array) -> Array:
        """The least of every server, shape (S,)."""
        least: Array = np.minimum.reduceat(priced, self.starts[:-1])
        return least

    def reduced(self, prices: Array) -> Array:
        """What every column costs more under prices than the best that its server can do, shape (E,)."""
        priced = self.priced(prices)
        least = self.least(priced)
        reduced: Array = priced - np.where(self.must, least, np.minimum(least, 0.0))[self.server]
        return reduced


@dataclass(frozen=True, eq=False)
class Dual:
    """Prices, shape (R,), with the bound there."""

    prices: Array
    bound: float


def best_prices(problem: Priced, end: float, known: Array | None = None) -> Dual:
    """The prices of the highest bound, or of the best so far at the deadline. known: prices to begin with."""
    planes = _Planes(problem)
    rows = len(problem.limit)
    unit = planes.largest / np.maximum(np.abs(problem.rows).max(axis=1, initial=0.0), 1e-12)
    center = np.zeros(rows) if known is None or len(known) != rows else np.maximum(known, 0.0)
    master = Cuts(np.concatenate([-problem.limit, np.ones(planes.groups)]))
    best, box = Dual(center, planes.cut(center, master)), FIRST_BOX
    free = np.full(planes.groups, np.inf)
    for _ in range(MOST_ROUNDS if left(end) > 0 and rows else 0):
        most = best.prices + box * unit
        master.bound(
            np.concatenate([np.maximum(0.0, best.prices - box * unit), -free]), np.concatenate([most, free])
        )
        x = master.solve()
        if x is None:
            break
        prices = np.maximum(0.0, x[:rows])
        promised = float(x[rows:].sum() - prices @ problem.limit) - best.bound
        inside = (np.abs(prices - best.prices) < 0.999 * box * unit).all()
        if promised <= PRECISION * max(1.0, abs(best.bound)):
            if inside:
                break
            box *= 4.0
            if box > MISSING:
                break
            continue
        bound = planes.cut(prices, master)
        if bound - best.bound >= WORTH * promised:
            box = box if inside else 2.0 * box
        else:
            box *= 0.6
        if bound > best.bound:
            best = Dual(prices, bound)
        if left(end) <= 0:
            break
    return best


class _Planes:
    """The planes of a problem's bound, by group of servers."""

    def __init__(self, problem: Priced) -> None:
        self._problem = problem
        self._cost = np.where(problem.usable, problem.cost, np.inf)
        self.largest = max(1.0, float(np.abs(problem.cost[problem.usable]).max(initial=0.0)))
        servers = len(problem.must)
        self.groups = min(GROUPS, servers)
        self._starts = np.linspace(0, servers, self.groups, endpoint=False).astype(np.int64)
        self._else = np.where(problem.must, MISSING * self.largest, 0.0)

    def cut(self, prices: Array, master: Cuts) -> float:
        """L at some prices, whose planes a program gets."""
        problem = self._problem
        priced = self._cost + charged(prices, problem.rows)
        least = problem.least(priced)
        hits = np.flatnonzero(priced == least[problem.server])
        first = hits[np.minimum(np.searchsorted(problem.server[hits], np.arange(len(least))), len(hits) - 1)]
        taken = least < self._else
        cost = np.where(taken, problem.cost[first], self._else)
        use = np.where(taken, problem.rows[:, first], 0.0)
        by_group = np.add.reduceat(use, self._starts, axis=1)
        constant = np.add.reduceat(cost, self._starts)
        master.add(np.hstack([-by_group.T, np.eye(self.groups)]), constant)
        return float(np.where(taken, least, self._else).sum() - prices @ problem.limit)


def nearby(
    problem: Priced, prices: Array, start: Ints | None, more: int, end: float, gap_share: float
) -> Ints:
    """The best choice among the columns that are cheapest under prices: a small exact program.

    start: columns of a choice that keeps every row, if one is known; without, there may be no choice. more: columns
    beside one for each server.
    """
    reduced = problem.reduced(prices)
    kept = np.zeros(len(reduced), dtype=bool)
    count = min(len(reduced), len(problem.must) + more)
    kept[np.argpartition(reduced, count - 1)[:count]] = True
    kept &= problem.usable
    if start is not None:
        kept[start] = True
    columns = np.flatnonzero(kept)
    program = Program(
        cost=problem.cost[columns],
        upper=np.ones(len(columns)),
        integer=np.ones(len(columns), dtype=bool),
        matrix=Matrix.of(problem.rows[:, columns]).over(_places(problem.server[columns], len(problem.must))),
        row_lower=np.concatenate(
            [np.full(len(problem.limit), -np.inf), np.where(problem.must, 1.0, -np.inf)]
        ),
        row_upper=np.concatenate([problem.limit, np.ones(len(problem.must))]),
    )
    first = None if start is None else np.isin(columns, start).astype(float)
    answer = solve_integer(program, first, left(end), gap_share, NODES)
    return columns[:0] if answer.x is None else columns[answer.x > 0.5]


def _places(of: Ints, count: int) -> Matrix:
    """One column with a one in each of some rows, of so many rows."""
    return Matrix(count, len(of), of, np.arange(len(of)), np.ones(len(of)))
