"""Two formulations of the same choice, one in cvxpy and one in arrays, agree in every level."""

import pytest
from brute_force import problem_of, total_vector

from schemas.plan import SolveStatus
from services.optimizer.limits import overused
from services.optimizer.solvers.milp import MilpSettings, MilpSolver

# Both keep earlier levels to 1e-6 of their largest weight.
LEVEL = 2e-5


def test_the_model_in_cvxpy_and_the_direct_formulation_agree() -> None:
    for seed in range(6):
        problem = problem_of(seed)
        direct = MilpSolver(MilpSettings()).solve(problem, 30.0)
        modelled = MilpSolver(MilpSettings(backend="cvxpy")).solve(problem, 30.0)
        assert modelled.status in (SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE)
        assert not overused(problem, modelled.solution)
        assert total_vector(problem, modelled.solution) == pytest.approx(
            total_vector(problem, direct.solution), abs=LEVEL
        ), seed
        assert modelled.bound == pytest.approx(direct.bound, abs=LEVEL)
