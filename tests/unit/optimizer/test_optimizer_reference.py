"""The greedy and the unlimited solver against a reference optimizer's solutions of the same candidates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions, SaturationPolicy
from services.optimizer.problem import Candidate, Problem, ReplicaCase, ServerProblem
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.unlimited import UnlimitedSettings, UnlimitedSolver

# The reference computes costs and values in float32.
RELATIVE = 1e-5

CASE = ReplicaCase("three-parameter", (1.0, 1.0, 1.0), 1, 1, 1, 1, 1, None, None, None, None, Statistic.MEAN)


def lowered(value: Any) -> Any:
    if isinstance(value, dict):
        return {k.lower(): lowered(v) for k, v in value.items()}
    return [lowered(v) for v in value] if isinstance(value, list) else value


def problem_of(folder: Path, candidates: dict[str, dict[str, Any]]) -> Problem:
    system = lowered(json.loads((folder / "input.json").read_text()))["system"]
    accelerators = {a["name"]: a for a in system["acceleratordata"]["accelerators"]}
    counts = {(m["name"], m["acc"]): m.get("acccount") or 1 for m in system["modeldata"]["models"]}
    priorities = {
        c["name"]: c["priority"] if 1 <= c.get("priority", 100) <= 100 else 100
        for c in system["serviceclassdata"]["serviceclasses"]
    }
    servers = []
    for server in system["serverdata"]["servers"]:
        priority = priorities.get(server.get("class"), 100)
        found = tuple(
            Candidate(
                server=server["name"],
                accelerator=name,
                type=accelerators[name]["type"],
                accelerator_count=counts[(server["model"], name)],
                units_per_replica=counts[(server["model"], name)] * accelerators[name].get("multiplicity", 1),
                max_batch=max(1, c["maxBatch"]),
                max_rate_rps=1.0,
                needed_replicas=c["numReplicas"],
                replicas=c["numReplicas"],
                served_share=1.0,
                cost_per_replica_per_hour=c["cost"] / c["numReplicas"] if c["numReplicas"] else 0.0,
                # In float32 as there, so that regrets tie where they tie there.
                value=np.float32(c["value"]),  # type: ignore[arg-type]
                binding="ttft",
                case=CASE,
            )
            for name, c in candidates.get(server["name"], {}).items()
        )
        if found:
            servers.append(ServerProblem(server["name"], priority, found, None, 0, None, 1.0))
    capacity = {c["type"]: c["count"] for c in system["capacitydata"]["count"]}
    return Problem(tuple(servers), capacity, None, OptimizerOptions(), 0.0)


def cases(reference_data: Path) -> list[Path]:
    return sorted(f for f in (reference_data / "optimizer-golden").iterdir() if (f / "meta.json").is_file())


# The reference stumbles over servers that need no replica; they are left out on both sides.
def test_solutions_are_the_references_wherever_it_has_only_one(reference_data: Path) -> None:
    compared = 0
    for folder in cases(reference_data):
        output = json.loads((folder / "output.json").read_text())
        modes = json.loads((folder / "meta.json").read_text())["modes"]
        problem = problem_of(folder, output["candidates"] or {})
        for name, mode in output["modes"].items():
            if modes[name]["distinctSolutions"] != 1 or not problem.servers:
                continue
            options = OptimizerOptions(
                saturation_policy=SaturationPolicy(mode["optimizer"]["saturationPolicy"] or "None"),
                delayed_best_effort=mode["optimizer"]["delayedBestEffort"],
            )
            solver = (
                UnlimitedSolver(UnlimitedSettings())
                if mode["optimizer"]["unlimited"]
                else GreedySolver(GreedySettings())
            )
            solved = Problem(problem.servers, problem.capacity, None, options, 0.0)
            outcome = solver.solve(solved, None)
            ours = {
                server: (c.candidate.accelerator, c.replicas, c.cost_per_hour)
                for server, (c,) in outcome.solution.choices.items()
                if c.replicas
            }
            theirs = {
                server: (a["accelerator"], a["numReplicas"], pytest.approx(a["cost"], rel=RELATIVE))
                for server, a in mode["allocations"].items()
                if a["numReplicas"]
            }
            assert ours == theirs, f"{folder.name} {name}"
            compared += 1
    assert compared > 300
