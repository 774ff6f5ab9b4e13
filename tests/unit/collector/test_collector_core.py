"""The collector's step."""

from dataclasses import replace

import pytest

from schemas.alert import AlertKind
from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from schemas.telemetry import TelemetryObserved
from schemas.topics import MAX_MESSAGE_BYTES
from services.collector.core import CALIBRATED, State, dump, load, step
from services.collector.settings import CollectorSettings
from services.collector.source import (
    CapacityReading,
    HistogramReading,
    Problem,
    Provides,
    Readings,
    ReplicaReading,
    ReplicaState,
    ReplicaStatus,
    ServerInventory,
    VariantReading,
)

SETTINGS = CollectorSettings()
T0 = 1000.0
METRICS = frozenset({Provides.METRICS})
PLATFORM = frozenset({Provides.INVENTORY, Provides.CAPACITY})


def fleet_of(*names: str) -> FleetDeclared:
    return FleetDeclared(
        declared_at_s=0,
        revision="1",
        accelerators=(Accelerator(name="A", type="A", cost_per_hour=1),),
        models=(Model(name="m", profiles=(ModelProfile(accelerator="A"),)),),
        service_classes=(ServiceClass(name="gold", priority=1),),
        servers=tuple(Server(name=name, model="m", service_class="gold") for name in names),
    )


def metrics(at_s: float, *servers: str, source: str = "metrics", rate: float = 1.0) -> Readings:
    count = rate * (at_s - T0)
    ttft = HistogramReading((0.1, 1.0), (count / 3, count, count), count * 0.1)
    return Readings(
        source,
        METRICS,
        replicas=tuple(
            ReplicaReading(s, f"{s}-0", at_s, "A", 8, count, count, count, ttft, None, 1 / 3, 0.0)
            for s in servers
        ),
    )


def platform(at_s: float, server: str = "chat", ready: int = 1) -> Readings:
    replicas = (
        *(ReplicaStatus(f"{server}-{i}", "A", ReplicaState.READY, 100.0, 160.0) for i in range(ready)),
        ReplicaStatus("p1", "A", ReplicaState.STARTING, 700.0),
        ReplicaStatus("p2", "A", ReplicaState.PENDING, 600.0),
    )
    variant = VariantReading("A", ready + 2, ready, 2, max_batch=8, resource_version="5")
    return Readings(
        "platform",
        PLATFORM,
        inventory=(ServerInventory(server, at_s, (variant,), replicas),),
        capacity=(CapacityReading("A", at_s, 10, 7),),
    )


def failed(source: str, provides: frozenset[Provides]) -> Readings:
    return Readings(source, provides, problems=(Problem(AlertKind.SOURCE_FAILED, source, "no answer"),))


def test_every_declared_server_is_told_of_even_if_nothing_is_known() -> None:
    _, out = step(State(), [metrics(T0, "chat")], fleet_of("chat", "batch"), T0, SETTINGS)
    assert [window.server for window in out.telemetry] == ["chat", "batch"]
    assert [window.quality for window in out.telemetry] == [Quality.MISSING] * 2
    assert [one.quality for one in out.inventory] == [Quality.MISSING] * 2
    assert out.capacity is None
    (alert,) = out.alerts
    assert (alert.kind, alert.subject, alert.resolved) == (AlertKind.NO_SERIES, "batch", False)
    assert "chat" in alert.message


def test_an_alert_is_raised_once_and_resolved_once() -> None:
    state, fleet, raised = State(), fleet_of("chat"), []
    for cycle, names in enumerate([("chat",), (), (), ("chat",), ("chat",)]):
        state, out = step(state, [metrics(T0 + 30 * cycle, *names)], fleet, T0 + 30 * cycle, SETTINGS)
        raised.append([(alert.kind, alert.resolved) for alert in out.alerts])
        assert ("alerts" in out.changed) == bool(out.alerts)
    assert raised == [[], [(AlertKind.NO_SERIES, False)], [], [(AlertKind.NO_SERIES, True)], []]


def test_the_alerts_of_a_large_fleet_that_shows_no_series_are_saved_as_one_message() -> None:
    names = [f"team-{k % 40}/a-server-of-a-rather-long-name-{k}" for k in range(3000)]
    state, out = step(
        State(), [metrics(T0, *(f"other-{name}" for name in names[:12]))], fleet_of(*names), T0, SETTINGS
    )
    assert len(out.alerts) > 3000 and "alerts" in out.changed
    saved = dump(state, "alerts")
    assert len(saved) < MAX_MESSAGE_BYTES
    assert load(State(), "alerts", saved).alerts.keys() == state.alerts.keys()


