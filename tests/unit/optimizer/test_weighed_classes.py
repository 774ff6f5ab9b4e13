"""What is not served weighed against cost, and the least share of best effort, against enumeration."""

import random
from dataclasses import replace

import pytest
from brute_force import optimum, problem_of, total_vector

from schemas.fleet import OptimizerOptions, Ranking, SaturationPolicy
from schemas.plan import SolveStatus
from services.optimizer.limits import overused
from services.optimizer.problem import Problem, carried_share
from services.optimizer.solver import Solver
from services.optimizer.solvers.auto import AutoSettings, AutoSolver
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.lagrangian import LagrangianSettings, LagrangianSolver, value_bound
from services.optimizer.solvers.milp import MilpSettings, MilpSolver

# HiGHS's own tolerances.
CLOSE = 2e-5


def weighed(seed: int, heterogeneous: bool = False) -> Problem:
    """A small problem whose servers are worth from nothing to more than any of them costs."""
    problem, chance = problem_of(seed, heterogeneous, servers=5, candidates=4), random.Random(seed)
    servers = tuple(
        replace(s, violation_cost_per_hour=chance.choice((0.0, 3.0, 10.0, 40.0)) * (s.rate_rps or 1.0))
        for s in problem.servers
    )
    options = problem.options.model_copy(update={"ranking": Ranking.WEIGHTED})
    return replace(problem, servers=servers, options=options)


@pytest.mark.parametrize("seed", range(60))
def test_the_exact_solver_weighs_as_enumeration_does(seed: int) -> None:
    problem = weighed(seed, heterogeneous=seed % 4 == 0)
    best, outcome = optimum(problem), MilpSolver(MilpSettings()).solve(problem, 60.0)
    assert not overused(problem, outcome.solution)
    assert total_vector(problem, outcome.solution) == pytest.approx(best.vector, abs=CLOSE)
    assert outcome.bound == pytest.approx(outcome.objective, abs=CLOSE)


@pytest.mark.parametrize("seed", range(60))
def test_prices_bound_what_weighing_can_gain(seed: int) -> None:
    problem = weighed(seed)
    best, outcome = optimum(problem), LagrangianSolver(LagrangianSettings()).solve(problem, 10.0)
    assert not overused(problem, outcome.solution)
    (gained,) = total_vector(problem, outcome.solution)
    assert gained <= best.vector[0] + CLOSE
    assert outcome.bound is not None
    # Of as much carried, the bound on the value is what is left of the bound on the gain.
    assert outcome.objective - outcome.bound >= best.vector[0] - gained - CLOSE


def test_a_bound_that_is_looked_for_afterwards_counts_the_violations_avoided_too() -> None:
    tight = 0
    for seed in range(20):
        problem = weighed(seed)
        outcome = LagrangianSolver(LagrangianSettings()).solve(problem, 10.0)
        bound = value_bound(problem, outcome.solution, 10.0)
        assert outcome.bound is not None
        assert min(bound, outcome.objective) >= outcome.bound - CLOSE
        tight += bound == pytest.approx(outcome.objective, abs=CLOSE)
    assert tight >= 5


def test_auto_weighs_too_and_who_is_worth_less_than_it_costs_gets_nothing() -> None:
    problem = weighed(5)
    problem = replace(
        problem, servers=tuple(replace(s, violation_cost_per_hour=0.0, current=None) for s in problem.servers)
    )
    cleared = tuple(
        replace(s, candidates=tuple(replace(c, held=None, value=c.cost_per_hour + 1.0) for c in s.candidates))
        for s in problem.servers
    )
    outcome = AutoSolver(AutoSettings()).solve(replace(problem, servers=cleared), 10.0)
    assert not outcome.solution.choices
    assert outcome.status is SolveStatus.INFEASIBLE


def with_least(seed: int, share: float) -> Problem:
    problem = problem_of(seed, servers=5, candidates=4)
    options = problem.options.model_copy(update={"saturation_policy": SaturationPolicy.PRIORITY_ROUND_ROBIN})
    servers = tuple(replace(s, min_served_share=share) for s in problem.servers)
    return replace(problem, servers=servers, options=options)


@pytest.mark.parametrize("seed", range(40))
def test_best_effort_below_the_least_share_is_not_given_and_the_rest_is_optimal(seed: int) -> None:
    problem = with_least(seed, 0.6)
    outcome = MilpSolver(MilpSettings()).solve(problem, 60.0)
    assert total_vector(problem, outcome.solution) == pytest.approx(optimum(problem).vector, abs=CLOSE)


@pytest.mark.parametrize(
    "solver",
    [
        GreedySolver(GreedySettings()),
        LagrangianSolver(LagrangianSettings()),
        MilpSolver(MilpSettings()),
        AutoSolver(AutoSettings()),
    ],
    ids=lambda solver: solver.name,
)
@pytest.mark.parametrize("policy", [p for p in SaturationPolicy if p is not SaturationPolicy.NONE])
def test_no_solver_gives_best_effort_below_the_least_share(solver: Solver, policy: SaturationPolicy) -> None:
    degraded = 0
    for seed in range(20):
        problem = with_least(seed, 0.4)
        options = OptimizerOptions(saturation_policy=policy)
        solution = solver.solve(replace(problem, options=options), 10.0).solution
        for (choice,) in solution.choices.values():
            if choice.replicas < choice.candidate.replicas:
                degraded += 1
                assert carried_share((choice,)) >= 0.4 - 1e-9
    assert degraded
