"""One poll of every source, put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.alert import AlertKind
from services.collector.source import (
    CapacityReading,
    GatewayReading,
    Provides,
    QuotaReading,
    Readings,
    ReplicaReading,
    ServerInventory,
)

Facts = dict[tuple[AlertKind, str], str]


@dataclass(frozen=True, slots=True)
class Poll:
    """What is known of each thing, by name, from the first source that says something of it.

    `failed` is what sources should have provided and could not; `facts` are their problems.
    """

    replicas: Mapping[str, Mapping[str, ReplicaReading]]
    gateways: Mapping[str, GatewayReading]
    inventory: Mapping[str, ServerInventory]
    capacity: Mapping[str, CapacityReading]
    quotas: Mapping[str, QuotaReading]
    provides: frozenset[Provides]
    failed: frozenset[Provides]
    facts: Facts


def merge(readings: Sequence[Readings]) -> Poll:
    """Put the readings of several sources together, in their order."""
    replicas: dict[str, dict[str, ReplicaReading]] = {}
    gateways: dict[str, GatewayReading] = {}
    inventory: dict[str, ServerInventory] = {}
    capacity: dict[str, CapacityReading] = {}
    quotas: dict[str, QuotaReading] = {}
    facts: Facts = {}
    for one in readings:
        for reading in one.replicas:
            replicas.setdefault(reading.server, {}).setdefault(reading.replica, reading)
        for gateway in one.gateways:
            gateways.setdefault(gateway.server, gateway)
        for server in one.inventory:
            inventory.setdefault(server.server, server)
        for cards in one.capacity:
            capacity.setdefault(cards.type, cards)
        for quota in one.quotas:
            quotas.setdefault(quota.name, quota)
        for problem in one.problems:
            facts.setdefault((problem.kind, subject_of(problem.subject)), problem.message)
    provides = frozenset(what for one in readings for what in one.provides)
    failed = frozenset(what for one in readings if one.failed for what in one.provides)
    return Poll(replicas, gateways, inventory, capacity, quotas, provides, failed, facts)


def subject_of(text: str) -> str:
    """A name from outside as an alert may carry it."""
    return "".join(c if c.isprintable() else "?" for c in text[:253]) or "?"