def test_a_failed_source_is_one_alert_and_not_one_for_every_server() -> None:
    _, out = step(State(), [failed("metrics", METRICS)], fleet_of("chat", "batch"), T0, SETTINGS)
    assert [(alert.kind, alert.subject) for alert in out.alerts] == [(AlertKind.SOURCE_FAILED, "metrics")]
    assert all(window.quality is Quality.MISSING for window in out.telemetry)


def test_an_undeclared_server_is_ignored_and_alerted_once() -> None:
    state, fleet = State(), fleet_of("chat")
    state, first = step(state, [metrics(T0, "chat", "ghost\n")], fleet, T0, SETTINGS)
    _, second = step(state, [metrics(T0 + 30, "chat", "ghost\n")], fleet, T0 + 30, SETTINGS)
    assert [(alert.kind, alert.subject) for alert in first.alerts] == [(AlertKind.UNKNOWN_SERVER, "ghost?")]
    assert second.alerts == ()
    assert [window.server for window in second.telemetry] == ["chat"]


def test_a_server_without_replicas_by_the_inventory_raises_no_alert() -> None:
    _, out = step(State(), [metrics(T0), platform(T0, ready=0)], fleet_of("chat"), T0, SETTINGS)
    assert out.alerts == ()
    assert out.telemetry[0].quality is Quality.MISSING


def test_frozen_samples_raise_stale_data_when_they_are_too_old() -> None:
    state, kinds = State(), []
    for cycle in range(6):
        state, out = step(state, [metrics(T0, "chat")], fleet_of("chat"), T0 + 30 * cycle, SETTINGS)
        kinds.append([alert.kind for alert in out.alerts])
    assert kinds == [[], [], [], [], [AlertKind.STALE_DATA], []]
    assert out.telemetry[0].quality is Quality.STALE


def test_a_replica_that_stays_silent_is_alerted_by_name() -> None:
    state, alerts = State(), []
    for cycle in range(5):
        now_s = T0 + 30 * cycle
        state, out = step(
            state, [metrics(now_s, "chat"), platform(now_s, ready=2)], fleet_of("chat"), now_s, SETTINGS
        )
        alerts += out.alerts
    assert [alert.kind for alert in alerts] == [AlertKind.PARTIAL_DATA]
    assert "chat-1" in alerts[0].message
    assert out.telemetry[0].quality is Quality.PARTIAL and out.telemetry[0].reporting_share == 0.5


def test_inventory_and_capacity_are_passed_on_with_what_was_learned() -> None:
    _, out = step(State(), [platform(T0)], fleet_of("chat"), T0, SETTINGS)
    (seen,) = out.inventory
    (variant,) = seen.variants
    assert seen.quality is Quality.OK
    assert (variant.desired, variant.ready, variant.pending) == (3, 1, 2)
    assert (variant.pending_since_s, variant.max_batch, variant.resource_version) == (600.0, 8, "5")
    assert [(one.accelerator, one.p50_s, one.samples) for one in seen.startup] == [("A", 60.0, 1)]
    assert out.capacity is not None and out.capacity.quality is Quality.OK
    assert [(one.type, one.total, one.free) for one in out.capacity.types] == [("A", 10, 7)]


def test_capacity_that_could_not_be_read_is_missing() -> None:
    _, out = step(State(), [failed("platform", PLATFORM)], fleet_of("chat"), T0, SETTINGS)
    assert out.capacity is not None
    assert (out.capacity.quality, out.capacity.types) == (Quality.MISSING, ())


def test_figures_that_fit_no_contract_make_inventory_partial() -> None:
    odd = Readings(
        "platform",
        PLATFORM,
        inventory=(
            ServerInventory("chat", T0, (VariantReading("A", 1, 1, 0), VariantReading("B", -1, 1, 0))),
        ),
        capacity=(CapacityReading("A", T0, 3, 1), CapacityReading("B", T0, -3, 1)),
    )
    _, out = step(State(), [odd], fleet_of("chat"), T0, SETTINGS)
    assert out.inventory[0].quality is Quality.PARTIAL
    assert [variant.accelerator for variant in out.inventory[0].variants] == ["A"]
    assert out.capacity is not None and out.capacity.quality is Quality.PARTIAL


