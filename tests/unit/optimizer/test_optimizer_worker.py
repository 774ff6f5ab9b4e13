"""Heavy solvers in their own process: the same outcome, of the candidates here, and life after death."""

import os
import signal
from collections.abc import Iterator

import pytest
from brute_force import problem_of

from services.optimizer.solvers.milp import MilpSettings, MilpSolver
from services.optimizer.worker import RemoteSolver, Worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_the_outcome_is_that_of_the_solver_and_of_the_candidates_given(worker: Worker) -> None:
    solver = MilpSolver(MilpSettings())
    remote = RemoteSolver(solver, worker)
    assert remote.name == "milp"
    assert remote.capabilities == solver.capabilities
    for seed in range(20):
        problem = problem_of(seed)
        here, there = solver.solve(problem, 10.0), remote.solve(problem, 10.0)
        assert there.solution == here.solution
        assert (there.status, there.objective) == (here.status, here.objective)
        given = {id(c) for s in problem.servers for c in s.candidates}
        assert all(id(c.candidate) in given for cs in there.solution.choices.values() for c in cs)


def test_a_process_that_died_is_replaced(worker: Worker) -> None:
    remote = RemoteSolver(MilpSolver(MilpSettings()), worker)
    problem = problem_of(5)
    expected = remote.solve(problem, 10.0)
    assert worker._pool is not None
    for process in list(worker._pool._processes.values()):
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(10)
    assert remote.solve(problem, 10.0).solution == expected.solution
