"""Prices on accelerators and every server's choice under them: fast, near the optimum, always with a bound."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import sparse

from schemas.fleet import Served
from schemas.plan import SolveStatus
from services.optimizer.problem import Problem, Solution, SolveOutcome
from services.optimizer.solver import Capabilities
from services.optimizer.solvers.columns import (
    Array,
    Columns,
    Flags,
    Ints,
    columns_of,
    ordered,
    outcome_of,
    positions,
    served_wholly,
    solution_of,
)
from services.optimizer.solvers.formulation import formulate
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.highs import Answer, Program, deadline, left, require_highs, solve_integer
from services.optimizer.solvers.levels import LEVEL_ROUNDING, Kind, levels_of, optimise
from services.optimizer.solvers.placement import NONE, Placement
from services.optimizer.solvers.prices import Dual, Priced, best_prices

# Of the time that there is, the shares after which the prices of service, and the search as a whole, have had
# theirs; the rest is for the last bound.
SERVE_SHARE, SEARCH_SHARE = 0.5, 0.8
# Without a time limit, seconds for the small exact program; and the gap at which it ends.
REPAIR_S, NEARBY_GAP = 10.0, 1e-3
COLUMNS_TRIED = 4
ROOM_FAILURES = 40
# A share of a column from which it counts as chosen, and the weight of the value where prices alone tie.
WHOLE = 1.0 - 1e-6
TIE = 1e-9
# Where everything within this of the bound is as good, the search ends.
CLOSE_ENOUGH = 1e-9


class LagrangianSettings(BaseModel):
    """How far it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    gap_share: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """Distance to the bound, as a share of the cost, below which nothing more is tried."""


class LagrangianSolver:
    """Serves class after class under prices, makes room for who is left, then lowers the value."""

    name: ClassVar[str] = "lagrangian"
    Settings: ClassVar[type[BaseModel]] = LagrangianSettings
    capabilities: ClassVar[Capabilities] = Capabilities(
        partial=True, bound=True, shadow_prices=True, heavy=True
    )

    def __init__(self, settings: LagrangianSettings) -> None:
        require_highs(self.name)
        self.settings = settings

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        """A good solution with a bound on its service and on its value, whatever the time."""
        problem = ordered(problem)
        if not problem.servers:
            return SolveOutcome(SolveStatus.OPTIMAL, Solution({}), 0.0, 0.0)
        end, search_end = deadline(time_limit_s), deadline(_part(time_limit_s, SEARCH_SHARE))
        columns = columns_of(problem)
        greedy = GreedySolver(GreedySettings()).solve(problem, None).solution
        best = _placed(columns, positions(problem, greedy))
        served_bounds: dict[int, float] = {}
        near = np.zeros(len(columns.server), dtype=bool)
        if not best.served.all():
            best, served_bounds = _serve(columns, best, near, deadline(_part(time_limit_s, SERVE_SHARE)))
        dual = Certificate(columns, best).dual(near, search_end)
        if best.value > dual.bound + self.settings.gap_share * abs(best.value) or served_bounds:
            best = _cheapen(columns, best, Certificate(columns, best), dual, search_end)
            seconds = REPAIR_S if time_limit_s is None else left(search_end)
            best = _better(columns, _nearby(columns, best, near, self.settings.gap_share, seconds), best)
            dual = Certificate(columns, best).dual(near, end, dual.prices)
        solution = solution_of(problem, best.chosen)
        proven = best.value <= dual.bound + CLOSE_ENOUGH * max(1.0, abs(best.value)) and all(
            _reached(columns, best, p) >= bound - LEVEL_ROUNDING for p, bound in served_bounds.items()
        )
        status = SolveStatus.OPTIMAL if proven else SolveStatus.FEASIBLE
        if not proven and left(end) <= 0:
            status = SolveStatus.TIME_LIMIT
        bounds = {p: _in_units(problem, bound) for p, bound in served_bounds.items()}
        prices = {name: float(dual.prices[row]) for row, name in columns.cards}
        return outcome_of(problem, solution, dual.bound, bounds, status, prices)


