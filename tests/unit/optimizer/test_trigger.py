"""When the optimizer plans."""

import pytest

from schemas.base import Quality
from schemas.fleet import FleetDeclared
from schemas.forecast import ForecastIssued, RateQuantile
from schemas.telemetry import TelemetryObserved
from services.optimizer.trigger import Trigger

SERVERS = frozenset({"a", "b"})


def window(server: str, quality: Quality = Quality.OK) -> TelemetryObserved:
    return TelemetryObserved(server=server, model="m", window_start_s=0, window_end_s=30, quality=quality)


def forecast(server: str) -> ForecastIssued:
    quantile = RateQuantile(quantile=0.5, rate_rps=1)
    return ForecastIssued(
        server=server, issued_at_s=30, horizon_s=90, quality=Quality.OK, rate=(quantile,), forecaster="last"
    )


def due(trigger: Trigger, wall_s: float) -> float | None:
    return trigger.due_in_s(SERVERS, wall_s, debounce_s=0.05, max_wait_s=0.5)


def complete_cycle(cycle: str, wall_s: float) -> Trigger:
    trigger = Trigger()
    for message in (window("a"), window("b"), forecast("a"), forecast("b")):
        trigger = trigger.note(message, cycle, wall_s)
    return trigger


def test_nothing_asks_for_a_plan_at_first() -> None:
    assert due(Trigger(), 10.0) is None


def test_a_complete_cycle_is_planned_at_once() -> None:
    assert due(complete_cycle("1", 10.0), 10.0) == 0.0


def test_an_incomplete_cycle_waits_no_longer_than_the_limit() -> None:
    trigger = Trigger().note(window("a"), "1", 10.0).note(forecast("a"), "1", 10.1)
    assert due(trigger, 10.2) == pytest.approx(0.3)
    assert due(trigger, 11.0) == 0.0


def test_a_server_without_a_measurement_promises_no_forecast() -> None:
    trigger = Trigger()
    for message in (window("a", Quality.MISSING), window("b"), forecast("b")):
        trigger = trigger.note(message, "1", 10.0)
    assert due(trigger, 10.0) == 0.0


def test_what_comes_late_of_a_planned_cycle_asks_for_no_second_plan() -> None:
    trigger = complete_cycle("1", 10.0).planned()
    assert due(trigger, 10.0) is None
    assert due(trigger.note(window("a"), "1", 10.1).note(forecast("a"), "1", 10.1), 10.1) is None


def test_the_next_cycle_starts_afresh() -> None:
    trigger = complete_cycle("1", 10.0).planned().note(window("a"), "2", 11.0)
    assert trigger.measured == {"a"}
    assert trigger.forecast == frozenset()
    assert due(trigger, 11.0) == 0.5


def test_a_forecast_of_another_cycle_completes_nothing() -> None:
    trigger = Trigger().note(window("a"), "2", 10.0).note(window("b"), "2", 10.0)
    late = trigger.note(forecast("a"), "1", 10.0).note(forecast("b"), "1", 10.0)
    assert due(late, 10.0) == 0.5


def test_a_new_fleet_is_planned_after_a_short_quiet() -> None:
    fleet = FleetDeclared(
        declared_at_s=1, revision="r", accelerators=(), models=(), service_classes=(), servers=()
    )
    trigger = Trigger().note(fleet, "", 10.0)
    assert due(trigger, 10.0) == pytest.approx(0.05)
    assert due(trigger.planned(), 11.0) is None


def test_what_a_sweep_measured_completes_no_cycle_and_begins_none() -> None:
    swept = window("b").model_copy(update={"calibration": True})
    trigger = Trigger().note(window("a"), "1", 10.0).note(forecast("a"), "1", 10.0)
    assert trigger.note(swept, "1", 10.0) == trigger
    assert due(Trigger().note(swept, "2", 10.0), 10.0) is None
