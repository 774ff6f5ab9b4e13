"""Generated fleets: sized so that most servers need one to three replicas under their nominal load."""

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from schemas.fleet import (
    Accelerator,
    DeclaredCapacity,
    FleetDeclared,
    LawParameters,
    Model,
    ModelProfile,
    Objective,
    OptimizerOptions,
    Server,
    ServiceClass,
    objective_of,
)
from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import ServerModel, Targets
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.simulator.derive import plant_of

_TYPES = {"H100": (1.0, 4.0), "MI300X": (0.9, 3.4), "A100": (1.5, 2.2), "L40S": (2.4, 1.2), "L4": (2.8, 0.8)}
"""Times of an iteration as a multiple of the first's, and cost per hour."""
_CLASSES = {"premium": (1, 3.6, 1.0), "standard": (5, 5.0, 2.0), "batch": (10, 9.0, 6.0)}
"""Priority, objective of the ITL as a multiple of the model's shortest iteration, objective of the TTFT in s."""
_INPUT_TOKENS, _OUTPUT_TOKENS = 512.0, 192.0
_MAX_BATCH = 32
_STARTUP_S = 3.0
_SEED = 20240101


def fleet_of(servers: int, models: int = 10, accelerator_types: int = 4, load: float = 1.0) -> FleetDeclared:
    """A fleet with limited capacity; every model runs on every type, and the loads are 0.4 to 2.6 replicas.

    load: what the loads are multiplied by. Raises ValueError for more types than are known.
    """
    if accelerator_types > len(_TYPES):
        raise ValueError(f"accelerator_types is {accelerator_types}: expected at most {len(_TYPES)}")
    rng = Random(_SEED)
    types = list(_TYPES)[:accelerator_types]
    shortest_s = {f"model-{i}": 0.014 * 1.12 ** (i % 10) for i in range(models)}
    bare = FleetDeclared(
        declared_at_s=0.0,
        revision="benchmark",
        # The time of the machinery: other solvers may take all of their time limit on top.
        optimizer=OptimizerOptions(solver="greedy"),
        accelerators=tuple(Accelerator(name=t, type=t, cost_per_hour=_TYPES[t][1]) for t in types),
        models=tuple(
            Model(
                name=name, profiles=tuple(_profile(types[(i + k) % len(types)], s) for k in range(len(types)))
            )
            for i, (name, s) in enumerate(shortest_s.items())
        ),
        service_classes=tuple(
            ServiceClass(
                name=name,
                priority=priority,
                objectives=tuple(
                    Objective(model=m, itl_s=multiple * s, ttft_s=ttft_s) for m, s in shortest_s.items()
                ),
            )
            for name, (priority, multiple, ttft_s) in _CLASSES.items()
        ),
        servers=tuple(
            Server(
                name=f"server-{i:04d}",
                model=f"model-{i % models}",
                service_class=list(_CLASSES)[i // models % len(_CLASSES)],
                nominal_input_tokens=_INPUT_TOKENS,
                nominal_output_tokens=_OUTPUT_TOKENS,
            )
            for i in range(servers)
        ),
        capacity=tuple(DeclaredCapacity(type=t, count=math.ceil(3.0 * servers / len(types))) for t in types),
    )
    loaded = tuple(
        server.model_copy(update={"nominal_rate_rps": load * rate_rps * rng.uniform(0.4, 2.6)})
        for server, rate_rps in zip(bare.servers, _rates_of_one_replica(bare), strict=True)
    )
    return bare.model_copy(update={"servers": loaded})


def write(fleet: FleetDeclared, folder: Path) -> tuple[Path, Path]:
    """The fleet and a plant that starts with the replicas its load needs, as files: (fleet, plant)."""
    fleet_path, plant_path = folder / "fleet.json", folder / "plant.json"
    fleet_path.write_text(fleet.model_dump_json(exclude={"declared_at_s", "revision"}, exclude_none=True))
    plant = plant_of(fleet)
    needed = dict(zip((s.name for s in fleet.servers), replicas_needed(fleet), strict=True))
    servers = [
        server.model_copy(
            update={
                "initial": [
                    one.model_copy(update={"replicas": needed[server.name]}) for one in server.initial
                ]
            }
        )
        for server in plant.servers
    ]
    plant_path.write_text(plant.model_copy(update={"servers": servers}).model_dump_json(exclude_none=True))
    return fleet_path, plant_path


def replicas_needed(fleet: FleetDeclared) -> list[int]:
    """Replicas on the first profile of its model that carry each server's nominal load with a margin."""
    rates = zip(fleet.servers, _rates_of_one_replica(fleet), strict=True)
    return [
        max(1, math.ceil(1.15 * (server.nominal_rate_rps or 0.0) / rate_rps)) for server, rate_rps in rates
    ]


def _rates_of_one_replica(fleet: FleetDeclared) -> list[float]:
    """Requests per second that one replica of each server's first profile carries within its objectives."""
    law = ThreeParameterLaw()
    first = {m.name: m.profiles[0] for m in fleet.models}
    objectives = [objective_of(fleet, server) for server in fleet.servers]
    declared: list[Any] = [first[server.model].parameters for server in fleet.servers]
    sizing = BirthDeathModel().max_rate(
        ServerModel(
            law,
            np.array([[d.values[name] for name in law.parameter_names] for d in declared]),
            Workload(_INPUT_TOKENS, _OUTPUT_TOKENS),
            Limits(_MAX_BATCH, 128),
        ),
        Targets(
            ttft_s=np.array([o.ttft_s for o in objectives], float),
            itl_s=np.array([o.itl_s for o in objectives], float),
        ),
    )
    if not sizing.feasible.all():
        raise ValueError("a generated server is infeasible on its first accelerator")
    return [float(rate_rps) for rate_rps in sizing.max_rate_rps]


def _profile(accelerator: str, shortest_s: float) -> ModelProfile:
    slower = _TYPES[accelerator][0] * shortest_s
    return ModelProfile(
        accelerator=accelerator,
        max_batch=_MAX_BATCH,
        parameters=LawParameters(
            values={"alpha_s": slower, "beta_s": 2e-3 * slower, "gamma_s": 5e-5 * slower}
        ),
        startup_s=_STARTUP_S,
    )