def value_bound(problem: Problem, solution: Solution, seconds: float | None) -> float:
    """What no solution that serves each class as much as this one, of single accelerators, can be below."""
    problem = ordered(problem)
    columns = columns_of(problem)
    placement = _placed(columns, positions(problem, solution))
    near = np.zeros(len(columns.server), dtype=bool)
    return Certificate(columns, placement).dual(near, deadline(seconds)).bound


def _part(time_limit_s: float | None, share: float) -> float | None:
    return None if time_limit_s is None else time_limit_s * share


def _in_units(problem: Problem, bound: float) -> float:
    if problem.options.maximize is Served.SERVERS:
        return float(np.floor(bound + LEVEL_ROUNDING))
    return bound


def _reached(columns: Columns, placement: Placement, priority: int) -> float:
    return float((columns.weight * placement.served)[columns.priority == priority].sum())


def _placed(columns: Columns, chosen: dict[int, int]) -> Placement:
    placement = Placement(columns)
    for column, replicas in chosen.items():
        placement.give(column, replicas)
    return placement


def _vector(columns: Columns, placement: Placement) -> tuple[float, ...]:
    """What a placement reaches in every level and, negated, its value."""
    some = placement.column != NONE
    at = np.maximum(placement.column, 0)
    part = placement.replicas / np.maximum(columns.replicas[at], 1)
    share = np.where(some, columns.share[at] * np.where(columns.replicas[at] > 0, part, 1.0), 0.0)
    reached = []
    for level in levels_of(columns):
        of = columns.priority == level.priority
        gain = columns.weight * placement.served if level.kind is Kind.SERVED else columns.rate * share
        reached.append(round(float(gain[of].sum()) / level.scale, 6))
    return (*reached, -placement.value)


def _better(columns: Columns, one: Placement, other: Placement) -> Placement:
    return one if _vector(columns, one) > _vector(columns, other) else other


def _nearby(columns: Columns, best: Placement, near: Flags, gap_share: float, seconds: float) -> Placement:
    """The best placement of the columns that prices asked for, and those of a placement: a small exact program."""
    near = near.copy()
    near[best.column[best.column != NONE]] = True
    some = columns.only(near)
    places = np.cumsum(near) - 1
    start = {int(places[column]): replicas for column, replicas in best.chosen.items()}
    choices = formulate(some, (), served_wholly(some, start))
    end = deadline(seconds)

    def search(program: Program, begin: Array | None, limit: float) -> Answer:
        # A level may not take all the time of those after it.
        return solve_integer(program, begin, limit / 2, max(gap_share, NEARBY_GAP))

    result = optimise(choices.formulation(), levels_of(some), choices.encode(start), search, end)
    back = np.flatnonzero(near)
    return _placed(columns, {int(back[c]): replicas for c, replicas in choices.decode(result.x).items()})


def _serve(columns: Columns, first: Placement, near: Flags, end: float) -> tuple[Placement, dict[int, float]]:
    """Class after class: prices of serving it beside those before, a placement near their shares, room.

    first: a placement to begin with. near: marked with the columns that prices asked for. Returns the best
    placement and, by priority, the most weight that can be served given what the classes before reached.
    """
    best, bounds = first, {}
    for priority in np.unique(columns.priority).tolist():
        of = columns.priority == priority
        if best.served[of].all():
            bounds[priority] = float(columns.weight[of].sum())
            continue
        problem = _service_problem(columns, priority, best)
        dual = best_prices(problem, best.column[best.served], end)
        near |= dual.entered
        priced = dual.prices[: len(columns.most)] @ best.use + TIE * columns.value
        for made in (
            _rounded(columns, dual.share, priced, columns.priority <= priority, end),
            _extended(columns, best, priced, priority, end),
        ):
            best = _better(columns, made, best)
        bounds[priority] = max(-dual.bound, _reached(columns, best, priority))
    return best, bounds


def _rounded(columns: Columns, share: Array, priced: Array, of: Flags, end: float) -> Placement:
    """A placement of some servers: whole shares as they are, the others by price; then best effort."""
    placement = Placement(columns)
    for column in np.flatnonzero((share > WHOLE) & of[columns.server] & columns.full).tolist():
        if (placement.use[:, column] <= placement.rest).all():
            placement.give(column)
    return _completed(columns, placement, priced, end)


