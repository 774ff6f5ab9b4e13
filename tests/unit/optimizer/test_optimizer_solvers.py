"""Solvers against enumeration, and the order of priorities."""

import itertools
import random
from dataclasses import replace

import pytest

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions, SaturationPolicy
from schemas.plan import SolveStatus
from services.optimizer.problem import Candidate, Choice, Problem, ReplicaCase, ServerProblem, Solution
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.unlimited import UnlimitedSettings, UnlimitedSolver

CASE = ReplicaCase("three-parameter", (1.0, 1.0, 1.0), 1, 1, 1, 1, 1, None, None, None, None, Statistic.MEAN)
GREEDY = GreedySolver(GreedySettings())
UNLIMITED = UnlimitedSolver(UnlimitedSettings())


def candidate(server: str, type_name: str, replicas: int, cost: float, units: int = 1) -> Candidate:
    return Candidate(
        server=server,
        accelerator=f"on-{type_name}",
        type=type_name,
        accelerator_count=1,
        units_per_replica=units,
        max_batch=8,
        max_rate_rps=1.0,
        needed_replicas=float(replicas),
        replicas=replicas,
        served_share=1.0,
        cost_per_replica_per_hour=cost,
        value=replicas * cost,
        binding="ttft",
        case=CASE,
    )


def problem(*servers: tuple[int, list[Candidate]], budget: float | None = None, **capacity: int) -> Problem:
    return Problem(
        servers=tuple(
            ServerProblem(c[0].server, priority, tuple(sorted(c, key=Candidate.rank)), None, 0, None, 1.0)
            for priority, c in servers
        ),
        capacity=capacity or None,
        budget_per_hour=budget,
        options=OptimizerOptions(),
        now_s=0.0,
    )


def small_random_problem(seed: int) -> Problem:
    chance = random.Random(seed)
    servers = [
        (
            chance.randint(1, 3),
            [
                candidate(f"s{i}", t, chance.randint(1, 6), chance.randint(1, 9), chance.choice((1, 2)))
                for t in chance.sample("ABC", chance.randint(1, 3))
            ],
        )
        for i in range(chance.randint(1, 5))
    ]
    return problem(*servers, **{t: chance.randint(0, 15) for t in "ABC"})


def fits(choices: tuple[Choice, ...], capacity: dict[str, int]) -> bool:
    return all(
        sum(c.cards for c in choices if c.candidate.type == t) <= capacity.get(t, 0)
        for t in {c.candidate.type for c in choices}
    )


def enumerated_optimum(asked: Problem) -> float | None:
    """The least value of a full allocation of every server within capacity, or none."""
    values = [
        sum(c.value for c in choices)
        for choices in itertools.product(
            *([Choice(c, c.replicas) for c in s.candidates] for s in asked.servers)
        )
        if asked.capacity is None or fits(choices, dict(asked.capacity))
    ]
    return min(values, default=None)


def given(solution: Solution) -> dict[str, tuple[str, int]]:
    return {name: (c.candidate.type, c.replicas) for name, (c,) in solution.choices.items()}


@pytest.mark.parametrize("seed", range(50))
def test_unlimited_is_the_enumerated_optimum(seed: int) -> None:
    asked = replace(small_random_problem(seed), capacity=None)
    outcome = UNLIMITED.solve(asked, None)
    assert outcome.objective == pytest.approx(enumerated_optimum(asked))
    assert outcome.status is SolveStatus.OPTIMAL


@pytest.mark.parametrize("seed", range(200))
def test_greedy_is_between_its_bound_and_no_better_than_the_enumerated_optimum(seed: int) -> None:
    asked = small_random_problem(seed)
    outcome, best = GREEDY.solve(asked, None), enumerated_optimum(asked)
    if outcome.bound is not None:
        assert best is not None
        assert outcome.bound <= best + 1e-9
        assert outcome.objective >= best - 1e-9
    if outcome.status is SolveStatus.OPTIMAL:
        assert outcome.objective == pytest.approx(best)
    if best is None:
        assert outcome.shortfall


@pytest.mark.parametrize("policy", list(SaturationPolicy))
@pytest.mark.parametrize("seed", range(50))
def test_a_more_important_class_gets_what_it_would_get_alone(seed: int, policy: SaturationPolicy) -> None:
    asked = replace(small_random_problem(seed), options=OptimizerOptions(saturation_policy=policy))
    everyone = given(GREEDY.solve(asked, None).solution)
    for priority in (1, 2):
        upper = replace(asked, servers=tuple(s for s in asked.servers if s.priority <= priority))
        alone = given(GREEDY.solve(upper, None).solution)
        assert alone == {s.server: everyone[s.server] for s in upper.servers if s.server in everyone}


