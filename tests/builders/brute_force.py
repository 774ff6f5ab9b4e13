"""Small random problems and their optimum by enumeration, independent of every solver.

The options of every server are written out, best effort replica by replica and mixes included. Lexicographic
vectors add up like numbers, so of all choices with the same use of the limits only the best is kept.
"""

import itertools
import math
import random
from dataclasses import dataclass, replace

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions, Quota, Ranking, SaturationPolicy, Served
from services.optimizer.limits import limits_of
from services.optimizer.problem import (
    Candidate,
    Choice,
    Held,
    Problem,
    ReplicaCase,
    ServerProblem,
    Solution,
    carried_share,
    transition_value,
)

CASE = ReplicaCase("three-parameter", (1.0, 1.0, 1.0), 1, 1, 1, 1, 1, None, None, None, None, Statistic.MEAN)
TYPES = ("A", "B", "C")


def problem_of(seed: int, heterogeneous: bool = False, servers: int = 6, candidates: int = 5) -> Problem:
    """Up to 6 servers with up to 5 candidates: ties, hopeless servers, current allocations, every limit."""
    chance = random.Random(seed)
    made = []
    for index in range(chance.randint(1, servers)):
        name, rate = f"s{index}", float(chance.choice((0, 1, 2, 2, 3, 4, 5, 8)))
        held = None
        if chance.random() < 0.5:
            held = Held(f"acc-{chance.choice(TYPES)}-0", chance.randint(1, 3), float(chance.randint(1, 12)))
        least = chance.choice((0, 1, 1, 2))
        most = chance.choice((None, None, 2, 3))
        most = None if most is None else max(most, least)
        found = []
        for kind, batch in _kinds(chance, candidates):
            max_rate = float(chance.choice((1, 1, 2, 3)))
            needed = rate / max_rate
            for_rate = max(math.ceil(needed), 1 if rate else 0)
            replicas = max(for_rate, least) if most is None else min(max(for_rate, least), most)
            cost = float(chance.randint(1, 5))
            found.append(
                Candidate(
                    server=name,
                    accelerator=kind,
                    type=kind.split("-")[1],
                    accelerator_count=1,
                    units_per_replica=chance.choice((1, 1, 2)),
                    max_batch=batch,
                    max_rate_rps=max_rate,
                    needed_replicas=needed,
                    replicas=replicas,
                    served_share=min(1.0, replicas / needed) if needed else 1.0,
                    cost_per_replica_per_hour=cost,
                    value=transition_value(kind, replicas * cost, held),
                    binding="ttft",
                    case=CASE,
                    region=chance.choice(("north", "south")),
                    power_w=100.0,
                    held=held,
                )
            )
        made.append(
            ServerProblem(
                name,
                chance.randint(1, 3),
                tuple(sorted(found, key=Candidate.rank)),
                held,
                least,
                most,
                rate,
                chance.choice(("", "red")),
            )
        )
    scarce = chance.choice((2, 5, 9, 30))
    problem = Problem(
        servers=tuple(made),
        capacity=None if chance.random() < 0.1 else {t: chance.randint(0, scarce) for t in TYPES},
        budget_per_hour=chance.choice((None, None, None, float(chance.randint(3, 40)))),
        options=OptimizerOptions(
            saturation_policy=chance.choice((SaturationPolicy.NONE, SaturationPolicy.PRIORITY_EXHAUSTIVE)),
            delayed_best_effort=chance.random() < 0.5,
            maximize=chance.choice(list(Served)),
            heterogeneous=heterogeneous,
        ),
        now_s=0.0,
        power_limit_w=chance.choice((None, None, 900.0)),
        quotas=(Quota(name="red", tenant="red", cards=chance.randint(1, 6)),)
        if chance.random() < 0.3
        else (),
    )
    return _in_namespaces(problem, chance) if chance.random() < 0.3 else problem


def _in_namespaces(problem: Problem, chance: random.Random) -> Problem:
    """The problem where candidates count against the quotas of their server's namespace, if it has any."""
    namespaces = ((), ("one",), ("one", "other"))
    return replace(
        problem,
        servers=tuple(
            replace(server, candidates=tuple(replace(c, quotas=quotas) for c in server.candidates))
            for server in problem.servers
            for quotas in [chance.choice(namespaces)]
        ),
        platform_quotas={"one": chance.randint(0, 8), "other": chance.randint(0, 5)},
    )


def _kinds(chance: random.Random, most: int) -> list[tuple[str, int]]:
    """Accelerators with a batch limit; some have two limits, some types two accelerators."""
    every = [(f"acc-{t}-{i}", batch) for t in TYPES for i in (0, 1) for batch in (8, 16)]
    return chance.sample(every, chance.randint(1, most))