def _extended(columns: Columns, best: Placement, priced: Array, priority: int, end: float) -> Placement:
    """The placement that is, without what is less important or best effort, and then all that fits."""
    placement = best.copy()
    for server in np.flatnonzero((columns.priority > priority) | ~best.served).tolist():
        placement.take(server)
    return _completed(columns, placement, priced, end)


def _completed(columns: Columns, placement: Placement, priced: Array, end: float) -> Placement:
    """All that can still be served, class after class, with best effort where the options want it."""
    priorities = np.unique(columns.priority).tolist()
    for priority in priorities:
        of = columns.priority == priority
        _place_class(columns, placement, of, priced, end)
        if columns.best_effort and not columns.delayed:
            _fill(columns, placement, of, priced)
    for priority in priorities:
        if columns.best_effort and columns.delayed:
            _fill(columns, placement, columns.priority == priority, priced)
    if not columns.best_effort:
        # Servers that no number of replicas allowed can serve get what they may have.
        _fill(columns, placement, np.ones(columns.servers, dtype=bool), priced, whole=True)
    return placement


def _place_class(columns: Columns, placement: Placement, of: Flags, priced: Array, end: float) -> None:
    full = np.where(columns.full, priced, np.inf)
    least = np.minimum.reduceat(full, columns.starts[:-1]) / columns.weight
    free = of & (placement.column == NONE) & np.isfinite(least)
    waiting = [int(s) for s in np.argsort(least, kind="stable") if free[s]]
    unserved = [s for s in waiting if not placement.serve(s, priced)]
    before = columns.priority <= int(columns.priority[of].max(initial=0))
    movable = placement.movable(before)
    failed = 0
    for server in unserved:
        if left(end) <= 0 or failed >= ROOM_FAILURES:
            return
        if placement.serve(server, priced) or placement.make_room(server, priced, movable, COLUMNS_TRIED):
            movable = placement.movable(before)
        else:
            failed += 1


def _fill(columns: Columns, placement: Placement, of: Flags, priced: Array, whole: bool = False) -> None:
    """Best effort for servers that have nothing; with `whole` only columns that are given whole count."""
    for server in np.flatnonzero(of & (placement.column == NONE)).tolist():
        placement.fill(server, priced)
        given = placement.column[server]
        partial = given != NONE and placement.replicas[server] < columns.replicas[given]
        if whole and (partial or (given != NONE and columns.full[given])):
            placement.take(server)


def _service_problem(columns: Columns, priority: int, best: Placement) -> Priced:
    """Serving the most weight of a class while those before keep what they reached; its cost is negative."""
    certain = np.zeros(columns.servers, dtype=bool)
    rows, limits = [sparse.csr_matrix(columns.use)], [columns.most]
    for p in np.unique(columns.priority[columns.priority < priority]).tolist():
        of = columns.priority == p
        if best.served[of].all():
            certain |= of
            continue
        gain = np.where(of[columns.server] & columns.full, columns.weight[columns.server], 0.0)
        rows.append(sparse.csr_matrix(-gain))
        limits.append(np.array([-_reached(columns, best, p) * (1 - CLOSE_ENOUGH)]))
    of = columns.priority == priority
    return Priced(
        cost=np.where(of[columns.server] & columns.full, -columns.weight[columns.server], 0.0),
        rows=sparse.csr_matrix(sparse.vstack(rows)),
        limit=np.concatenate(limits),
        server=columns.server,
        starts=columns.starts,
        usable=columns.full & (columns.priority <= priority)[columns.server],
        must=certain,
    )


