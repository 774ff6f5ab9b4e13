"""Generated problems for solvers: many servers, limited accelerators, and candidates of a plausible shape."""

import math
from collections import Counter
from random import Random

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions
from services.optimizer.problem import (
    Candidate,
    Held,
    Problem,
    ReplicaCase,
    ServerProblem,
    transition_value,
)

# Cards by type: requests per second of a replica as a multiple, and cost per card and hour.
_TYPES = {
    "L4": (0.4, 0.8),
    "L40S": (0.8, 1.3),
    "A10": (0.5, 0.9),
    "A100": (2.0, 2.6),
    "H100": (4.0, 4.4),
    "H200": (5.0, 5.2),
    "MI210": (1.4, 1.7),
    "MI250": (2.2, 2.4),
    "MI300X": (4.6, 4.1),
    "G2": (1.6, 1.5),
}
_UNITS = (1, 2, 4)
_CASE = ReplicaCase("three-parameter", (1.0,) * 3, 1, 1, 1, 1, 1, None, None, None, None, Statistic.MEAN)


def limited_problem(
    servers: int,
    tightness: float,
    accelerators: int = 20,
    seed: int = 1,
    options: OptimizerOptions | None = None,
) -> Problem:
    """Servers of three classes; each type has `tightness` of the cards that the cheapest choices would take."""
    rng = Random(seed)
    kinds = [(t, u) for u in _UNITS for t in _TYPES][:accelerators]
    speeds = [rng.uniform(0.3, 3.0) for _ in range(12)]
    made = []
    for index in range(servers):
        name, rate = f"server-{index:05d}", rng.uniform(0.5, 20.0)
        model, strict = rng.choice(speeds), rng.choice((0.6, 0.8, 1.0))
        held = None
        if rng.random() < 0.5:
            held_type, held_units = rng.choice(kinds)
            replicas = rng.randint(1, 4)
            held = Held(f"{held_units}x{held_type}", replicas, replicas * held_units * _TYPES[held_type][1])
        found = []
        for type_name, units in kinds:
            speed, cost = _TYPES[type_name]
            if speed * units * strict < 0.35 * model:
                continue
            max_rate = strict * speed * units**0.9 / model * rng.uniform(0.85, 1.15)
            needed = rate / max_rate
            replicas = max(1, math.ceil(needed))
            per_replica = units * cost
            found.append(
                Candidate(
                    server=name,
                    accelerator=f"{units}x{type_name}",
                    type=type_name,
                    accelerator_count=1,
                    units_per_replica=units,
                    max_batch=32,
                    max_rate_rps=max_rate,
                    needed_replicas=needed,
                    replicas=replicas,
                    served_share=1.0,
                    cost_per_replica_per_hour=per_replica,
                    value=transition_value(f"{units}x{type_name}", replicas * per_replica, held),
                    binding="itl",
                    case=_CASE,
                    held=held,
                )
            )
        ranked = tuple(sorted(found, key=Candidate.rank))
        made.append(ServerProblem(name, rng.choice((1, 5, 10)), ranked, held, 1, None, rate))
    wanted: Counter[str] = Counter()
    for server in made:
        best = server.candidates[0]
        wanted[best.type] += best.replicas * best.units_per_replica
    total = sum(wanted.values()) / len(_TYPES)
    capacity = {t: int(tightness * (0.5 * wanted[t] + 0.5 * total)) for t in _TYPES}
    return Problem(tuple(made), capacity, None, options or OptimizerOptions(), 0.0)
