"""Two formulations of the same choice, one in cvxpy and one in arrays, agree in every level."""

from dataclasses import replace

import pytest
from brute_force import TYPES, problem_of, total_vector

from schemas.fleet import OptimizerOptions
from schemas.plan import SolveStatus
from services.optimizer.limits import overused
from services.optimizer.problem import Problem
from services.optimizer.solvers.milp import MilpSettings, MilpSolver

# Both keep earlier levels to 1e-6 of their largest weight.
LEVEL = 2e-5


def check(problem: Problem) -> None:
    """Both prove solutions of the same vector that keep every limit."""
    direct = MilpSolver(MilpSettings()).solve(problem, 30.0)
    modelled = MilpSolver(MilpSettings(backend="cvxpy")).solve(problem, 30.0)
    assert modelled.status in (SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE)
    assert not overused(problem, modelled.solution)
    assert total_vector(problem, modelled.solution) == pytest.approx(
        total_vector(problem, direct.solution), abs=LEVEL
    )
    assert modelled.bound == pytest.approx(direct.bound, abs=LEVEL)


def test_the_model_in_cvxpy_and_the_direct_formulation_agree() -> None:
    for seed in range(6):
        check(problem_of(seed))


def test_they_agree_on_the_least_that_best_effort_may_carry() -> None:
    for seed in range(3):
        problem = problem_of(seed)
        servers = tuple(replace(s, min_served_share=0.6) for s in problem.servers)
        capacity = {kind: 2 + (seed + place) % 4 for place, kind in enumerate(TYPES)}
        check(replace(problem, servers=servers, capacity=capacity, options=OptimizerOptions()))
