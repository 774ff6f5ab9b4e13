"""Which load a server is planned for; missing is not zero."""

import pytest
from optimizer_builders import (
    NOW_S,
    SETTINGS,
    fleet,
    forecast,
    inventory,
    known,
    only,
    planned,
    replicas,
    server,
    service_class,
    telemetry,
)

from schemas.base import Contract, Quality
from schemas.forecast import RateQuantile
from schemas.plan import ServerStatus
from services.optimizer.load import Load, planned_load


def load_of(*messages: Contract, **declared: object) -> Load:
    asked = server(**declared)
    return planned_load(known(*messages), fleet(asked), asked, SETTINGS, NOW_S)


def test_the_forecast_at_the_quantile_of_the_class_is_planned_for() -> None:
    load = load_of(telemetry(rate_rps=20.0), forecast(p50=20.0, p90=30.0))
    assert (load.inputs.rate_rps, load.inputs.rate_from) == (pytest.approx(30.0), "forecast")
    assert not load.missing and not load.raise_only


def test_token_means_are_the_forecasts_at_the_quantile_of_the_class() -> None:
    # The class of the builders plans for 0.9; at 0.5 no quantile of output tokens was issued.
    rate = (
        RateQuantile(quantile=0.5, rate_rps=20.0, input_tokens=480.0),
        RateQuantile(quantile=0.9, rate_rps=30.0, input_tokens=700.0, output_tokens=260.0),
    )
    inputs = load_of(telemetry(rate_rps=20.0), forecast(rate=rate)).inputs
    assert (inputs.input_tokens, inputs.output_tokens) == (pytest.approx(700.0), pytest.approx(260.0))


@pytest.mark.parametrize(
    ("quantile", "rate_rps", "input_tokens"), [(0.95, 40.0, 720.0), (0.7, 25.0, 590.0), (0.5, 20.0, 480.0)]
)
def test_a_premium_class_plans_for_more_than_a_batch_class(
    quantile: float, rate_rps: float, input_tokens: float
) -> None:
    rate = tuple(
        RateQuantile(quantile=q, rate_rps=r, input_tokens=t)
        for q, r, t in ((0.5, 20.0, 480.0), (0.9, 30.0, 700.0), (0.95, 40.0, 720.0))
    )
    asked = server()
    own = service_class().model_copy(update={"forecast_quantile": quantile})
    state = known(telemetry(rate_rps=20.0), forecast(rate=rate))
    load = planned_load(state, fleet(asked, service_classes=(own,)), asked, SETTINGS, NOW_S)
    assert load.inputs.rate_rps == pytest.approx(rate_rps)
    assert load.inputs.input_tokens == pytest.approx(input_tokens)
    # Without quantiles of output tokens it is what is expected.
    assert load.inputs.output_tokens == 200.0


def test_without_token_quantiles_the_expected_means_are_planned_for() -> None:
    inputs = load_of(telemetry(rate_rps=20.0), forecast()).inputs
    assert (inputs.input_tokens, inputs.output_tokens) == (500.0, 200.0)


def test_a_forecast_below_the_measured_rate_does_not_lower_it() -> None:
    load = load_of(telemetry(rate_rps=50.0), forecast(p50=20.0, p90=30.0))
    assert (load.inputs.rate_rps, load.inputs.rate_from) == (50.0, "telemetry")


@pytest.mark.parametrize(
    "stale", [{"age_s": 301.0}, {"quality": Quality.STALE}, {"quality": Quality.MISSING}]
)
def test_a_stale_forecast_is_not_used(stale: dict[str, object]) -> None:
    load = load_of(telemetry(rate_rps=20.0), forecast(p90=30.0, **stale))
    assert (load.inputs.rate_rps, load.inputs.rate_from) == (20.0, "telemetry")
    assert load.inputs.forecast_at_s is None


