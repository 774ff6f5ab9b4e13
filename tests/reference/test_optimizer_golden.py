"""Compat candidates and the greedy modes against recorded runs of the reference optimizer."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions, SaturationPolicy, Served
from schemas.plan import SolveStatus
from services.legacy.form import LegacySystem
from services.legacy.reader import read_system
from services.optimizer.compat import compat_problem, options_of
from services.optimizer.problem import Candidate, Problem, ReplicaCase, ServerProblem, Solution
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.milp import MilpSettings, MilpSolver
from services.optimizer.solvers.unlimited import UnlimitedSettings, UnlimitedSolver
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel

# Costs and values are sums in single precision.
RELATIVE = 1e-5
# One rounding to single precision.
ROUNDED = 6e-8

MODEL = BirthDeathCompatModel()
LAWS = {"three-parameter": ThreeParameterLaw()}


def golden(reference_data: Path) -> Path:
    return reference_data / "optimizer-golden"


@pytest.fixture(scope="module")
def cases(reference_data: Path) -> list[tuple[str, LegacySystem, Problem, dict[str, Any], dict[str, Any]]]:
    """Name, system, its limited problem, recorded output and meta data of every case with candidates."""
    found = []
    for folder in sorted(golden(reference_data).iterdir()):
        if (folder / "meta.json").is_file():
            system = read_system(folder / "input.json")
            problem = compat_problem(system, replace_unlimited(options_of(system), False), MODEL, LAWS)
            output = json.loads((folder / "output.json").read_text())
            found.append(
                (folder.name, system, problem, output, json.loads((folder / "meta.json").read_text()))
            )
    assert len(found) >= 50
    return found


def replace_unlimited(options: OptimizerOptions, unlimited: bool) -> OptimizerOptions:
    return options.model_copy(update={"unlimited": unlimited})


def unlimited_problem(system: LegacySystem, limited: Problem) -> Problem:
    """The problem without limits; sized anew only where a server without load and minimum needs it."""
    options = replace_unlimited(limited.options, True)
    if any(s.rate_per_min == 0 and not s.min_replicas for s in system.servers.values()):
        return compat_problem(system, options, MODEL, LAWS)
    return replace(limited, capacity=None, options=options)


def pairs(
    system: LegacySystem, problem: Problem, output: dict[str, Any]
) -> Iterator[tuple[str, Candidate, dict[str, Any]]]:
    """Every candidate of ours with the recorded one; both sides have the same."""
    ours = {s.server: {c.accelerator: c for c in s.candidates} for s in problem.servers}
    for server, recorded in (output["candidates"] or {}).items():
        theirs = {c["accelerator"]: c for c in recorded.values()}
        assert set(ours.get(server, {})) == set(theirs), server
        for accelerator, one in theirs.items():
            yield server, ours[server][accelerator], one


def test_compat_candidates_are_the_references(cases: list[Any]) -> None:
    compared = 0
    for name, system, limited, output, _ in cases:
        problem = unlimited_problem(system, limited)
        for server, ours, theirs in pairs(system, problem, output):
            compared += 1
            assert ours.replicas == theirs["numReplicas"], f"{name} {server}"
            assert ours.cost_per_hour == pytest.approx(theirs["cost"], rel=RELATIVE)
            assert ours.value == pytest.approx(theirs["value"], rel=RELATIVE, abs=1e-6)
            if not ours.accelerator:
                continue
            assert np.float32(ours.max_rate_rps / 1e3) == np.float32(theirs["maxArrvRatePerReplica"]), name
            assert ours.predicted is not None
            itl, ttft = 1e3 * ours.predicted.itl_s, 1e3 * ours.predicted.ttft_s
            assert ours.max_batch == theirs["maxBatch"], f"{name} {server}"
            assert itl == pytest.approx(theirs["itlAverage"], rel=ROUNDED), f"{name} {server}"
            assert ttft == pytest.approx(theirs["ttftAverage"], rel=ROUNDED), f"{name} {server}"
    assert compared > 8000


def allocations(solution: Solution) -> dict[str, tuple[str, int]]:
    return {name: (c.candidate.accelerator, c.replicas) for name, (c,) in solution.choices.items()}


def solved(problem: Problem) -> Solution:
    if problem.capacity is None:
        return UnlimitedSolver(UnlimitedSettings()).solve(problem, None).solution
    return GreedySolver(GreedySettings(single_precision=True)).solve(problem, None).solution


def test_every_mode_is_the_references_and_does_not_depend_on_the_order_of_the_input(cases: list[Any]) -> None:
    chance = random.Random(1)
    exact = ranged = 0
    for case, system, limited, output, meta in cases:
        unlimited = unlimited_problem(system, limited)
        for name, mode in output["modes"].items():
            asked = mode["optimizer"]
            options = OptimizerOptions(
                unlimited=asked["unlimited"],
                saturation_policy=SaturationPolicy(asked["saturationPolicy"] or "None"),
                delayed_best_effort=asked["delayedBestEffort"],
            )
            problem = replace(unlimited if asked["unlimited"] else limited, options=options)
            solution = solved(problem)
            servers = tuple(
                replace(s, candidates=tuple(chance.sample(s.candidates, len(s.candidates))))
                for s in chance.sample(problem.servers, len(problem.servers))
            )
            assert solved(replace(problem, servers=servers)) == solution, f"{case} {name}"
            known = meta["modes"][name]
            if known["distinctSolutions"] == 1:
                theirs = {n: (a["accelerator"], a["numReplicas"]) for n, a in mode["allocations"].items()}
                assert allocations(solution) == theirs, f"{case} {name}"
                exact += 1
            else:
                least, most = known["costRange"]
                assert least * (1 - RELATIVE) <= solution.cost_per_hour <= most * (1 + RELATIVE), (
                    f"{case} {name}"
                )
                ranged += 1
    assert exact > 350
    assert ranged > 50


def test_the_exact_solver_finds_every_known_optimum_and_proves_it(
    cases: list[Any], reference_data: Path
) -> None:
    compared = 0
    for case, system, limited, _, _ in cases:
        path = golden(reference_data) / case / "oracle_single_limited.json"
        if not path.is_file():
            continue
        oracle = json.loads(path.read_text())
        # The oracle counts servers and, unlike the reference, knows those without load and minimum.
        options = OptimizerOptions(saturation_policy=SaturationPolicy.NONE, maximize=Served.SERVERS)
        unlimited = unlimited_problem(system, limited)
        problem = replace(unlimited, capacity=limited.capacity, options=options)
        outcome = MilpSolver(MilpSettings()).solve(problem, 60.0)
        assert outcome.status is SolveStatus.OPTIMAL, case
        served = {str(c.priority): c.servers_served for c in outcome.classes if c.servers_served}
        assert served == {p: n for p, n in oracle["optByPrio"].items() if n}, case
        # The bound, like the optimum, is of values in single precision.
        value = pytest.approx(oracle["optValue"], rel=RELATIVE, abs=1e-3)
        assert outcome.objective == value, case
        assert outcome.bound == value, case
        compared += 1
    assert compared >= 20


CASE = ReplicaCase("three-parameter", (1.0, 1.0, 1.0), 1, 1, 1, 1, 1, None, None, None, None, Statistic.MEAN)


def from_candidates(system: LegacySystem, candidates: dict[str, dict[str, Any]]) -> Problem:
    """The problem of candidates as they were recorded; costs and values in cents per hour."""
    servers = []
    for name, found in candidates.items():
        server = system.servers[name]
        made = []
        for accelerator, one in found.items():
            profile, unit = system.profiles[server.model, accelerator], system.accelerators[accelerator]
            made.append(
                Candidate(
                    server=name,
                    accelerator=accelerator,
                    type=unit.type,
                    accelerator_count=profile.count,
                    units_per_replica=profile.count * unit.multiplicity,
                    max_batch=max(1, one["maxBatch"]),
                    max_rate_rps=1.0,
                    needed_replicas=one["numReplicas"],
                    replicas=one["numReplicas"],
                    served_share=1.0,
                    cost_per_replica_per_hour=one["cost"] / one["numReplicas"],
                    value=one["value"],
                    binding="",
                    case=CASE,
                )
            )
        priority = system.classes[server.service_class].priority
        servers.append(ServerProblem(name, priority, tuple(made), None, 0, None, 1.0))
    return Problem(tuple(servers), dict(system.capacity), None, OptimizerOptions(), 0.0)


def test_the_older_optimizers_candidates_are_solved_as_it_did_and_better(reference_data: Path) -> None:
    compared = 0
    for folder in sorted(golden(reference_data).glob("full-*")):
        output = json.loads((folder / "output.json").read_text())
        recorded = from_candidates(read_system(folder / "input.json"), output["candidates"])
        for name, mode in output["modes"].items():
            asked = mode["optimizer"]
            if asked["milpSolver"]:
                continue
            options = OptimizerOptions(
                unlimited=asked["unlimited"],
                saturation_policy=SaturationPolicy(asked["saturationPolicy"] or "None"),
                delayed_best_effort=asked["delayedBestEffort"],
            )
            problem = replace(recorded, options=options)
            solution = solved(replace(problem, capacity=None) if asked["unlimited"] else problem)
            assert mode["distinctSolutions"] == 1
            theirs = {n: (a["accelerator"], a["numReplicas"]) for n, a in mode["allocations"].items()}
            assert allocations(solution) == theirs, f"{folder.name} {name}"
            compared += 1
        single = output["modes"]["limited-milp-single"]
        if not single["error"]:
            options = OptimizerOptions(saturation_policy=SaturationPolicy.NONE, maximize=Served.SERVERS)
            outcome = MilpSolver(MilpSettings()).solve(replace(recorded, options=options), 60.0)
            assert not outcome.shortfall
            assert outcome.solution.cost_per_hour <= single["totalCost"] * (1 + RELATIVE)
            compared += 1
    assert compared >= 25
