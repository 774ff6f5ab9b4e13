"""The built-in solvers keep the contract of solvers."""

import pytest
from solver_suite import SolverContract

from services.optimizer.solver import Solver
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.milp import MilpSettings, MilpSolver
from services.optimizer.solvers.unlimited import UnlimitedSettings, UnlimitedSolver


class TestGreedy(SolverContract):
    @pytest.fixture
    def solver(self) -> Solver:
        return GreedySolver(GreedySettings())


class TestUnlimited(SolverContract):
    @pytest.fixture
    def solver(self) -> Solver:
        return UnlimitedSolver(UnlimitedSettings())


class TestMilp(SolverContract):
    @pytest.fixture
    def solver(self) -> Solver:
        return MilpSolver(MilpSettings())
