"""The collector's step: readings of every source in, windows, inventory, capacity and alerts out.

Every declared server gets a window and an inventory at every step. A server of which nothing could be read
gets one whose quality is missing, and no figures. Where sources overlap, the first in their order counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from schemas.alert import AlertKind, AlertRaised
from schemas.base import Quality
from schemas.fleet import FleetDeclared, Server
from schemas.telemetry import (
    AcceleratorCapacity,
    CapacityObserved,
    InventoryObserved,
    QuotaObserved,
    TelemetryObserved,
    VariantInventory,
)
from services.collector import startup
from services.collector.alerts import edges, facts_of
from services.collector.poll import Poll, merge
from services.collector.population import ServerRecord, ServerView
from services.collector.settings import CollectorSettings
from services.collector.source import (
    Provides,
    Readings,
    ReplicaState,
    ServerInventory,
)
from services.collector.startup import StartupTimes
from services.collector.windows import Window, difference

SERVER = "server/"
STARTUP = "startup"
ALERTS = "alerts"
CALIBRATED = "calibrated"
_RECORD = TypeAdapter(ServerRecord)
_MOMENT = TypeAdapter(FiniteFloat)
_ALERTS = TypeAdapter(list[tuple[tuple[AlertKind, str], str]])
_KEPT_OF_ALERT = 100
"""Characters saved of a standing alert's text, for thousands may stand at once and a snapshot is one message."""


@dataclass(frozen=True, slots=True)
class State:
    """What the next step goes on from: a record of each server, learned start-ups, alerts that stand.

    calibrated_s: when the newest sweep that was told of ended, Unix seconds.
    """

    servers: Mapping[str, ServerRecord] = field(default_factory=dict)
    startups: StartupTimes = field(default_factory=StartupTimes)
    alerts: Mapping[tuple[AlertKind, str], str] = field(default_factory=dict)
    calibrated_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outputs:
    """What to publish, which snapshots to save or delete, and what was left out, counted by reason.

    telemetry: windows that go on from the last ones, to publish once their records are saved; swept: windows of
    calibration sweeps, the same in every poll until the moment of the newest is saved.
    """

    telemetry: tuple[TelemetryObserved, ...] = ()
    swept: tuple[TelemetryObserved, ...] = ()
    inventory: tuple[InventoryObserved, ...] = ()
    capacity: CapacityObserved | None = None
    alerts: tuple[AlertRaised, ...] = ()
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def step(
    state: State,
    readings: Sequence[Readings],
    fleet: FleetDeclared,
    now_s: float,
    settings: CollectorSettings,
) -> tuple[State, Outputs]:
    """Turn one poll of every source, in their order, into facts about the declared fleet.

    Parameters: now_s, control time of the poll, Unix seconds. A server whose last window does not end before
    `now_s` is skipped and counted, so a poll that is handed in twice changes nothing.
    """
    poll = merge(readings)
    servers: dict[str, ServerRecord] = {}
    windows: dict[str, Window] = {}
    skipped: dict[str, int] = {}
    for server in fleet.servers:
        record = state.servers.get(server.name)
        if record is not None and now_s <= record.window_end_s:
            skipped["window not after the last"] = skipped.get("window not after the last", 0) + 1
            servers[server.name] = record
            continue
        view = ServerView(
            server.name,
            server.model,
            poll.replicas.get(server.name, {}),
            poll.gateways.get(server.name),
            poll.inventory.get(server.name),
        )
        window = difference(record, view, now_s, settings)
        windows[server.name] = window
        servers[server.name] = window.record
        if window.skipped:
            reason = "replica fits no contract"
            skipped[reason] = skipped.get(reason, 0) + window.skipped

    models = {server.name: server.model for server in fleet.servers}
    seen = ((models[s], r) for s, i in poll.inventory.items() if s in models for r in i.replicas)
    startups = startup.learn(state.startups, seen, now_s, settings.startup_samples)
    inventory = tuple(_inventory(s, poll.inventory.get(s.name), startups, now_s) for s in fleet.servers)
    facts = facts_of(poll, fleet, windows, state.alerts, now_s, settings)
    alerts = tuple(edges(state.alerts, facts, now_s))

    told_s = state.calibrated_s
    swept = tuple(w for one in readings for w in one.calibrations if told_s < w.window_end_s <= now_s)
    calibrated_s = max((window.window_end_s for window in swept), default=told_s)

    after = State(servers, startups, facts, calibrated_s)
    changed = [SERVER + name for name in windows]
    changed += [STARTUP] * (startups is not state.startups) + [ALERTS] * (facts.keys() != state.alerts.keys())
    changed += [CALIBRATED] * (calibrated_s != told_s)
    return after, Outputs(
        telemetry=tuple(window.observed for window in windows.values()),
        swept=swept,
        inventory=inventory,
        capacity=_capacity(poll, now_s),
        alerts=alerts,
        changed=tuple(changed),
        dropped=tuple(SERVER + name for name in state.servers if name not in servers),
        skipped=skipped,
    )


