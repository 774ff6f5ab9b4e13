"""Whose counts make a server's window, and how each replica counts.

settled   ready before the window began; when only a share of them reported, their sum is divided by it
new       became ready within the window; counts from zero, unscaled, and is flagged as warming up
leaving   drains or is gone from the inventory; what it still did counts, unscaled
unknown   seen for the first time but not known to be new; gives a baseline only
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from schemas.telemetry import TelemetryObserved
from services.collector.deltas import Delta, delta
from services.collector.settings import CollectorSettings
from services.collector.source import (
    GatewayReading,
    ReplicaReading,
    ReplicaState,
    ReplicaStatus,
    ServerInventory,
)


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """Where a server's next window goes on: the newest reading of each replica and of the gateway.

    `recorded_to_s` is the time up to which counts have been turned into windows, `window_end_s` the end of
    the last window of whatever quality, `window` that window: a record is saved before its window is published,
    so whoever goes on from it publishes what may not have been.
    """

    recorded_to_s: float
    window_end_s: float
    epoch: str | None = None
    replicas: dict[str, ReplicaReading] = field(default_factory=dict)
    gateway: GatewayReading | None = None
    window: TelemetryObserved | None = None
    version: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class ServerView:
    """Everything that one poll says of one server."""

    server: str
    model: str
    replicas: Mapping[str, ReplicaReading] = field(default_factory=dict)
    gateway: GatewayReading | None = None
    inventory: ServerInventory | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The deltas of a window, apart from what they add up to."""

    start_s: float
    settled: tuple[Delta, ...]
    others: tuple[Delta, ...]
    expected: frozenset[str]
    share: float

    @property
    def all(self) -> tuple[Delta, ...]:
        return self.settled + self.others

    def rate(self, count: Callable[[Delta], float | None]) -> float | None:
        """Counts per second of all replicas; None when one has no count, or the sum would be too low."""
        rates = [None if (n := count(one)) is None else n / one.span_s for one in self.all]
        return self._scaled(rates[: len(self.settled)], rates[len(self.settled) :])

    def gauge(self, newer: Mapping[str, ReplicaReading], name: str) -> float | None:
        """The sum of a gauge over all replicas, those included that have no window yet."""
        reported = {one.reading.replica for one in self.settled}
        settled = [getattr(one.reading, name) for one in self.settled]
        return self._scaled(
            settled,
            [getattr(newer[key], name) for key in newer.keys() - reported - self.expected],
        )

    def _scaled(self, settled: Sequence[float | None], others: Sequence[float | None]) -> float | None:
        known, more = [v for v in settled if v is not None], [v for v in others if v is not None]
        if len(known) + len(more) < len(settled) + len(others) or not (settled or others):
            return None
        return sum(known) / (self.share or 1.0) + sum(more)


def measure(
    record: ServerRecord,
    newer: Mapping[str, ReplicaReading],
    inventory: ServerInventory | None,
    status: Mapping[str, ReplicaStatus],
    now_s: float,
    settings: CollectorSettings,
    from_gateway: bool,
) -> Measured:
    """Difference what can be differenced, and say who should have reported."""
    known = {name: one for name, one in newer.items() if name in record.replicas}
    new = {
        name: ready_s
        for name, one in newer.items()
        if name not in known
        and (ready_s := _ready_s(status, name)) is not None
        and record.recorded_to_s < ready_s <= one.sampled_at_s
    }
    start_s = record.recorded_to_s
    if new and not known and not from_gateway:
        # Nothing was there to be measured since then: the window begins where the silence ended.
        start_s = max(start_s, min(record.window_end_s, *new.values()))

    deltas: dict[str, Delta] = {}
    for name, one in newer.items():
        earlier = record.replicas.get(name)
        if earlier is None and name not in new:
            continue
        span_s = one.sampled_at_s - (start_s if earlier is None else earlier.sampled_at_s)
        warming_up = (_ready_s(status, name) or 0.0) > start_s
        found = delta(earlier, one, span_s, warming_up) if span_s > 0 else None
        if found is not None:
            deltas[name] = found
    if inventory is None:
        expected = frozenset(
            name
            for name, one in record.replicas.items()
            if now_s - one.sampled_at_s <= settings.stale_after_s
        ) | (deltas.keys() & known.keys())
    elif status:
        expected = frozenset(
            name
            for name, one in status.items()
            if one.state is ReplicaState.READY and (one.ready_at_s is None or one.ready_at_s <= start_s)
        )
    else:
        expected = frozenset(deltas)
    settled = tuple(one for name, one in deltas.items() if name in expected)
    count = len(expected)
    if inventory is not None and not status:
        count = max(count, sum(variant.ready for variant in inventory.variants))
    return Measured(
        start_s,
        settled,
        tuple(one for name, one in deltas.items() if name not in expected),
        expected,
        len(settled) / count if count else 1.0,
    )


def silent(
    expected: Iterable[str],
    replicas: Mapping[str, ReplicaReading],
    status: Mapping[str, ReplicaStatus],
    now_s: float,
    settings: CollectorSettings,
) -> tuple[str, ...]:
    def last_s(name: str) -> float:
        return replicas[name].sampled_at_s if name in replicas else _ready_s(status, name) or 0.0

    return tuple(sorted(name for name in expected if now_s - last_s(name) > settings.stale_after_s))


def _ready_s(status: Mapping[str, ReplicaStatus], name: str) -> float | None:
    return status[name].ready_at_s if name in status else None
