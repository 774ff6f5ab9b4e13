"""Rules between fields: references within a fleet, quantiles of a forecast, status of a plan."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.fleet import FleetDeclared, Objective, objective_of
from schemas.forecast import ForecastIssued, rate_at, tokens_at
from schemas.parameters import ParametersEstimated
from schemas.plan import PlanProposed, ServerStatus
from schemas.telemetry import TelemetryObserved

EXAMPLES = Path(__file__).parents[3] / "schemas" / "examples"


def example(topic: str, name: str = "full") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / topic / "v1" / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (
            ("models", 0, "profiles", 0, "accelerator"),
            "2xB200",
            [
                "models[0] (meta-llama/Llama-3.1-8B-Instruct).profiles.accelerator",
                "'2xB200'",
                "1xA100, 4xH100",
            ],
        ),
        (
            ("service_classes", 0, "objectives", 1, "model"),
            "gpt-oss",
            ["service_classes[0] (Premium).objectives.model", "'gpt-oss'", "mistralai/Mixtral-8x7B"],
        ),
        (
            ("servers", 1, "model"),
            "gpt-oss",
            ["servers[1] (batch/summaries).model", "'gpt-oss'", "declared: "],
        ),
        (
            ("servers", 0, "service_class"),
            "Gold",
            ["servers[0] (chat-premium).service_class", "'Gold'", "declared: Freemium, Premium"],
        ),
        (("servers", 0, "max_replicas"), 1, ["servers[0] (chat-premium).max_replicas is 1", "which is 2"]),
        (("servers", 1, "name"), "chat-premium", ["servers: 'chat-premium' occurs twice"]),
        (("accelerators", 1, "name"), "1xA100", ["accelerators: '1xA100' occurs twice"]),
        (("capacity", 1, "type"), "A100", ["capacity: 'A100' occurs twice"]),
        (("models", 0, "profiles", 1, "accelerator"), "1xA100", ["models[0]", "'1xA100' occurs twice"]),
    ],
)
def test_a_wrong_reference_in_a_fleet_is_refused_with_its_path_its_value_and_what_is_declared(
    path: tuple[Any, ...], value: Any, told: list[str]
):
    body = example("fleet.declared")
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError) as refused:
        FleetDeclared.model_validate_json(json.dumps(body))
    for part in told:
        assert part in str(refused.value)


def test_a_reference_into_an_empty_fleet_says_that_nothing_is_declared():
    body = example("fleet.declared", "minimal") | {
        "servers": [{"name": "s", "model": "m", "service_class": "c"}],
    }
    with pytest.raises(ValidationError, match="declared: nothing"):
        FleetDeclared.model_validate(body)


def test_objectives_of_a_server_are_those_of_its_class_for_its_model():
    fleet = FleetDeclared.model_validate(example("fleet.declared"))
    assert objective_of(fleet, fleet.servers[0]).ttft_s == 0.5
    assert objective_of(fleet, fleet.servers[1]) == Objective(model="mistralai/Mixtral-8x7B")


@given(
    st.lists(
        st.tuples(st.floats(0.01, 0.99), st.floats(0, 1e6)),
        min_size=1,
        max_size=6,
    )
)
def test_a_forecast_is_accepted_exactly_when_quantiles_rise_and_rates_do_not_fall(
    points: list[tuple[float, float]],
):
    body = example("forecast.issued") | {"rate": [{"quantile": q, "rate_rps": r} for q, r in points]}
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
    if rising:
        assert len(ForecastIssued.model_validate(body).rate) == len(points)
    else:
        with pytest.raises(ValidationError, match="rising quantiles"):
            ForecastIssued.model_validate(body)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_the_rate_of_a_forecast_rises_with_the_quantile_within_what_was_issued(one: float, other: float):
    forecast = ForecastIssued.model_validate(example("forecast.issued"))
    low, high = sorted((one, other))
    assert 4.7 <= rate_at(forecast, low) <= rate_at(forecast, high) <= 6.8
    assert rate_at(forecast, 0.9) == pytest.approx(6.1, rel=1e-12)
    assert rate_at(forecast, 0.7) == pytest.approx((4.7 + 6.1) / 2, rel=1e-12)


@pytest.mark.parametrize("kind", ["input_tokens", "output_tokens"])
def test_token_means_that_fall_from_one_quantile_to_the_next_are_refused(kind: str):
    rate = [{"quantile": 0.5, "rate_rps": 1.0, kind: 200.0}, {"quantile": 0.9, "rate_rps": 1.0, kind: 100.0}]
    with pytest.raises(ValidationError, match="token means that do not fall"):
        ForecastIssued.model_validate(example("forecast.issued") | {"rate": rate})


def test_token_means_at_a_quantile_are_between_those_issued_and_else_the_expected_ones():
    rate = [
        {"quantile": 0.5, "rate_rps": 1.0, "input_tokens": 100.0},
        {"quantile": 0.9, "rate_rps": 2.0, "input_tokens": 200.0},
    ]
    forecast = ForecastIssued.model_validate(example("forecast.issued") | {"rate": rate})
    assert tokens_at(forecast, 0.7) == (pytest.approx(150.0), forecast.output_tokens)
    assert tokens_at(forecast, 0.99) == (200.0, forecast.output_tokens)


def test_a_forecast_without_quantiles_is_refused():
    with pytest.raises(ValidationError, match="at least 1"):
        ForecastIssued.model_validate(example("forecast.issued") | {"rate": []})


@pytest.mark.parametrize("status", list(ServerStatus))
@pytest.mark.parametrize("with_target", [True, False])
def test_a_plan_has_a_target_exactly_when_its_status_moves_to_one(status: ServerStatus, with_target: bool):
    body = example("plan.proposed") | {"status": status.value}
    if not with_target:
        del body["allocations"]
    moves = status in (ServerStatus.PLANNED, ServerStatus.DEGRADED)
    if moves == with_target:
        assert (PlanProposed.model_validate(body).allocations is not None) == moves
    else:
        with pytest.raises(ValidationError, match=f"with status {status.value}"):
            PlanProposed.model_validate(body)


def test_zero_replicas_are_an_empty_target_and_differ_from_no_opinion():
    zero = PlanProposed.model_validate(example("plan.proposed", "to-zero"))
    hold = PlanProposed.model_validate(example("plan.proposed", "minimal"))
    assert zero.allocations == ()
    assert hold.allocations is None


def test_an_accelerator_occurs_once_in_a_plan():
    body = copy.deepcopy(example("plan.proposed"))
    body["allocations"][1]["accelerator"] = "1xA100"
    with pytest.raises(ValidationError, match="may occur once"):
        PlanProposed.model_validate(body)


def test_a_window_ends_after_it_starts():
    body = example("telemetry.observed") | {"window_end_s": 1_760_000_000.0}
    with pytest.raises(ValidationError, match="expected after window_start_s"):
        TelemetryObserved.model_validate(body)


@pytest.mark.parametrize("covariance", [[[1.0]], [[1.0, 0.0, 0.0]] * 2, [[1.0, 0.0]] * 3])
def test_a_covariance_has_a_row_and_a_column_for_each_parameter(covariance: list[list[float]]):
    body = example("parameters.estimated") | {"covariance": covariance}
    with pytest.raises(ValidationError, match="expected 3 rows of 3"):
        ParametersEstimated.model_validate(body)
