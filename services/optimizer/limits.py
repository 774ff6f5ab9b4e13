"""What the servers of a problem share: cards by type, quotas, money and power, as one kind of thing."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from schemas.fleet import Quota
from services.optimizer.problem import Candidate, Problem, ServerProblem, Solution

# Sums of costs and watts carry rounding; a limit on them is kept up to this share of itself.
SUM_ROUNDING = 1e-9


class LimitKind(StrEnum):
    """What a limit is counted in."""

    CARDS = "cards"
    QUOTA = "quota"
    BUDGET = "budget"
    POWER = "power"


@dataclass(frozen=True)
class Limit:
    """One limit: no solution uses more than `most` of it.

    name: the type of card or the quota; empty for the others.
    use: how much one replica of a candidate of a server uses.
    """

    kind: LimitKind
    name: str
    most: float
    use: Callable[[ServerProblem, Candidate], float]


def limits_of(problem: Problem) -> tuple[Limit, ...]:
    """Every limit of a problem; a type of card or a platform's quota that is no candidate's is left out."""
    found: list[Limit] = []
    if problem.capacity is not None:
        types = sorted({c.type for s in problem.servers for c in s.candidates})
        found += [Limit(LimitKind.CARDS, t, problem.capacity.get(t, 0), _cards_of(t)) for t in types]
    found += [Limit(LimitKind.QUOTA, q.name, q.cards, _quota(q)) for q in problem.quotas]
    if problem.platform_quotas:
        counted = {name for s in problem.servers for c in s.candidates for name in c.quotas}
        found += [
            Limit(LimitKind.QUOTA, name, most, _platform_quota(name))
            for name, most in sorted(problem.platform_quotas.items())
            if name in counted
        ]
    for kind, most, use in (
        (LimitKind.BUDGET, problem.budget_per_hour, _cost),
        (LimitKind.POWER, problem.power_limit_w, _power),
    ):
        if most is not None:
            found.append(Limit(kind, "", most * (1.0 + SUM_ROUNDING), use))
    return tuple(found)


def overused(problem: Problem, solution: Solution) -> tuple[str, ...]:
    """The limits that a solution does not keep, with what it uses and what there is."""
    servers = {s.server: s for s in problem.servers}
    broken = []
    for limit in limits_of(problem):
        used = sum(
            c.replicas * limit.use(servers[name], c.candidate)
            for name, choices in solution.choices.items()
            for c in choices
        )
        if used > limit.most:
            broken.append(f"{limit.kind} {limit.name}: {used:g} of {limit.most:g}")
    return tuple(broken)


def _cards_of(type_name: str) -> Callable[[ServerProblem, Candidate], float]:
    return lambda server, candidate: candidate.units_per_replica if candidate.type == type_name else 0


def _quota(quota: Quota) -> Callable[[ServerProblem, Candidate], float]:
    def use(server: ServerProblem, candidate: Candidate) -> float:
        counted = (
            quota.tenant in (None, server.tenant)
            and quota.region in (None, candidate.region)
            and quota.type in (None, candidate.type)
        )
        return candidate.units_per_replica if counted else 0

    return use


def _platform_quota(name: str) -> Callable[[ServerProblem, Candidate], float]:
    return lambda server, candidate: candidate.units_per_replica if name in candidate.quotas else 0


def _cost(server: ServerProblem, candidate: Candidate) -> float:
    return candidate.cost_per_replica_per_hour


def _power(server: ServerProblem, candidate: Candidate) -> float:
    return candidate.power_w
