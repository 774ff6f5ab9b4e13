"""The solvers that promise a bound: it holds against enumeration, and the gap is the true one."""

from dataclasses import replace

import pytest
from brute_force import TYPES, Optimum, optimum, options_of, problem_of, total_vector, vector_of

from schemas.fleet import OptimizerOptions, SaturationPolicy, Served
from schemas.plan import SolveStatus
from services.optimizer.limits import limits_of, overused
from services.optimizer.problem import Problem, Solution, SolveOutcome
from services.optimizer.solver import Solver
from services.optimizer.solvers.auto import AutoSettings, AutoSolver
from services.optimizer.solvers.lagrangian import LagrangianSettings, LagrangianSolver

SEEDS = 500
# A level may lose 1e-6 of its largest weight to a later one, which HiGHS's own tolerances make necessary.
LEVEL = 2e-5


def least_value(problem: Problem, at_least: tuple[float, ...]) -> float:
    """The least value of all solutions that reach every level as far as given, by enumeration."""
    limits, levels = limits_of(problem), len(at_least)
    states: dict[tuple[float, ...], float] = {(0.0,) * (len(limits) + levels): 0.0}
    for server in problem.servers:
        options = []
        for choices in options_of(problem, server):
            use = tuple(sum(c.replicas * li.use(server, c.candidate) for c in choices) for li in limits)
            *gain, value = vector_of(problem, server, choices)
            options.append((use + tuple(gain), -value))
        following: dict[tuple[float, ...], float] = {}
        for total, value in states.items():
            for change, more in options:
                key = tuple(round(a + b, 9) for a, b in zip(total, change, strict=True))
                if any(k > limit.most for k, limit in zip(key, limits, strict=False)):
                    continue
                following[key] = min(following.get(key, float("inf")), value + more)
        states = following
    return min(
        value
        for key, value in states.items()
        if all(k >= a - LEVEL for k, a in zip(key[len(limits) :], at_least, strict=True))
    )


def check_bounds(problem: Problem, outcome: SolveOutcome, best: Optimum) -> None:
    assert not overused(problem, outcome.solution)
    reached = total_vector(problem, outcome.solution)
    assert outcome.bound is not None
    assert outcome.bound <= least_value(problem, reached[:-1]) + LEVEL
    assert outcome.objective == pytest.approx(outcome.solution.value, abs=1e-9)
    assert [round(x, 4) for x in reached] <= [round(x + LEVEL, 4) for x in best.vector]
    if outcome.classes:
        first = outcome.classes[0]
        counted = problem.options.maximize is Served.SERVERS
        assert first.bound is not None
        # A server without load counts a thousandth of the smallest load.
        most = best.vector[0] - (0 if counted else 0.02)
        assert first.bound >= most - LEVEL


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_bounds_hold_for_every_solution_of_the_same_service(first: int) -> None:
    solver = LagrangianSolver(LagrangianSettings())
    for seed in range(first, first + 50):
        problem = problem_of(seed, servers=5, candidates=4)
        check_bounds(problem, solver.solve(problem, 10.0), optimum(problem))


def test_the_prices_of_cards_are_those_that_prove_the_bound() -> None:
    """Whoever pays for cards pays at least the bound: Σ_s min_j (value + price · cards) − price · capacity.

    So one more card of a type lowers no optimum by more than its price below the bound.
    """
    solver, priced = LagrangianSolver(LagrangianSettings()), 0
    for seed in range(150):
        problem = replace(problem_of(seed), budget_per_hour=None, power_limit_w=None, quotas=())
        problem = replace(problem, platform_quotas={}, options=OptimizerOptions())
        outcome = solver.solve(problem, 10.0)
        if problem.capacity is None or outcome.shortfall:
            continue
        prices = {p.type: p.cost_per_hour for p in outcome.shadow_prices}
        paid = sum(
            min(
                c.value + prices[c.type] * c.replicas * c.units_per_replica
                for c in s.candidates
                if c.objectives_met
            )
            for s in problem.servers
        ) - sum(price * problem.capacity.get(name, 0) for name, price in prices.items())
        assert outcome.bound == pytest.approx(min(paid, outcome.objective), abs=LEVEL)
        priced += any(prices.values())
    assert priced >= 5


def test_auto_finds_the_optimum_of_small_problems() -> None:
    solver = AutoSolver(AutoSettings(gap_share=0.0))
    for seed in range(80):
        problem = problem_of(seed, heterogeneous=seed % 4 == 0, servers=4, candidates=4)
        outcome, best = solver.solve(problem, 30.0), optimum(problem)
        assert total_vector(problem, outcome.solution) == pytest.approx(best.vector, abs=LEVEL), seed


@pytest.mark.parametrize(
    "solver", [LagrangianSolver(LagrangianSettings()), AutoSolver(AutoSettings())], ids=lambda s: s.name
)
def test_what_is_called_optimal_is_the_optimum_in_best_effort_too(solver: Solver) -> None:
    # Among them two in which as many can be served and at a lower value, while a class carries less.
    proven = 0
    for seed in (*range(2055, 2065), *range(2190, 2200)):
        problem = replace(problem_of(seed, candidates=4), quotas=(), platform_quotas={})
        options = problem.options.model_copy(
            update={"saturation_policy": SaturationPolicy.PRIORITY_EXHAUSTIVE}
        )
        capacity = {kind: 1 + (seed + place) % 4 for place, kind in enumerate(TYPES)}
        problem = replace(problem, capacity=capacity, options=options)
        outcome = solver.solve(problem, 5.0)
        if outcome.status is SolveStatus.OPTIMAL:
            vector = total_vector(problem, outcome.solution)
            assert vector == pytest.approx(optimum(problem).vector, abs=1e-4), seed
            proven += 1
    assert proven


@pytest.mark.parametrize(
    "solver", [LagrangianSolver(LagrangianSettings()), AutoSolver(AutoSettings())], ids=lambda s: s.name
)
def test_at_the_time_limit_there_is_a_solution_with_a_bound(solver: Solver) -> None:
    problem = problem_of(11)
    capacity = dict.fromkeys(("A", "B", "C"), 4)
    problem = replace(problem, capacity=capacity, budget_per_hour=None, quotas=(), power_limit_w=None)
    outcome = solver.solve(problem, 1e-6)
    assert outcome.status in (SolveStatus.TIME_LIMIT, SolveStatus.FEASIBLE, SolveStatus.OPTIMAL)
    assert outcome.solution != Solution({})
    assert outcome.bound is not None
    assert outcome.bound <= outcome.objective
