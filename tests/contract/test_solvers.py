"""The built-in solvers keep the contract of solvers."""

import pytest
from solver_suite import SolverContract

from services.optimizer.solver import Solver
from services.optimizer.solvers.auto import AutoSettings, AutoSolver
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.lagrangian import LagrangianSettings, LagrangianSolver
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


class TestLagrangian(SolverContract):
    @pytest.fixture
    def solver(self) -> Solver:
        return LagrangianSolver(LagrangianSettings())


class TestAuto(SolverContract):
    @pytest.fixture
    def solver(self) -> Solver:
        return AutoSolver(AutoSettings())
