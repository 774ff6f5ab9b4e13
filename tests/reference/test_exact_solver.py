"""The exact solver against enumeration, in every level of what matters."""

from dataclasses import replace

import pytest
from brute_force import optimum, problem_of, total_vector

from schemas.fleet import OptimizerOptions, Served
from schemas.plan import SolveStatus
from services.optimizer.limits import overused
from services.optimizer.problem import Problem
from services.optimizer.solvers.milp import MilpSettings, MilpSolver

SINGLE, MIXED = 350, 150
# A level may lose 1e-6 of its largest weight to a later one, which HiGHS's own tolerances make necessary.
LEVEL = 2e-5


def check(problem: Problem) -> None:
    """The solution has the best vector, keeps every limit, and its bounds hold and are met."""
    best = optimum(problem)
    outcome = MilpSolver(MilpSettings()).solve(problem, 60.0)
    assert total_vector(problem, outcome.solution) == pytest.approx(best.vector, abs=LEVEL)
    assert not overused(problem, outcome.solution)
    assert outcome.status in (SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE)
    assert outcome.bound == pytest.approx(-best.vector[-1], abs=LEVEL)
    assert outcome.objective == pytest.approx(outcome.solution.value, abs=1e-9)
    for one in outcome.classes:
        counted = problem.options.maximize is Served.SERVERS
        reached = one.servers_served if counted else one.demand_served_rps
        # A server without load counts a thousandth of the smallest load.
        assert one.bound == pytest.approx(reached, abs=0.02)


@pytest.mark.parametrize("first", range(0, SINGLE, 50))
def test_it_equals_enumeration_in_every_level(first: int) -> None:
    for seed in range(first, first + 50):
        check(problem_of(seed))


@pytest.mark.parametrize("first", range(0, MIXED, 50))
def test_it_equals_enumeration_with_mixes_of_accelerators(first: int) -> None:
    mixes = 0
    for seed in range(first, first + 50):
        problem = problem_of(seed, heterogeneous=True, servers=4, candidates=4)
        check(problem)
        mixes += any(len(c) > 1 for c in optimum(problem).solution.choices.values())
    assert mixes


def test_without_time_it_returns_what_it_began_with_and_says_so() -> None:
    problem = problem_of(3)
    assert problem.capacity is not None
    tight = replace(problem, capacity=dict.fromkeys(problem.capacity, 3), options=OptimizerOptions())
    outcome = MilpSolver(MilpSettings()).solve(tight, 1e-9)
    assert outcome.status is SolveStatus.TIME_LIMIT
    assert outcome.solution.choices
    assert not overused(tight, outcome.solution)