def test_who_has_most_to_lose_chooses_first() -> None:
    asked = problem(
        (1, [candidate("a", "A", 2, 1.0), candidate("a", "B", 2, 2.0)]),
        (1, [candidate("b", "A", 2, 1.0), candidate("b", "B", 2, 9.0)]),
        A=2,
        B=2,
    )
    assert given(GREEDY.solve(asked, None).solution) == {"a": ("B", 2), "b": ("A", 2)}


def test_a_tie_goes_to_the_first_name() -> None:
    asked = problem((1, [candidate("b", "A", 2, 1.0)]), (1, [candidate("a", "A", 2, 1.0)]), A=2)
    asked = replace(asked, options=OptimizerOptions(saturation_policy=SaturationPolicy.NONE))
    assert given(GREEDY.solve(asked, None).solution) == {"a": ("A", 2)}


def scarce(policy: SaturationPolicy, delayed: bool = False) -> dict[str, tuple[str, int]]:
    """5 cards for two servers that need 6 each and one of a less important class that needs 3."""
    asked = problem(
        (1, [candidate("a", "A", 6, 2.0)]),
        (1, [candidate("b", "A", 6, 1.0)]),
        (2, [candidate("c", "A", 3, 1.0)]),
        A=5,
    )
    options = OptimizerOptions(saturation_policy=policy, delayed_best_effort=delayed)
    return given(GREEDY.solve(replace(asked, options=options), None).solution)


def test_each_saturation_policy_shares_what_is_left_in_its_own_way() -> None:
    assert scarce(SaturationPolicy.NONE) == {"c": ("A", 3)}
    assert scarce(SaturationPolicy.PRIORITY_EXHAUSTIVE) == {"a": ("A", 5)}
    assert scarce(SaturationPolicy.PRIORITY_ROUND_ROBIN) == {"a": ("A", 3), "b": ("A", 2)}
    assert scarce(SaturationPolicy.ROUND_ROBIN) == {"a": ("A", 3), "b": ("A", 2)}


def test_delayed_best_effort_comes_after_the_last_class() -> None:
    assert scarce(SaturationPolicy.PRIORITY_EXHAUSTIVE, delayed=True) == {"a": ("A", 2), "c": ("A", 3)}
    assert scarce(SaturationPolicy.ROUND_ROBIN, delayed=True) == {
        "a": ("A", 1),
        "b": ("A", 1),
        "c": ("A", 3),
    }


def test_delayed_round_robin_goes_across_classes_and_the_priority_one_class_by_class() -> None:
    asked = problem(
        (1, [candidate("a", "A", 9, 1.0)]),
        (1, [candidate("b", "A", 9, 1.0)]),
        (2, [candidate("c", "A", 9, 1.0)]),
        A=6,
    )

    def solved(policy: SaturationPolicy) -> dict[str, tuple[str, int]]:
        options = OptimizerOptions(saturation_policy=policy, delayed_best_effort=True)
        return given(GREEDY.solve(replace(asked, options=options), None).solution)

    assert solved(SaturationPolicy.ROUND_ROBIN) == {"a": ("A", 2), "b": ("A", 2), "c": ("A", 2)}
    assert solved(SaturationPolicy.PRIORITY_ROUND_ROBIN) == {"a": ("A", 3), "b": ("A", 3)}


def test_cost_and_value_scale_with_the_replicas_given() -> None:
    outcome = GREEDY.solve(problem((1, [candidate("a", "A", 4, 3.0)]), A=3), None)
    assert outcome.solution.cost_per_hour == pytest.approx(9.0)
    assert outcome.objective == pytest.approx(9.0)
    assert outcome.bound is None
    (short,) = outcome.shortfall
    assert (short.server, short.missing_replicas, short.accelerator) == ("a", 1, "on-A")


def test_the_budget_limits_as_cards_do() -> None:
    asked = problem((1, [candidate("a", "A", 4, 3.0)]), (2, [candidate("b", "A", 1, 3.0)]), budget=10.0, A=9)
    assert given(GREEDY.solve(asked, None).solution) == {"a": ("A", 3)}


def test_nothing_that_fits_is_infeasible() -> None:
    outcome = GREEDY.solve(problem((1, [candidate("a", "A", 4, 3.0)]), A=0), None)
    assert outcome.status is SolveStatus.INFEASIBLE
    assert outcome.shortfall[0].missing_replicas == 4


def test_a_choice_that_serves_less_is_taken_only_when_no_full_one_fits() -> None:
    part = replace(candidate("a", "A", 2, 1.0), served_share=0.5, needed_replicas=4.0)
    whole = candidate("a", "B", 2, 9.0)
    assert given(GREEDY.solve(problem((1, [part, whole]), A=9, B=9), None).solution) == {"a": ("B", 2)}
    assert given(UNLIMITED.solve(problem((1, [part, whole])), None).solution) == {"a": ("B", 2)}
    outcome = GREEDY.solve(problem((1, [part, whole]), A=9, B=1), None)
    assert given(outcome.solution) == {"a": ("A", 2)}
    assert outcome.shortfall[0].missing_replicas == 2