@pytest.mark.parametrize(
    "stale", [{"age_s": 121.0}, {"quality": Quality.STALE}, {"quality": Quality.MISSING}]
)
def test_stale_telemetry_alone_is_no_load_even_with_a_nominal_one(stale: dict[str, object]) -> None:
    load = load_of(telemetry(rate_rps=0.0, **stale), nominal_rate_rps=5.0)
    assert load.inputs.rate_rps is None
    assert load.missing


def test_partial_telemetry_is_used() -> None:
    assert load_of(telemetry(rate_rps=7.0, quality=Quality.PARTIAL)).inputs.rate_rps == 7.0


def test_a_rate_that_was_not_measured_is_not_zero() -> None:
    assert load_of(telemetry(rate_rps=None)).missing
    assert not load_of(telemetry(rate_rps=0.0)).missing
    proposed = only(fleet(server(min_replicas=0)), telemetry(rate_rps=None), inventory(slow=3))
    assert (proposed.status, proposed.allocations) == (ServerStatus.NO_LOAD, None)


def test_the_nominal_load_counts_while_nothing_was_ever_measured() -> None:
    load = load_of(nominal_rate_rps=5.0, nominal_input_tokens=100.0, nominal_output_tokens=50.0)
    assert (load.inputs.rate_rps, load.inputs.rate_from) == (5.0, "nominal")
    assert (load.inputs.input_tokens, load.inputs.output_tokens) == (100.0, 50.0)


def test_token_lengths_are_the_forecasts_then_the_windows_then_the_last_planned_then_nominal() -> None:
    declared = {"nominal_input_tokens": 1.0, "nominal_output_tokens": 1.0}
    window = telemetry(input_tokens=10.0, output_tokens=10.0)
    state, _ = planned(fleet(server(**declared)), window)
    silent = telemetry(rate_rps=0.0, age_s=1.0, input_tokens=None, output_tokens=None)
    asked = server(**declared)

    def input_tokens(*messages: Contract) -> float | None:
        return load_of(*messages, **declared).inputs.input_tokens

    assert input_tokens(window, forecast(input_tokens=20.0)) == 20.0
    assert input_tokens(window, forecast(input_tokens=None)) == 10.0
    assert input_tokens(silent) == 1.0
    assert input_tokens(silent, *state.last_plans.values()) == 10.0
    assert planned_load(known(silent), fleet(), server(), SETTINGS, NOW_S).missing
    assert not planned_load(known(silent), fleet(asked), asked, SETTINGS, NOW_S).missing


def test_without_a_fresh_measurement_a_plan_may_add_replicas() -> None:
    stale = telemetry(rate_rps=20.0, age_s=200.0)
    proposed = only(fleet(), stale, forecast(p50=90.0, p90=99.0), inventory(slow=2))
    assert replicas(proposed)["slow"] > 2


def test_without_a_fresh_measurement_a_plan_takes_nothing_away() -> None:
    stale = telemetry(rate_rps=90.0, age_s=200.0)
    assert replicas(only(fleet(), stale, forecast(p50=1.0, p90=2.0), inventory(slow=7))) == {"slow": 7}
    nominal = server(nominal_rate_rps=1.0, nominal_input_tokens=500.0, nominal_output_tokens=200.0)
    assert replicas(only(fleet(nominal), inventory(fast=3))) == {"2xfast": 3}


def test_without_a_fresh_measurement_scarce_cards_take_nothing_away_either() -> None:
    stale = telemetry(rate_rps=90.0, age_s=200.0)
    proposed = only(fleet(capacity=()), stale, forecast(), inventory(slow=7))
    assert proposed.allocations is None
    limited = fleet(server(max_replicas=3))
    proposed = only(limited, stale, forecast(), inventory(slow=7))
    assert (proposed.status, proposed.allocations) == (ServerStatus.NO_LOAD, None)


def test_stale_telemetry_and_no_inventory_is_no_load_whatever_the_forecast() -> None:
    assert load_of(telemetry(age_s=200.0), forecast()).missing
