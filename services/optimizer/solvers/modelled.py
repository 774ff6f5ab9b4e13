"""The same choice modelled in cvxpy: built once for a shape, filled with numbers, solved by HiGHS.

Written from the algebra, over servers × candidates, and not from the arrays of the direct formulation, so that
the two check each other. Mixes are the direct formulation's alone. The only module that imports cvxpy.
"""

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from services.optimizer.problem import Problem
from services.optimizer.solvers.columns import Array, Columns
from services.optimizer.solvers.highs import left
from services.optimizer.solvers.levels import LEVEL_ROUNDING, Kind, Level, levels_of


@dataclass(frozen=True, eq=False)
class _Model:
    """A cvxpy problem of a shape: whole choices X, best effort P with K replicas, and all of their numbers.

    least: the level that each level row must reach, shape (L,). gain: by level, what X and K add to it.
    fewest, more: the fewest and the most replicas of best effort, by column.
    """

    problem: Any
    x: Any
    k: Any
    cost: tuple[Any, Any]
    fewest: Any
    more: Any
    use: list[tuple[Any, Any]]
    most: Any
    gain: list[tuple[Any, Any]]
    least: Any
    allowed: Any


@dataclass(frozen=True, eq=False)
class Modelled:
    """What the model finds: replicas by column, what every level reached, the value, and whether it is proven."""

    chosen: dict[int, int]
    reached: tuple[float, ...]
    value: float
    proven: bool


def solve_modelled(problem: Problem, columns: Columns, end: float) -> Modelled:
    """The lexicographic optimum of an ordered problem, level after level; without mixes."""
    cvxpy: Any = importlib.import_module("cvxpy")
    levels = levels_of(columns)
    shape = (columns.servers, int(np.diff(columns.starts).max()))
    model = _model(shape, len(columns.most), len(levels))
    place = (columns.server, np.arange(len(columns.server)) - columns.starts[columns.server])

    def spread(values: Array) -> Array:
        full = np.zeros(shape)
        full[place] = values
        return full

    per_replica = 1.0 / np.maximum(columns.replicas, 1)
    partial = columns.best_effort & (columns.replicas > columns.least)
    model.allowed.value = spread(np.ones(len(columns.server)))
    model.fewest.value = spread(columns.least.astype(float))
    model.more.value = spread(np.where(partial, columns.replicas - 1, 0).astype(float))
    model.most.value = columns.most
    for i, (whole, part) in enumerate(model.use):
        whole.value, part.value = spread(columns.units[i] * columns.replicas), spread(columns.units[i])
    gains = [_gain(columns, level) for level in levels]
    for (whole, part), (of_x, of_k) in zip(model.gain, gains, strict=True):
        whole.value, part.value = spread(of_x), spread(of_k)
    least = np.full(len(levels), -1.0)
    reached, proven = [], True
    objectives = [(-x, -k) for x, k in gains] + [(columns.value, columns.value * per_replica)]
    for i, (of_x, of_k) in enumerate(objectives):
        model.cost[0].value, model.cost[1].value = spread(of_x), spread(of_k)
        model.least.value = least
        options: dict[str, Any] = {"mip_rel_gap": 0.0, "threads": 1}
        if np.isfinite(end):
            options["time_limit"] = max(left(end), 0.01)
        # From the solution of the level before, HiGHS may stop at once and call it optimal.
        value = model.problem.solve(solver=cvxpy.HIGHS, warm_start=False, highs_options=options)
        proven &= model.problem.status == cvxpy.OPTIMAL
        if i < len(levels):
            reached.append(-float(value))
            least[i] = reached[-1] - LEVEL_ROUNDING
    chosen: dict[int, int] = {}
    x, k = np.round(model.x.value)[place], np.round(model.k.value)[place]
    for column in np.flatnonzero(x > 0):
        chosen[int(column)] = int(columns.replicas[column])
    for column in np.flatnonzero(k > 0):
        chosen[int(column)] = int(k[column])
    return Modelled(chosen, tuple(reached), float(value), proven)


def _gain(columns: Columns, level: Level) -> tuple[Array, Array]:
    """What a whole column, and one replica of best effort, add to a level, in its units."""
    of = (columns.priority == level.priority)[columns.server]
    if level.kind is Kind.SERVED:
        whole = np.where(of & columns.full, columns.weight[columns.server], 0.0) / level.scale
        return whole, np.zeros_like(whole)
    whole = np.where(of, columns.rate[columns.server] * columns.share, 0.0) / level.scale
    return whole, whole / np.maximum(columns.replicas, 1)


@lru_cache(maxsize=16)
def _model(shape: tuple[int, int], limits: int, levels: int) -> _Model:
    cvxpy: Any = importlib.import_module("cvxpy")
    x, p = cvxpy.Variable(shape, boolean=True), cvxpy.Variable(shape, boolean=True)
    k = cvxpy.Variable(shape, integer=True)

    def pair() -> tuple[Any, Any]:
        return cvxpy.Parameter(shape), cvxpy.Parameter(shape)

    def total(numbers: tuple[Any, Any]) -> Any:
        whole, part = numbers
        return cvxpy.sum(cvxpy.multiply(whole, x)) + cvxpy.sum(cvxpy.multiply(part, k))

    cost, use, gain = pair(), [pair() for _ in range(limits)], [pair() for _ in range(levels)]
    fewest, more, allowed = (cvxpy.Parameter(shape, nonneg=True) for _ in range(3))
    most, least = cvxpy.Parameter(limits), cvxpy.Parameter(levels)
    constraints = [
        cvxpy.sum(x + p, axis=1) <= 1,
        x <= allowed,
        k <= cvxpy.multiply(more, p),
        k >= cvxpy.multiply(fewest, p),
        p <= more,
        *(total(numbers) <= most[i] for i, numbers in enumerate(use)),
        *(total(numbers) >= least[i] for i, numbers in enumerate(gain)),
    ]
    problem = cvxpy.Problem(cvxpy.Minimize(total(cost)), constraints)
    return _Model(problem, x, k, cost, fewest, more, use, most, gain, least, allowed)
