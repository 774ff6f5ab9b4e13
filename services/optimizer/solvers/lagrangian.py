"""Prices on accelerators and every server's choice under them: fast, near the optimum, always with a bound."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

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
    solution_of,
)
from services.optimizer.solvers.highs import deadline, left, require_highs
from services.optimizer.solvers.levels import LEVEL_ROUNDING, Kind, levels_of
from services.optimizer.solvers.placement import NONE, Placement
from services.optimizer.solvers.prices import Dual, Priced, best_prices, nearby

# Of the time that there is, the shares after which the prices of service, and the search as a whole, have had
# theirs; the rest is for the last bound.
SERVE_SHARE, SEARCH_SHARE = 0.5, 0.8
# Service missed, as a share of all of a class, that is searched for no further; columns of small exact programs
# beside one for each server.
CLOSE_SERVICE = 5e-3
SERVED_MORE, VALUE_MORE = 80, (150, 600)
# With so few left out, serving everyone is tried exactly.
ALMOST = 0.05
COLUMNS_TRIED = 4
ROOM_FAILURES = 40
# The weight of the value where prices alone tie.
TIE = 1e-9
# Where everything within this of the bound is as good, the search ends.
CLOSE_ENOUGH = 1e-9


class LagrangianSettings(BaseModel):
    """How far it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    gap_share: Annotated[float, Field(ge=0, lt=1)] = 5e-4
    """Distance to the bound, as a share of the cost, below which nothing more is tried."""