def test_of_two_sources_the_first_counts_and_the_second_stands_in() -> None:
    state, fleet = State(), fleet_of("chat")
    state, _ = step(state, [metrics(T0, "chat"), metrics(T0, "chat", source="b")], fleet, T0, SETTINGS)
    both = [metrics(T0 + 30, "chat", rate=2), metrics(T0 + 30, "chat", source="b", rate=9)]
    state, out = step(state, both, fleet, T0 + 30, SETTINGS)
    assert out.telemetry[0].completed_rate_rps == pytest.approx(2.0)
    second = [failed("metrics", METRICS), metrics(T0 + 60, "chat", source="b", rate=2)]
    _, out = step(state, second, fleet, T0 + 60, SETTINGS)
    assert out.telemetry[0].completed_rate_rps == pytest.approx(2.0)
    assert [alert.kind for alert in out.alerts] == [AlertKind.SOURCE_FAILED]


def test_a_poll_that_comes_twice_changes_nothing() -> None:
    readings, fleet = [metrics(T0, "chat"), platform(T0)], fleet_of("chat", "batch")
    state, _ = step(State(), readings, fleet, T0, SETTINGS)
    again, out = step(state, readings, fleet, T0, SETTINGS)
    assert again == state
    assert out.telemetry == () and out.alerts == () and out.changed == ()
    assert out.skipped == {"window not after the last": 2}


def test_a_server_that_is_no_longer_declared_is_dropped() -> None:
    state, _ = step(State(), [metrics(T0, "chat", "old")], fleet_of("chat", "old"), T0, SETTINGS)
    after, out = step(state, [metrics(T0 + 30, "chat")], fleet_of("chat"), T0 + 30, SETTINGS)
    assert out.dropped == ("server/old",) and set(after.servers) == {"chat"}


def test_what_a_sweep_measured_is_told_once_also_after_a_restart() -> None:
    swept = TelemetryObserved(
        server="calibration of m on A",
        model="m",
        window_start_s=T0,
        window_end_s=T0 + 20,
        quality=Quality.OK,
        calibration=True,
    )
    readings = [metrics(T0 + 30, "chat"), Readings("simulated", PLATFORM, calibrations=(swept,))]
    state, _ = step(State(), [metrics(T0, "chat")], fleet_of("chat"), T0, SETTINGS)
    state, out = step(state, readings, fleet_of("chat"), T0 + 30, SETTINGS)
    assert out.swept == (swept,)
    assert CALIBRATED in out.changed
    for resumed in (state, load(replace(state, calibrated_s=0.0), CALIBRATED, dump(state, CALIBRATED))):
        _, out = step(resumed, readings, fleet_of("chat"), T0 + 60, SETTINGS)
        assert out.swept == ()
        assert CALIBRATED not in out.changed


def test_after_a_restart_the_window_goes_on_from_the_last_counters() -> None:
    fleet = fleet_of("chat", "model/with strange·name")
    names = [server.name for server in fleet.servers]
    state, saved = State(), {}
    for cycle in range(4):
        now_s = T0 + 30.1 * cycle
        readings = [metrics(now_s, *names, rate=1 / 3), platform(now_s), failed("x", PLATFORM)]
        state, out = step(state, readings, fleet, now_s, SETTINGS)
        saved |= {key: dump(state, key) for key in out.changed}
    restored = State()
    for key, raw in saved.items():
        restored = load(restored, key, raw)
    assert restored == state
    readings = [metrics(T0 + 300, *names, rate=1 / 3), platform(T0 + 300)]
    assert step(restored, readings, fleet, T0 + 300, SETTINGS) == step(
        state, readings, fleet, T0 + 300, SETTINGS
    )


@pytest.mark.parametrize(
    ("key", "raw"),
    [("server/a", b"{"), ("server/a", b'{"version": 2, "recorded_to_s": 1, "window_end_s": 1}'), ("other", b"{}"),
     ("alerts", b'{"x": 1}'), ("startup", b"[]")],
)  # fmt: skip
def test_a_snapshot_that_cannot_be_read_is_refused(key: str, raw: bytes) -> None:
    with pytest.raises(ValueError):
        load(State(), key, raw)