@dataclass(frozen=True)
class Optimum:
    """The best lexicographic vector, what each class is served of it, and a solution that has it."""

    vector: tuple[float, ...]
    solution: Solution


def vector_of(problem: Problem, server: ServerProblem, choices: tuple[Choice, ...]) -> tuple[float, ...]:
    """What one server's choices add to every level, larger is better; the last is minus the value."""
    priorities = sorted({s.priority for s in problem.servers})
    share = carried_share(choices) if choices else 0.0
    if problem.options.ranking is Ranking.WEIGHTED:
        value = Solution({server.server: choices}).value if choices else 0.0
        return (server.violation_cost_per_hour * share - value,)
    weight = 1.0
    if problem.options.maximize is Served.DEMAND:
        loads = [s.rate_rps for s in problem.servers if s.rate_rps > 0]
        weight = server.rate_rps or 1e-3 * min(loads, default=1.0)
    served = [weight * (share >= 1.0) * (p == server.priority) for p in priorities]
    carried = [
        server.rate_rps * share * (p == server.priority) * gets_best_effort(problem, p) for p in priorities
    ]
    if problem.options.delayed_best_effort:
        levels = [*served, *carried]
    else:
        levels = [level for pair in zip(served, carried, strict=True) for level in pair]
    return (*levels, -Solution({server.server: choices}).value if choices else 0.0)


def gets_best_effort(problem: Problem, priority: int) -> bool:
    """Whether some server of a priority can be served in part; otherwise only who is served counts."""
    return problem.options.saturation_policy is not SaturationPolicy.NONE or any(
        not c.objectives_met for s in problem.servers if s.priority == priority for c in s.candidates
    )


def options_of(problem: Problem, server: ServerProblem) -> list[tuple[Choice, ...]]:
    """Every way to serve a server, or not to."""
    found: list[tuple[Choice, ...]] = [()]
    partly = problem.options.saturation_policy is not SaturationPolicy.NONE
    for candidate in server.candidates:
        found.append((Choice(candidate, candidate.replicas),))
        if partly:
            least = server.least_replicas(candidate)
            found += [(Choice(candidate, k),) for k in range(least, candidate.replicas)]
    if problem.options.heterogeneous and server.rate_rps > 0:
        best: dict[str, Candidate] = {}
        for candidate in server.candidates:
            known = best.get(candidate.accelerator)
            if candidate.replicas and (known is None or candidate.max_rate_rps > known.max_rate_rps):
                best[candidate.accelerator] = candidate
        chosen = list(best.values())
        for counts in itertools.product(*(range(c.replicas + 1) for c in chosen)):
            parts = tuple(Choice(c, n) for c, n in zip(chosen, counts, strict=True) if n)
            within = server.min_replicas <= sum(counts) <= (server.max_replicas or math.inf)
            if len(parts) > 1 and within and carried_share(parts) >= 1.0:
                found.append(parts)
    return found


def optimum(problem: Problem) -> Optimum:
    """The best solution of all."""
    limits = limits_of(problem)
    levels = 2 * len({s.priority for s in problem.servers}) + 1
    levels = 1 if problem.options.ranking is Ranking.WEIGHTED else levels
    states: dict[tuple[float, ...], tuple[tuple[float, ...], dict[str, tuple[Choice, ...]]]] = {
        (0.0,) * len(limits): ((0.0,) * levels, {})
    }
    for server in problem.servers:
        options = [
            (
                tuple(sum(c.replicas * limit.use(server, c.candidate) for c in choices) for limit in limits),
                vector_of(problem, server, choices),
                choices,
            )
            for choices in options_of(problem, server)
        ]
        following: dict[tuple[float, ...], tuple[tuple[float, ...], dict[str, tuple[Choice, ...]]]] = {}
        for used, (vector, given) in states.items():
            for use, gain, choices in options:
                total = tuple(a + b for a, b in zip(used, use, strict=True))
                if any(t > limit.most for t, limit in zip(total, limits, strict=True)):
                    continue
                # Rounded so that sums of thirds tie where they tie on paper.
                better = tuple(round(a + b, 9) for a, b in zip(vector, gain, strict=True))
                if total not in following or better > following[total][0]:
                    following[total] = (better, {**given, server.server: choices} if choices else given)
        states = following
    vector, given = max(states.values(), key=lambda state: state[0])
    return Optimum(vector, Solution(given))


def total_vector(problem: Problem, solution: Solution) -> tuple[float, ...]:
    """The lexicographic vector of a solution."""
    parts = [vector_of(problem, s, solution.choices.get(s.server, ())) for s in problem.servers]
    return tuple(math.fsum(column) for column in zip(*parts, strict=True))