def dump(state: State, key: str) -> bytes:
    """One part of the state as JSON; raises KeyError for a key that the state does not have."""
    if key == STARTUP:
        return startup.dump(state.startups)
    if key == ALERTS:
        return _ALERTS.dump_json([(key, text[:_KEPT_OF_ALERT]) for key, text in state.alerts.items()])
    if key == CALIBRATED:
        return _MOMENT.dump_json(state.calibrated_s)
    return _RECORD.dump_json(state.servers[key.removeprefix(SERVER)])


def load(state: State, key: str, raw: bytes) -> State:
    """The state with one part as it was dumped; raises ValueError for what cannot be read."""
    if key == STARTUP:
        return replace(state, startups=startup.load(raw))
    if key == ALERTS:
        return replace(state, alerts=dict(_ALERTS.validate_json(raw)))
    if key == CALIBRATED:
        return replace(state, calibrated_s=_MOMENT.validate_json(raw))
    if not key.startswith(SERVER):
        raise ValueError(f"{key!r} is not a snapshot of the collector")
    return replace(state, servers={**state.servers, key.removeprefix(SERVER): _RECORD.validate_json(raw)})


def _inventory(
    server: Server, read: ServerInventory | None, startups: StartupTimes, now_s: float
) -> InventoryObserved:
    learned = startup.learned(startups, server.model)
    if read is None:
        return InventoryObserved(
            server=server.name,
            model=server.model,
            observed_at_s=now_s,
            quality=Quality.MISSING,
            startup=learned,
        )
    variants = [_variant(read, index) for index in range(len(read.variants))]
    return InventoryObserved(
        server=server.name,
        model=server.model,
        observed_at_s=max(0.0, min(read.observed_at_s, now_s)),
        quality=Quality.PARTIAL if None in variants else Quality.OK,
        variants=tuple(one for one in variants if one is not None),
        startup=learned,
        paused=read.paused,
    )


def _variant(read: ServerInventory, index: int) -> VariantInventory | None:
    """One variant; None where its figures fit no contract."""
    one = read.variants[index]
    waiting = sorted(
        (replica.created_at_s, replica.reason or "")
        for replica in read.replicas
        if replica.accelerator == one.accelerator
        and replica.state in (ReplicaState.PENDING, ReplicaState.STARTING)
        and replica.created_at_s is not None
    )
    if one.trouble is not None and one.trouble_since_s is not None:
        waiting = sorted([*waiting, (one.trouble_since_s, one.trouble)])
    reason = next((reason for _, reason in waiting if reason), None)
    try:
        return VariantInventory(
            accelerator=one.accelerator,
            max_batch=one.max_batch,
            batch_settable=one.batch_settable,
            desired=one.desired,
            ready=one.ready,
            pending=one.pending,
            terminating=one.terminating,
            pending_since_s=waiting[0][0] if waiting else None,
            resource_version=one.resource_version,
            autoscaler=one.autoscaler,
            pending_reason=None if reason is None else reason[:1000],
            quotas=one.quotas,
        )
    except ValidationError:
        return None


def _capacity(poll: Poll, now_s: float) -> CapacityObserved | None:
    """Cards by type; nothing when no source is asked for them, and missing when the one that is failed."""
    if Provides.CAPACITY not in poll.provides:
        return None
    types: list[AcceleratorCapacity] = []
    quality = Quality.OK if poll.capacity else Quality.MISSING
    for _, one in sorted(poll.capacity.items()):
        try:
            types.append(AcceleratorCapacity(type=one.type, total=one.total, free=one.free))
        except ValidationError:
            quality = Quality.PARTIAL
    quotas = []
    for _, quota in sorted(poll.quotas.items()):
        try:
            quotas.append(
                QuotaObserved(
                    name=quota.name,
                    cards=quota.cards,
                    used=quota.used,
                    used_by_others=quota.used_by_others,
                )
            )
        except ValidationError:
            quality = Quality.PARTIAL
    observed_at_s = min((one.observed_at_s for one in poll.capacity.values()), default=now_s)
    return CapacityObserved(
        observed_at_s=max(0.0, min(observed_at_s, now_s)),
        quality=quality,
        types=tuple(types),
        quotas=tuple(quotas),
    )
