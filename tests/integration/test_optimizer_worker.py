"""Heavy solvers in their own process: the same outcome, of the candidates here, and life after death."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

import psutil
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


def stopped(worker: Worker) -> psutil.Process:
    """The process of a worker, after it was made to answer nothing any more."""
    assert worker._pool is not None
    (number,) = worker._pool._processes
    process = psutil.Process(number)
    process.suspend()
    return process


def test_a_process_that_does_not_answer_is_given_up_and_replaced() -> None:
    worker = Worker(grace_s=0.1)
    patient = RemoteSolver(MilpSolver(MilpSettings()), worker)
    problem = problem_of(5)
    expected = patient.solve(problem, None)
    silent = stopped(worker)
    with pytest.raises(TimeoutError):
        patient.solve(problem, 0.1)
    silent.resume()
    silent.wait(10)
    assert patient.solve(problem, None).solution == expected.solution
    worker.close()


def test_a_closed_worker_ends_what_it_is_solving_and_starts_no_other_process() -> None:
    worker = Worker()
    remote = RemoteSolver(MilpSolver(MilpSettings()), worker)
    problem = problem_of(5)
    remote.solve(problem, 10.0)
    silent, raised = stopped(worker), list[BaseException]()

    def ask() -> None:
        try:
            remote.solve(problem, 60.0)
        except BrokenExecutor as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    worker.close()
    silent.resume()
    asking.join(20)
    assert raised
    silent.wait(10)
    assert worker._pool is None


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from brute_force import problem_of
from services.optimizer.solvers.milp import MilpSettings, MilpSolver
from services.optimizer.worker import RemoteSolver, Worker

if __name__ == "__main__":
    worker = Worker()
    RemoteSolver(MilpSolver(MilpSettings()), worker).solve(problem_of(1), 10.0)
    print(*worker._pool._processes, flush=True)
    time.sleep(600)
"""


def test_it_does_not_outlive_a_service_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(program), str(Path(__file__).parents[1] / "builders")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait(60)
    parent.stdout.close()
    child.wait(60)
