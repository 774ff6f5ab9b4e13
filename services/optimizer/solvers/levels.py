"""The order of what matters: the service of one class after the other, then the value, each solved in turn.

    for every priority p, the most important first:  max Σ w_s · served_s,  then  max Σ λ_s · carried_s
    then  min Σ value,   each subject to what the levels before it reached.

With `delayed` best effort every class is served before any gets best effort; a class without best effort has
no level of what is carried, so that of as many served the cheapest are. A level that reaches what is
possible at all needs no search, so a fleet that fits takes one program.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from enum import Enum

import numpy as np

from services.optimizer.solvers.columns import Array, Columns
from services.optimizer.solvers.highs import Answer, Program, left

# Levels are in units of their largest weight; a later level may not lose more than this of an earlier one.
LEVEL_ROUNDING = 1e-6


class Kind(Enum):
    """What a level maximises: the weight of the servers that are served, or the rate that is carried."""

    SERVED = "served"
    CARRIED = "carried"


@dataclass(frozen=True)
class Level:
    """One level: of one priority, with the largest value that its servers allow, in units of `scale`."""

    kind: Kind
    priority: int
    most: float
    scale: float


@dataclass(frozen=True)
class Reached:
    """What a level reached, in its units, and what no solution as good in the levels before can exceed."""

    level: Level
    value: float
    bound: float


@dataclass(frozen=True, eq=False)
class Formulation:
    """A problem as one program.

    program: the rows of choice and of limits; its cost is the value.
    level: the row of a level over the columns of the program, in the level's units.
    whole: priorities whose every server the program serves in full, whatever the cost.
    """

    program: Program
    level: Callable[[Level], Array]
    whole: Set[int]


@dataclass(frozen=True, eq=False)
class Result:
    """The best x found, its value with bound, what the levels reached, and whether all of it is proven."""

    x: Array
    value: float
    bound: float
    reached: tuple[Reached, ...]
    proven: bool
    final: Program


Search = Callable[[Program, Array, float], Answer]
"""Solves a program from a first solution within so many seconds."""


def levels_of(columns: Columns) -> tuple[Level, ...]:
    """The levels of a problem in their order; none where classes are weighed."""
    if columns.weighed:
        return ()
    can = np.zeros(columns.servers, dtype=bool)
    np.logical_or.at(can, columns.server, columns.full)
    best = np.zeros(columns.servers)
    np.maximum.at(best, columns.server, columns.share)
    served: list[tuple[Level, ...]] = []
    carried: list[tuple[Level, ...]] = []
    for priority in np.unique(columns.priority).tolist():
        of = columns.priority == priority
        weight, rate = float(columns.weight[of].max()), float(columns.rate[of].max()) or 1.0
        most = float((columns.weight * (of & can)).sum()) / weight
        served.append((Level(Kind.SERVED, priority, most, weight),))
        if not columns.best_effort and columns.full[of[columns.server]].all():
            carried.append(())
            continue
        most = float((columns.rate * best)[of].sum()) / rate
        carried.append((Level(Kind.CARRIED, priority, most, rate),))
    if columns.delayed:
        return tuple(level for part in (*served, *carried) for level in part)
    return tuple(level for pair in zip(served, carried, strict=True) for part in pair for level in part)


def optimise(
    formulation: Formulation, levels: Sequence[Level], start: Array, search: Search, end: float
) -> Result:
    """Every level in turn, then the value.

    start: a feasible x. end: the deadline; after it the levels that are left keep what the best x so far
    reaches, with the bound that is known anyway.
    """
    program, best, proven = formulation.program, start, True
    reached: list[Reached] = []
    for level in levels:
        if level.priority in formulation.whole:
            reached.append(Reached(level, level.most, level.most))
            continue
        row = formulation.level(level)
        have, bound = float(row @ best), level.most
        if have < level.most - LEVEL_ROUNDING and left(end) > 0:
            answer = search(program.with_cost(-row), best, left(end))
            if answer.x is not None and float(row @ answer.x) > have:
                best = answer.x
            have, bound = float(row @ best), min(bound, -answer.bound)
            proven &= answer.proven
        elif have < level.most - LEVEL_ROUNDING:
            proven = False
        reached.append(Reached(level, have, max(have, bound)))
        program = program.with_row(row, have - LEVEL_ROUNDING)
    cost = formulation.program.cost
    answer = search(program, best, left(end)) if left(end) > 0 else Answer(best, -np.inf, False)
    if answer.x is not None and float(cost @ answer.x) < float(cost @ best):
        best = answer.x
    value = float(cost @ best)
    return Result(
        x=best,
        value=value,
        bound=min(value, answer.bound),
        reached=tuple(reached),
        proven=proven and answer.proven,
        final=program,
    )
