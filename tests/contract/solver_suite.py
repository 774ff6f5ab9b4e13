"""What every solver must keep. Subclass `SolverContract` and override its `solver` fixture."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions, SaturationPolicy
from schemas.plan import SolveStatus
from services.optimizer.problem import Candidate, Problem, ReplicaCase, ServerProblem, shortfall_of
from services.optimizer.solver import Solver

CASE = ReplicaCase("three-parameter", (1.0, 1.0, 1.0), 1, 1, 1, 1, 1, None, None, None, None, Statistic.MEAN)
TYPES = ("A", "B", "C")


def random_problem(seed: int) -> Problem:
    """Up to 8 servers on up to 3 types of accelerator, with ample to scarce capacity and every policy."""
    chance = random.Random(seed)
    servers = []
    for index in range(chance.randint(1, 8)):
        name, rate = f"server-{index}", chance.uniform(0.5, 20)
        candidates = []
        for type_name in chance.sample(TYPES, chance.randint(1, 3)):
            max_rate = chance.uniform(1, 6)
            needed = rate / max_rate
            replicas = min(int(needed) + 1, chance.choice((2, 50)))
            cost = float(chance.randint(1, 9))
            candidates.append(
                Candidate(
                    server=name,
                    accelerator=f"acc-{type_name}",
                    type=type_name,
                    accelerator_count=1,
                    units_per_replica=chance.choice((1, 1, 2, 4)),
                    max_batch=8,
                    max_rate_rps=max_rate,
                    needed_replicas=needed,
                    replicas=replicas,
                    served_share=min(1.0, replicas / needed),
                    cost_per_replica_per_hour=cost,
                    value=replicas * cost - chance.choice((0.0, 7.0)),
                    binding="ttft",
                    case=CASE,
                )
            )
        candidates.sort(key=Candidate.rank)
        servers.append(ServerProblem(name, chance.randint(1, 3), tuple(candidates), None, 0, None, rate))
    return Problem(
        servers=tuple(servers),
        capacity={t: chance.randint(0, 20) for t in TYPES},
        budget_per_hour=chance.choice((None, None, float(chance.randint(5, 100)))),
        options=OptimizerOptions(
            saturation_policy=chance.choice(list(SaturationPolicy)),
            delayed_best_effort=chance.random() < 0.5,
        ),
        now_s=0.0,
    )


@pytest.mark.parametrize("seed", range(60))
class SolverContract:
    """Behaviour that the core relies on whichever solver is configured."""

    @pytest.fixture
    def solver(self) -> Solver:
        """The solver to test, with its default settings."""
        raise NotImplementedError("override this fixture")

    def test_choices_are_of_the_servers_own_candidates_and_as_declared(
        self, solver: Solver, seed: int
    ) -> None:
        problem = random_problem(seed)
        servers = {s.server: s for s in problem.servers}
        for name, choices in solver.solve(problem, 10.0).solution.choices.items():
            assert choices
            assert all(c.candidate in servers[name].candidates for c in choices)
            assert all(0 <= c.replicas <= c.candidate.replicas for c in choices)
            assert len({c.candidate.accelerator for c in choices}) == len(choices)
            assert solver.capabilities.mixes or len(choices) == 1
            whole = all(c.replicas == c.candidate.replicas for c in choices)
            assert whole or solver.capabilities.partial or solver.capabilities.mixes

    def test_capacity_and_budget_are_never_exceeded(self, solver: Solver, seed: int) -> None:
        problem = random_problem(seed)
        solution = solver.solve(problem, 10.0).solution
        taken: Counter[str] = Counter()
        for choice in (c for choices in solution.choices.values() for c in choices):
            taken[choice.candidate.type] += choice.cards
        if solver.capabilities.capacity:
            assert problem.capacity is not None
            assert all(cards <= problem.capacity.get(name, 0) for name, cards in taken.items())
        if solver.capabilities.budget and problem.budget_per_hour is not None:
            assert solution.cost_per_hour <= problem.budget_per_hour * (1 + 1e-6)

    def test_the_order_of_the_input_does_not_matter(self, solver: Solver, seed: int) -> None:
        problem = random_problem(seed)
        chance = random.Random(seed)
        servers = [
            replace(s, candidates=tuple(chance.sample(s.candidates, len(s.candidates))))
            for s in chance.sample(problem.servers, len(problem.servers))
        ]
        one, other = solver.solve(problem, 10.0), solver.solve(replace(problem, servers=tuple(servers)), 10.0)
        assert one.solution == other.solution
        assert one.status is other.status

    def test_the_outcome_describes_its_solution(self, solver: Solver, seed: int) -> None:
        problem = random_problem(seed)
        outcome = solver.solve(problem, 10.0)
        assert outcome.objective == pytest.approx(outcome.solution.value, rel=1e-9, abs=1e-9)
        assert outcome.bound is None or outcome.bound <= outcome.objective + 1e-6
        assert {s.server for s in outcome.shortfall} == {
            s.server for s in shortfall_of(problem, outcome.solution)
        }
        assert all(s.missing_replicas > 0 for s in outcome.shortfall)

    def test_nothing_to_solve_is_solved(self, solver: Solver, seed: int) -> None:
        outcome = solver.solve(replace(random_problem(seed), servers=()), 10.0)
        assert outcome.status is SolveStatus.OPTIMAL
        assert not outcome.solution.choices
