"""Start-up times from creation to readiness, learned by model and accelerator."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from schemas.telemetry import StartupTime
from services.collector.source import ReplicaStatus

LONGEST_S = 604_800.0


@dataclass(frozen=True, slots=True)
class Reservoir:
    """The newest start-ups of one model on one accelerator, in seconds.

    Every replica that became ready up to `learned_to_s` has been taken in, so none is taken twice.
    """

    model: str
    accelerator: str
    learned_to_s: float
    samples_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StartupTimes:
    """What has been learned, by (model, accelerator)."""

    reservoirs: Mapping[tuple[str, str], Reservoir] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Saved:
    reservoirs: tuple[Reservoir, ...]
    version: Literal[1] = 1


_SAVED = TypeAdapter(_Saved)


def learn(
    times: StartupTimes, seen: Iterable[tuple[str, ReplicaStatus]], now_s: float, most: int
) -> StartupTimes:
    """Take in every replica that became ready since the last call.

    Parameters: seen, all replicas of one poll, each with its model; most, start-ups kept of each model and
    accelerator, the newest. Replicas without both times, not ready after they were made (found running, they
    tell nothing of a start), or ready only after `now_s` are left out.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for model, one in seen:
        if one.created_at_s is None or one.ready_at_s is None or one.ready_at_s > now_s:
            continue
        key = (model, one.accelerator)
        known = times.reservoirs.get(key)
        duration_s = one.ready_at_s - one.created_at_s
        if 0 < duration_s <= LONGEST_S and one.ready_at_s > (known.learned_to_s if known else -inf):
            found.setdefault(key, []).append((one.ready_at_s, duration_s))
    if not found:
        return times
    reservoirs = dict(times.reservoirs)
    for key, starts in found.items():
        starts.sort()
        before = reservoirs[key].samples_s if key in reservoirs else ()
        samples_s = (*before, *(duration_s for _, duration_s in starts))[-most:]
        reservoirs[key] = Reservoir(*key, starts[-1][0], samples_s)
    return StartupTimes(reservoirs)


def learned(times: StartupTimes, model: str) -> tuple[StartupTime, ...]:
    """The learned start-up times of one model, an entry for each accelerator."""
    entries = []
    for (of, accelerator), reservoir in sorted(times.reservoirs.items()):
        if of == model:
            p50_s, p95_s = np.quantile(reservoir.samples_s, (0.5, 0.95)).tolist()
            # An accelerator's name comes from outside and may fit no contract.
            with suppress(ValidationError):
                entries.append(
                    StartupTime(
                        accelerator=accelerator, p50_s=p50_s, p95_s=p95_s, samples=len(reservoir.samples_s)
                    )
                )
    return tuple(entries)


def dump(times: StartupTimes) -> bytes:
    """What was learned, as JSON."""
    return _SAVED.dump_json(_Saved(tuple(one for _, one in sorted(times.reservoirs.items()))))


def load(raw: bytes) -> StartupTimes:
    """What `dump` wrote; raises ValueError for anything else."""
    saved = _SAVED.validate_json(raw)
    return StartupTimes({(one.model, one.accelerator): one for one in saved.reservoirs})
