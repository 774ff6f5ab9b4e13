"""A problem as arrays: one column for each candidate, the servers in the order of their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from schemas.fleet import Ranking, SaturationPolicy, Served
from schemas.plan import ShadowPrice, SolveStatus
from services.optimizer.limits import Limit, LimitKind, limits_of
from services.optimizer.problem import (
    SERVED_ROUNDING,
    Candidate,
    Choice,
    Problem,
    ServerProblem,
    Solution,
    SolveOutcome,
    carried_share,
    service_of,
    shortfall_of,
)

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Columns:
    """S servers with C columns, one for each candidate, those of a server side by side and best first.

    server, replicas, value, share: shape (C,); server is a position, share the part of the rate carried.
        Where classes are weighed, what is carried is worth its violation cost, and lowers the value.
    least: shape (C,), the fewest replicas of best effort.
    full: shape (C,), whether all of the rate is carried, so that the server is served.
    units: shape (R, C), how much of each of R limits one replica uses.
    most: shape (R,), the limits. cards: the type of card by the row of a limit on cards.
    starts: shape (S + 1,), the first column of each server, and C.
    priority, rate: shape (S,). weight: shape (S,), what a served server counts. violation: shape (S,), the cost
        per hour of serving nothing of it, 0 unless classes are weighed.
    best_effort: whether a server may get fewer replicas than a column has, at least one.
    delayed: whether best effort comes after the full service of every class.
    weighed: whether there are no levels, only values.
    """

    server: Ints
    replicas: Ints
    value: Array
    share: Array
    least: Ints
    full: Flags
    units: Array
    most: Array
    cards: tuple[tuple[int, str], ...]
    starts: Ints
    priority: Ints
    rate: Array
    weight: Array
    violation: Array
    best_effort: bool
    delayed: bool
    weighed: bool

    @property
    def use(self) -> Array:
        """Use of every limit by all replicas of every column, shape (R, C)."""
        return self.units * self.replicas

    @property
    def servers(self) -> int:
        """The number of servers."""
        return len(self.starts) - 1


def ordered(problem: Problem) -> Problem:
    """The same problem with servers by name and candidates best first, so that no order of input matters."""
    servers = sorted(problem.servers, key=lambda s: s.server)
    return replace(problem, servers=tuple(map(_best_first, servers)))


def _best_first(server: ServerProblem) -> ServerProblem:
    best_first = tuple(sorted(server.candidates, key=Candidate.rank))
    return server if best_first == server.candidates else replace(server, candidates=best_first)


def columns_of(problem: Problem) -> Columns:
    """The columns of an ordered problem."""
    flat = [c for s in problem.servers for c in s.candidates]
    server = np.repeat(np.arange(len(problem.servers)), [len(s.candidates) for s in problem.servers])
    limits = limits_of(problem)
    replicas = _each(flat, "replicas").astype(np.int64)
    share = np.where(replicas > 0, _each(flat, "served_share"), 1.0)
    full = share >= 1.0 - SERVED_ROUNDING
    rate = np.array([s.rate_rps for s in problem.servers])
    weighed = problem.options.ranking is Ranking.WEIGHTED
    violation = np.array([s.violation_cost_per_hour * weighed for s in problem.servers])
    least_share = np.array([s.min_served_share for s in problem.servers])[server]
    weight = np.ones_like(rate)
    if problem.options.maximize is Served.DEMAND:
        # A server without load still counts, less than any load could.
        weight = np.where(rate > 0, rate, 1e-3 * min(rate[rate > 0], default=1.0))
    return Columns(
        server=server,
        replicas=replicas,
        value=_each(flat, "value") - violation[server] * share,
        share=share,
        least=np.maximum(1, np.ceil(least_share * replicas / share - SERVED_ROUNDING)).astype(np.int64),
        full=full,
        units=_units(problem, limits, flat, server),
        most=np.array([limit.most for limit in limits], dtype=np.float64),
        cards=tuple((i, limit.name) for i, limit in enumerate(limits) if limit.kind is LimitKind.CARDS),
        starts=np.concatenate([[0], np.cumsum([len(s.candidates) for s in problem.servers])]).astype(
            np.int64
        ),
        priority=np.array([s.priority for s in problem.servers], dtype=np.int64),
        rate=rate,
        weight=weight,
        violation=violation,
        best_effort=problem.options.saturation_policy is not SaturationPolicy.NONE,
        delayed=problem.options.delayed_best_effort,
        weighed=weighed,
    )


def _each(candidates: Sequence[Candidate], name: str) -> Array:
    """A number of every candidate."""
    return np.fromiter(map(attrgetter(name), candidates), dtype=np.float64, count=len(candidates))


def _units(problem: Problem, limits: Sequence[Limit], candidates: Sequence[Candidate], server: Ints) -> Array:
    """How much of each limit a replica of each column uses, shape (R, C)."""
    units = np.zeros((len(limits), len(candidates)))
    cards = {limit.name: row for row, limit in enumerate(limits) if limit.kind is LimitKind.CARDS}
    if cards:
        # Most limits are of this kind, and large fleets have many candidates.
        rows = np.fromiter((cards[c.type] for c in candidates), dtype=np.int64, count=len(candidates))
        units[rows, np.arange(len(candidates))] = _each(candidates, "units_per_replica")
    for row, limit in enumerate(limits):
        if limit.kind is not LimitKind.CARDS:
            units[row] = [
                limit.use(problem.servers[s], c) for s, c in zip(server.tolist(), candidates, strict=True)
            ]
    return units


def solution_of(problem: Problem, chosen: dict[int, int]) -> Solution:
    """The solution that gives replicas to columns of an ordered problem, by position of the column."""
    flat = [c for s in problem.servers for c in s.candidates]
    choices: dict[str, list[Choice]] = {}
    for column, replicas in sorted(chosen.items()):
        choices.setdefault(flat[column].server, []).append(Choice(flat[column], replicas))
    return Solution({server: tuple(listed) for server, listed in sorted(choices.items())})


def positions(problem: Problem, solution: Solution) -> dict[int, int]:
    """Replicas by position of the column of a solution of an ordered problem."""
    place, first = {}, 0
    for server in problem.servers:
        for i, candidate in enumerate(server.candidates):
            place[(server.server, candidate.accelerator, candidate.max_batch)] = first + i
        first += len(server.candidates)
    return {
        place[(name, c.candidate.accelerator, c.candidate.max_batch)]: c.replicas
        for name, choices in solution.choices.items()
        for c in choices
    }


def served_wholly(columns: Columns, chosen: Mapping[int, int]) -> frozenset[int]:
    """The most important priorities whose every server a choice serves in full, up to the first that it fails.

    Where classes are weighed, nobody must be served.
    """
    if columns.weighed:
        return frozenset()
    served = np.zeros(columns.servers, dtype=bool)
    for column, replicas in chosen.items():
        if columns.full[column] and replicas == columns.replicas[column]:
            served[columns.server[column]] = True
    whole = set()
    for priority in np.unique(columns.priority).tolist():
        if not served[columns.priority == priority].all():
            break
        whole.add(int(priority))
    return frozenset(whole)


def worth_carried(problem: Problem, solution: Solution) -> float:
    """What the values of columns are less than the value of a solution: the violations that it avoids, if weighed."""
    if problem.options.ranking is not Ranking.WEIGHTED:
        return 0.0
    return sum(
        s.violation_cost_per_hour * carried_share(solution.choices[s.server])
        for s in problem.servers
        if s.server in solution.choices
    )


def outcome_of(
    problem: Problem,
    solution: Solution,
    bound: float,
    served_bounds: Mapping[int, float],
    status: SolveStatus,
    prices: Mapping[str, float],
) -> SolveOutcome:
    """The outcome of a solution.

    bound: of the value, less what is carried where classes are weighed; minus infinity when unknown.
    served_bounds: by priority, the most that can be served.
    status: how the search ended; where nothing could be given it is infeasible.
    """
    counted = problem.options.maximize is Served.SERVERS
    classes = []
    for one in service_of(problem, solution):
        reached = one.servers_served if counted else one.demand_served_rps
        most = one.servers if counted else one.demand_rps
        bounded = max(reached, min(most, served_bounds.get(one.priority, most)))
        classes.append(one.model_copy(update={"bound": float(bounded)}))
    nothing = bool(problem.servers) and not solution.choices
    objective = solution.value
    bound += worth_carried(problem, solution)
    return SolveOutcome(
        status=SolveStatus.INFEASIBLE if nothing and status is SolveStatus.OPTIMAL else status,
        solution=solution,
        objective=objective,
        bound=min(bound, objective) if np.isfinite(bound) else None,
        shortfall=shortfall_of(problem, solution),
        shadow_prices=tuple(
            ShadowPrice(type=name, cost_per_hour=price) for name, price in sorted(prices.items())
        ),
        classes=tuple(classes),
    )