def _cheapen(
    columns: Columns, best: Placement, certificate: "Certificate", dual: Dual, end: float
) -> Placement:
    """The servers that are served, placed near the shares of the least value, then moved while that helps."""
    priced = columns.value + dual.prices[: len(columns.most)] @ best.use
    share = np.zeros(len(columns.server))
    np.add.at(share, certificate.column[certificate.whole], dual.share[certificate.whole])
    served = best.served
    rounded = _rounded(columns, share, priced, np.ones(columns.servers, dtype=bool), end)
    kept = best.copy()
    for server in np.flatnonzero(served).tolist():
        kept.take(server)
    for column in np.flatnonzero((share > WHOLE) & served[columns.server] & columns.full).tolist():
        if (kept.use[:, column] <= kept.rest).all():
            kept.give(column)
    for priority in np.unique(columns.priority).tolist():
        _place_class(columns, kept, served & (columns.priority == priority), priced, end)
    for one in (kept, rounded):
        one.improve(end)
        best = _better(columns, one, best)
    best.improve(end)
    return best


class Certificate:
    """A bound on the value of every placement that serves each class, and carries of it, as much as a given one.

    Best effort is linear in its replicas, so of each column one replica and all but one are enough.
    """

    def __init__(self, columns: Columns, placement: Placement) -> None:
        served = placement.served
        self._whole = {int(p) for p in np.unique(columns.priority) if served[columns.priority == p].all()}
        self._must: Flags = np.isin(columns.priority, list(self._whole))
        self._value = placement.value
        vector = _vector(columns, placement)
        self.columns = columns
        self._levels = [
            (level, reached)
            for level, reached in zip(levels_of(columns), vector, strict=False)
            if level.priority not in self._whole
        ]
        self.column, self.replicas = self._extended()
        self.whole: Flags = self.replicas == columns.replicas[self.column]
        # What is given in part lies between one replica and all but one.
        given = placement.replicas[columns.server[self.column]]
        partly = ~self.whole & (given < columns.replicas[self.column])
        self._first = np.flatnonzero(
            (self.column == placement.column[columns.server[self.column]])
            & ((self.replicas == given) | partly)
        )
        self.problem = self._problem()

    def _extended(self) -> tuple[Ints, Ints]:
        columns = self.columns
        every = np.arange(len(columns.server))
        partial = np.flatnonzero(columns.best_effort & ~self._must[columns.server] & (columns.replicas >= 2))
        column = np.concatenate([every, partial, partial])
        replicas = np.concatenate(
            [columns.replicas, np.ones(len(partial), dtype=np.int64), columns.replicas[partial] - 1]
        )
        order = np.lexsort((replicas, column, columns.server[column]))
        return column[order], replicas[order]

    def _problem(self) -> Priced:
        columns, column, replicas = self.columns, self.column, self.replicas
        whole = replicas == columns.replicas[column]
        part = np.where(whole, 1.0, replicas / np.maximum(columns.replicas[column], 1))
        server = columns.server[column]
        full = whole & columns.full[column]
        rows = [sparse.csr_matrix(columns.units[:, column] * replicas)]
        limits = [columns.most]
        for level, reached in self._levels:
            of = (columns.priority == level.priority)[server]
            if level.kind is Kind.SERVED:
                gain = np.where(of & full, columns.weight[server], 0.0)
            else:
                gain = np.where(of, columns.rate[server] * columns.share[column] * part, 0.0)
            rows.append(sparse.csr_matrix(-gain / level.scale))
            limits.append(np.array([-(reached - LEVEL_ROUNDING)]))
        return Priced(
            cost=columns.value[column] * part,
            rows=sparse.csr_matrix(sparse.vstack(rows)),
            limit=np.concatenate(limits),
            server=server,
            starts=np.searchsorted(server, np.arange(columns.servers + 1)),
            usable=full | ~self._must[server],
            must=self._must,
        )

    def dual(self, near: Flags, end: float, known: Array | None = None) -> Dual:
        """The best prices and their bound; marks the columns that prices asked for."""
        start = None
        if known is not None:
            # Prices of cards, money and power are worth beginning with whatever the levels are.
            shared = len(self.columns.most)
            start = np.concatenate([known[:shared], np.zeros(len(self.problem.limit) - shared)])
            if len(known) == len(start):
                start = known
        found = best_prices(self.problem, self._first, end, start)
        near[self.column[found.entered]] = True
        return found