class LagrangianSolver:
    """Serves class after class under prices, makes room for who is left, then lowers the value."""

    name: ClassVar[str] = "lagrangian"
    Settings: ClassVar[type[BaseModel]] = LagrangianSettings
    capabilities: ClassVar[Capabilities] = Capabilities(
        partial=True, bound=True, shadow_prices=True, weighs=True, heavy=True
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
        served_bounds: dict[int, float] = {}
        search = _weighed if columns.weighed else _everyone
        best, dual = search(columns, self.settings.gap_share, search_end)
        if not columns.weighed and not best.served.all():
            best, served_bounds = _serve(columns, best, deadline(_part(time_limit_s, SERVE_SHARE)))
            if not best.served.all():
                dual = Certificate(columns, best).dual(search_end)
        if best.value > dual.bound + self.settings.gap_share * abs(best.value) or served_bounds:
            proven_of = _vector(columns, best)[:-1]
            best = _cheapen(columns, best, dual, search_end)
            best = _improved(columns, best, dual, self.settings.gap_share, search_end)
            if _vector(columns, best)[:-1] != proven_of:
                dual = Certificate(columns, best).dual(end, dual.prices)
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
    return Certificate(columns, placement).dual(deadline(seconds)).bound


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
    # HiGHS keeps rows but for its tolerance.
    if (one.rest < 0).any():
        return other
    return one if _vector(columns, one) > _vector(columns, other) else other


def _everyone(columns: Columns, gap_share: float, end: float) -> tuple[Placement, Dual]:
    """A placement near the least value of serving everyone, and the prices of that, whether it can be done or not."""
    everyone = np.ones(columns.servers, dtype=bool)
    full = np.zeros(columns.servers, dtype=bool)
    full[columns.server[columns.full]] = True
    problem = Priced(
        cost=columns.value,
        rows=columns.use,
        limit=columns.most,
        server=columns.server,
        starts=columns.starts,
        usable=columns.full,
        must=full,
    )
    dual = best_prices(problem, end)
    priced = columns.value + dual.prices @ columns.use
    placement = Placement(columns)
    _take_cheapest(placement, priced, everyone)
    unserved = int((full & ~placement.served).sum())
    if 0 < unserved <= ALMOST * columns.servers and dual.bound < _most(problem):
        for more in VALUE_MORE:
            chosen = nearby(problem, dual.prices, None, more, end, gap_share)
            if chosen.size:
                made = _placed(columns, {int(c): int(columns.replicas[c]) for c in chosen})
                placement = _better(columns, made, placement)
                break
    placement = _completed(columns, placement, priced, end)
    if placement.served.all():
        placement.improve(end)
    return placement, dual


def _weighed(columns: Columns, gap_share: float, end: float) -> tuple[Placement, Dual]:
    """A placement near the least value where nobody must be served, and its prices."""
    certificate = Certificate(columns, Placement(columns))
    problem, dual = certificate.problem, certificate.dual(end)
    priced = problem.priced(dual.prices)
    placement = Placement(columns)
    worth = problem.least(priced) < 0
    _take_cheapest(placement, columns.value + dual.prices @ columns.use, worth)
    placement.improve(end)
    certificate = Certificate(columns, placement)
    start = certificate.first
    for more in VALUE_MORE:
        chosen = nearby(certificate.problem, dual.prices, start, more, end, gap_share)
        made = _placed(
            columns,
            dict(
                zip(certificate.column[chosen].tolist(), certificate.replicas[chosen].tolist(), strict=True)
            ),
        )
        placement = _better(columns, made, placement)
    return placement, dual


def _most(problem: Priced) -> float:
    """What no choice of a column for every server costs more than."""
    cost = np.where(problem.usable, problem.cost, -np.inf)
    most = np.maximum.reduceat(cost, problem.starts[:-1])
    return float(most[problem.must].sum())


def _serve(columns: Columns, first: Placement, end: float) -> tuple[Placement, dict[int, float]]:
    """Class after class: prices of serving it beside those before, a placement near their shares, room.

    first: a placement to begin with. Returns the best placement and, by priority, the most weight that can be
    served given what the classes before reached.
    """
    best, bounds = first, {}
    for priority in np.unique(columns.priority).tolist():
        of = columns.priority == priority
        if best.served[of].all():
            bounds[priority] = float(columns.weight[of].sum())
            continue
        problem = _service_problem(columns, priority, best)
        dual = best_prices(problem, end)
        priced = dual.prices[: len(columns.most)] @ best.use + TIE * columns.value
        # Those that are served before, where they leave the most, then whom the prices would serve.
        fresh, before = Placement(columns), best.served & (columns.priority < priority)
        _take_cheapest(fresh, priced, before)
        _place_class(columns, fresh, before, priced, end)
        _take_cheapest(fresh, priced, of & (problem.least(problem.priced(dual.prices)) < 0))
        for made in (
            _completed(columns, fresh, priced, end),
            _extended(columns, best, priced, priority, end),
        ):
            best = _better(columns, made, best)
        missed = -dual.bound - _reached(columns, best, priority)
        if missed > CLOSE_SERVICE * float(columns.weight[of].sum()):
            served = best.column[best.served & (columns.priority <= priority)]
            chosen = nearby(problem, dual.prices, served, SERVED_MORE, end, CLOSE_SERVICE)
            made = _placed(columns, {int(c): int(columns.replicas[c]) for c in chosen})
            best = _better(columns, _completed(columns, made, priced, end), best)
        bounds[priority] = max(-dual.bound, _reached(columns, best, priority))
    return best, bounds


def _take_cheapest(placement: Placement, priced: Array, of: Flags) -> None:
    """Gives some servers their full column of least price as far as they fit, for whom it matters most first."""
    columns = placement.columns
    full = np.where(columns.full & of[columns.server], priced, np.inf)
    least = np.minimum.reduceat(full, columns.starts[:-1])
    hits = np.flatnonzero((full == least[columns.server]) & np.isfinite(full))
    first = hits[np.unique(columns.server[hits], return_index=True)[1]]
    full[first] = np.inf
    margin = (
        np.minimum.reduceat(full, columns.starts[:-1])[columns.server[first]] - least[columns.server[first]]
    )
    for column in first[np.argsort(-margin, kind="stable")].tolist():
        if (placement.use[:, column] <= placement.rest).all():
            placement.give(column)


def _extended(columns: Columns, best: Placement, priced: Array, priority: int, end: float) -> Placement:
    """The placement that is, without what is less important or best effort, and then all that fits."""
    placement = best.copy()
    for server in np.flatnonzero((columns.priority > priority) | ~best.served).tolist():
        placement.take(server)
    return _completed(columns, placement, priced, end)


def filled(columns: Columns, chosen: dict[int, int], end: float) -> dict[int, int]:
    """A choice, and in what it leaves whoever else can be served, class after class."""
    placement = _placed(columns, chosen)
    return _better(columns, _completed(columns, placement.copy(), columns.value, end), placement).chosen


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
    rows, limits = [columns.use], [columns.most]
    for p in np.unique(columns.priority[columns.priority < priority]).tolist():
        of = columns.priority == p
        if best.served[of].all():
            certain |= of
            continue
        gain = np.where(of[columns.server] & columns.full, columns.weight[columns.server], 0.0)
        rows.append(-gain)
        limits.append(np.array([-_reached(columns, best, p) * (1 - CLOSE_ENOUGH)]))
    of = columns.priority == priority
    return Priced(
        cost=np.where(of[columns.server] & columns.full, -columns.weight[columns.server], 0.0),
        rows=np.vstack(rows),
        limit=np.concatenate(limits),
        server=columns.server,
        starts=columns.starts,
        usable=columns.full & (columns.priority <= priority)[columns.server],
        must=certain,
    )


def _cheapen(columns: Columns, best: Placement, dual: Dual, end: float) -> Placement:
    """The servers that are served, placed under prices, then moved while that helps."""
    priced = columns.value + dual.prices[: len(columns.most)] @ best.use
    kept, served = best.copy(), best.served
    for server in np.flatnonzero(served).tolist():
        kept.take(server)
    _take_cheapest(kept, priced, served)
    for priority in np.unique(columns.priority).tolist():
        _place_class(columns, kept, served & (columns.priority == priority), priced, end)
    kept.improve(end)
    best = _better(columns, kept, best)
    best.improve(end)
    return best


def _improved(columns: Columns, given: Placement, dual: Dual, gap_share: float, end: float) -> Placement:
    """The placement of least value that serves the same servers, among what is cheapest under prices."""
    served = given.served
    rest = given.copy()
    for server in np.flatnonzero(served).tolist():
        rest.take(server)
    problem = Priced(
        cost=columns.value,
        rows=given.use,
        limit=rest.rest,
        server=columns.server,
        starts=columns.starts,
        usable=columns.full & served[columns.server],
        must=served,
    )
    prices = dual.prices[: len(columns.most)]
    for column in nearby(problem, prices, given.column[served], VALUE_MORE[0], end, gap_share).tolist():
        rest.give(column)
    return _better(columns, rest, given)


class Certificate:
    """A bound on the value of every placement that serves each class, and carries of it, as much as a given one.

    Best effort is linear in its replicas, so of each column the least and all but one are enough, beside what is
    given.
    """

    def __init__(self, columns: Columns, placement: Placement) -> None:
        served = placement.served
        self._whole = {
            int(p)
            for p in np.unique(columns.priority)
            if served[columns.priority == p].all() and not columns.weighed
        }
        self._must: Flags = np.isin(columns.priority, list(self._whole))
        vector = _vector(columns, placement)
        self.columns = columns
        self._levels = [
            (level, reached)
            for level, reached in zip(levels_of(columns), vector, strict=False)
            if level.priority not in self._whole
        ]
        self.placement = placement
        self.column, self.replicas = self._extended()
        self.whole: Flags = self.replicas == columns.replicas[self.column]
        server = columns.server[self.column]
        self.first: Ints = np.flatnonzero(
            (self.column == placement.column[server]) & (self.replicas == placement.replicas[server])
        )
        self.problem = self._problem()

    def _extended(self) -> tuple[Ints, Ints]:
        columns, given = self.columns, self.placement
        every = np.arange(len(columns.server))
        partial = np.flatnonzero(
            columns.best_effort & ~self._must[columns.server] & (columns.replicas > columns.least)
        )
        mine = np.flatnonzero((given.column != NONE) & (given.replicas > columns.least[given.column]))
        mine = mine[given.replicas[mine] < columns.replicas[given.column[mine]] - 1]
        column = np.concatenate([every, partial, partial, given.column[mine]])
        replicas = np.concatenate(
            [
                columns.replicas,
                columns.least[partial],
                columns.replicas[partial] - 1,
                given.replicas[mine],
            ]
        )
        order = np.lexsort((replicas, column, columns.server[column]))
        return column[order], replicas[order]

    def _problem(self) -> Priced:
        columns, column, replicas = self.columns, self.column, self.replicas
        whole = replicas == columns.replicas[column]
        part = np.where(whole, 1.0, replicas / np.maximum(columns.replicas[column], 1))
        server = columns.server[column]
        full = whole & columns.full[column]
        rows = [columns.units[:, column] * replicas]
        limits = [columns.most]
        for level, reached in self._levels:
            of = (columns.priority == level.priority)[server]
            if level.kind is Kind.SERVED:
                gain = np.where(of & full, columns.weight[server], 0.0)
            else:
                gain = np.where(of, columns.rate[server] * columns.share[column] * part, 0.0)
            rows.append(-gain / level.scale)
            limits.append(np.array([-(reached - LEVEL_ROUNDING)]))
        return Priced(
            cost=columns.value[column] * part,
            rows=np.vstack(rows),
            limit=np.concatenate(limits),
            server=server,
            starts=np.searchsorted(server, np.arange(columns.servers + 1)),
            usable=full | ~self._must[server],
            must=self._must,
        )

    def dual(self, end: float, known: Array | None = None) -> Dual:
        """The best prices and their bound."""
        start = None
        if known is not None:
            # Prices of cards, money and power are worth beginning with whatever the levels are.
            shared = len(self.columns.most)
            start = np.concatenate([known[:shared], np.zeros(len(self.problem.limit) - shared)])
            if len(known) == len(start):
                start = known
        return best_prices(self.problem, end, start)
