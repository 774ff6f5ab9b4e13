"""A small system in the legacy form, and ways to break it."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

BIG = 10**400


def system() -> dict[str, Any]:
    """Two accelerators, one model, two classes and two servers, all of it in order."""
    parameters = {"alpha": 20.0, "beta": 0.05, "gamma": 0.001}
    load = {"arrivalRate": 120, "avgInTokens": 128, "avgOutTokens": 512}
    return {
        "system": {
            "acceleratorData": {
                "accelerators": [
                    {"name": "A", "type": "TA", "multiplicity": 1, "cost": 10.0},
                    {"name": "B", "type": "TB", "multiplicity": 2, "cost": 25.0},
                ]
            },
            "modelData": {
                "models": [
                    {"name": "m", "acc": acc, "accCount": 1, "maxBatchSize": 16, "atTokens": 512}
                    | {"perfParms": dict(parameters)}
                    for acc in ("A", "B")
                ]
            },
            "serviceClassData": {
                "serviceClasses": [
                    {
                        "name": name,
                        "priority": priority,
                        "modelTargets": [{"model": "m", "slo-itl": 60, "slo-ttft": 1000}],
                    }
                    for name, priority in (("Premium", 1), ("Free", 5))
                ]
            },
            "serverData": {
                "servers": [
                    {
                        "name": name,
                        "class": service_class,
                        "model": "m",
                        "maxQueueSize": 20,
                        "currentAlloc": {"load": dict(load)},
                    }
                    for name, service_class in (("one", "Premium"), ("two", "Free"))
                ]
            },
            "optimizerData": {"optimizer": {"unlimited": False, "saturationPolicy": "None"}},
            "capacityData": {"count": [{"type": "TA", "count": 50}, {"type": "TB", "count": 50}]},
        }
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


WRONG: dict[type, tuple[Any, ...]] = {
    str: (5, True, [], {}, "", "a\nb", "x" * 300),
    int: ("12", True, [], {}, 1.5, -3, BIG, 10**9),
    float: ("12", True, [], {}, float("nan"), float("inf"), -1.0, 1e300),
    bool: ("yes", 1, [], {}),
    list: ({}, "list", 3, [5], [None], ["x"]),
    dict: ([], "object", 3),
}
# What the legacy form allows there, with a warning or without one.
ALLOWED = ("saturationPolicy", "class", "priority", "arrivalRate", "multiplicity")
# Whole numbers in the small system, and yet any number is in order there.
FRACTIONS = ("slo-itl", "slo-ttft", "avgInTokens", "avgOutTokens")


def broken(count: int, seed: int = 7) -> Iterator[tuple[str, str]]:
    """So many texts of broken files, each with the last key of the path where it is broken."""
    chance = random.Random(seed)
    every = [
        (path, wrong)
        for path in places(system())
        for wrong in WRONG[type(_at(system(), path))]
        if isinstance(path[-1], str)
        and path[-1] not in ALLOWED
        and not (path[-1] in FRACTIONS and wrong in (1.5, 10**9))
    ]
    chance.shuffle(every)
    for path, wrong in every[:count]:
        changed = copy.deepcopy(system())
        _at(changed, path[:-1])[path[-1]] = wrong
        yield json.dumps(changed), str(path[-1])


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
