"""Prices on accelerators and every server's choice under them: fast, near the optimum, always with a bound."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from schemas.fleet import Served
from schemas.plan import SolveStatus
from services.optimizer.problem import Problem, Solution, SolveOutcome
from services.optimizer.solver import Capabilities
from services.optimizer.solvers.certificate import Certificate, better, placed, vector
from services.optimizer.solvers.columns import (
    Array,
    Columns,
    Flags,
    columns_of,
    ordered,
    outcome_of,
    positions,
    solution_of,
    worth_carried,
)
from services.optimizer.solvers.construction import completed, extended, place_class, take_cheapest
from services.optimizer.solvers.highs import deadline, left, require_highs
from services.optimizer.solvers.levels import LEVEL_ROUNDING, Kind, levels_of
from services.optimizer.solvers.placement import Placement
from services.optimizer.solvers.prices import Dual, Priced, best_prices, charged, nearby

# Of the time that there is, the shares after which the prices of service, and the search as a whole, have had
# theirs; the rest is for the last bound.
SERVE_SHARE, SEARCH_SHARE = 0.5, 0.8
# Service missed, as a share of all of a class, that is searched for no further; columns of small exact programs
# beside one for each server.
CLOSE_SERVICE = 5e-3
SERVED_MORE, VALUE_MORE = 80, (150, 600)
# With so few left out, serving everyone is tried exactly.
ALMOST = 0.05
# The weight of the value where prices alone tie.
TIE = 1e-9
# Where everything within this of the bound is as good, the search ends.
CLOSE_ENOUGH = 1e-9


class LagrangianSettings(BaseModel):
    """How far it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
                dual = Certificate(columns, best).dual(end)
        if best.value > dual.bound + self.settings.gap_share * abs(best.value) or served_bounds:
            proven_of = vector(columns, best)[:-1]
            best = _cheapen(columns, best, dual, search_end)
            best = _improved(columns, best, dual, self.settings.gap_share, search_end)
            if vector(columns, best)[:-1] != proven_of:
                dual = Certificate(columns, best).dual(end, dual.prices)
        solution = solution_of(problem, best.chosen)
        proven = (
            best.value <= dual.bound + CLOSE_ENOUGH * max(1.0, abs(best.value))
            and all(
                _reached(columns, best, p) >= bound - LEVEL_ROUNDING for p, bound in served_bounds.items()
            )
            and _carries_the_most(columns, best)
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
    placement = placed(columns, positions(problem, solution))
    bound = Certificate(columns, placement).dual(deadline(seconds)).bound
    return bound + worth_carried(problem, solution)


def _part(time_limit_s: float | None, share: float) -> float | None:
    return None if time_limit_s is None else time_limit_s * share


def _in_units(problem: Problem, bound: float) -> float:
    if problem.options.maximize is Served.SERVERS:
        return float(np.floor(bound + LEVEL_ROUNDING))
    return bound


def _reached(columns: Columns, placement: Placement, priority: int) -> float:
    return float((columns.weight * placement.served)[columns.priority == priority].sum())


def _carries_the_most(columns: Columns, placement: Placement) -> bool:
    """Whether no placement carries more best effort of any class: all of the demand is the only bound on it.

    Where nothing is given, every server was tried with all that there is.
    """
    return not placement.chosen or all(
        reached >= level.most - LEVEL_ROUNDING
        for level, reached in zip(levels_of(columns), vector(columns, placement), strict=False)
        if level.kind is Kind.CARRIED
    )


def _everyone(columns: Columns, gap_share: float, end: float) -> tuple[Placement, Dual]:
    """A placement near the least value of serving everyone, and the prices of that, whether it can be done or not."""
    everyone = np.ones(columns.servers, dtype=bool)
    full = np.zeros(columns.servers, dtype=bool)
    full[columns.server[columns.full]] = True
    problem = _serving(columns, full, columns.most)
    dual = best_prices(problem, end)
    priced = columns.value + charged(dual.prices, columns.use)
    placement = Placement(columns)
    take_cheapest(placement, priced, everyone)
    unserved = int((full & ~placement.served).sum())
    if 0 < unserved <= ALMOST * columns.servers and dual.bound < _most(problem):
        for more in VALUE_MORE:
            chosen = nearby(problem, dual.prices, None, more, end, gap_share)
            if chosen.size:
                made = placed(columns, {int(c): int(columns.replicas[c]) for c in chosen})
                placement = better(columns, made, placement)
                break
    placement = completed(columns, placement, priced, end)
    if placement.served.all():
        placement.improve(end)
    return placement, dual


def _serving(columns: Columns, of: Flags, limit: Array) -> Priced:
    """Serving some servers in full, all of them, at the least value within limits of shape (R,)."""
    return Priced(
        cost=columns.value,
        rows=columns.use,
        limit=limit,
        server=columns.server,
        starts=columns.starts,
        usable=columns.full & of[columns.server],
        must=of,
    )


def _weighed(columns: Columns, gap_share: float, end: float) -> tuple[Placement, Dual]:
    """A placement near the least value where nobody must be served, and its prices."""
    certificate = Certificate(columns, Placement(columns))
    problem, dual = certificate.problem, certificate.dual(end)
    priced = problem.priced(dual.prices)
    placement = Placement(columns)
    worth = problem.least(priced) < 0
    take_cheapest(placement, columns.value + charged(dual.prices, columns.use), worth)
    placement.improve(end)
    certificate = Certificate(columns, placement)
    start = certificate.first
    for more in VALUE_MORE:
        chosen = nearby(certificate.problem, dual.prices, start, more, end, gap_share)
        made = placed(
            columns,
            dict(
                zip(certificate.column[chosen].tolist(), certificate.replicas[chosen].tolist(), strict=True)
            ),
        )
        placement = better(columns, made, placement)
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
        priced = charged(dual.prices[: len(columns.most)], best.use) + TIE * columns.value
        # Those that are served before, where they leave the most, then whom the prices would serve.
        fresh, before = Placement(columns), best.served & (columns.priority < priority)
        take_cheapest(fresh, priced, before)
        place_class(columns, fresh, before, priced, end)
        take_cheapest(fresh, priced, of & (problem.least(problem.priced(dual.prices)) < 0))
        for made in (
            completed(columns, fresh, priced, end),
            extended(columns, best, priced, priority, end),
        ):
            best = better(columns, made, best)
        missed = -dual.bound - _reached(columns, best, priority)
        if missed > CLOSE_SERVICE * float(columns.weight[of].sum()):
            served = best.column[best.served & (columns.priority <= priority)]
            chosen = nearby(problem, dual.prices, served, SERVED_MORE, end, CLOSE_SERVICE)
            made = placed(columns, {int(c): int(columns.replicas[c]) for c in chosen})
            best = better(columns, completed(columns, made, priced, end), best)
        bounds[priority] = max(-dual.bound, _reached(columns, best, priority))
    return best, bounds


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
    priced = columns.value + charged(dual.prices[: len(columns.most)], best.use)
    kept, served = best.copy(), best.served
    for server in np.flatnonzero(served).tolist():
        kept.take(server)
    take_cheapest(kept, priced, served)
    for priority in np.unique(columns.priority).tolist():
        place_class(columns, kept, served & (columns.priority == priority), priced, end)
    kept.improve(end)
    best = better(columns, kept, best)
    best.improve(end)
    return best


def _improved(columns: Columns, given: Placement, dual: Dual, gap_share: float, end: float) -> Placement:
    """The placement of least value that serves the same servers, among what is cheapest under prices."""
    served = given.served
    rest = given.copy()
    for server in np.flatnonzero(served).tolist():
        rest.take(server)
    problem = _serving(columns, served, rest.rest)
    prices = dual.prices[: len(columns.most)]
    for column in nearby(problem, prices, given.column[served], VALUE_MORE[0], end, gap_share).tolist():
        rest.give(column)
    return better(columns, rest, given)
