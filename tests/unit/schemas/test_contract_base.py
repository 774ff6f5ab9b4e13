"""What holds for every contract: immutable, finite, strict about units, tolerant of newer fields."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from schemas import request
from schemas.base import UNITS, Contract, unit_stem
from schemas.fleet import LawParameters
from schemas.plan import Prediction
from schemas.telemetry import Latency, TelemetryObserved
from schemas.topics import TOPICS, VERBS

PREDICTION = {"ttft_s": 0.2, "itl_s": 0.01, "wait_s": 0.0, "utilization_share": 0.5, "objectives_met": True}


def contracts() -> Iterator[type[Contract]]:
    waiting: list[type[Contract]] = [Contract]
    while waiting:
        found = waiting.pop().__subclasses__()
        yield from found
        waiting += found


ALL = sorted(contracts(), key=lambda c: c.__name__)


def test_the_table_and_the_requests_are_among_the_contracts_that_are_checked():
    named = {t.payload for t in TOPICS} | {v.request for v in VERBS} | {v.reply for v in VERBS}
    assert named | {request.RequestRefused} <= set(ALL)


@pytest.mark.parametrize("contract", ALL, ids=lambda c: c.__name__)
def test_every_contract_is_frozen_and_refuses_what_is_not_finite(contract: type[Contract]):
    assert contract.model_config["frozen"] is True
    assert contract.model_config["allow_inf_nan"] is False


def test_a_field_cannot_be_assigned():
    prediction = Prediction(**PREDICTION)
    with pytest.raises(ValidationError, match="frozen"):
        prediction.ttft_s = 1.0


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", '"nan"', '"inf"'])
def test_nan_and_infinity_are_refused_in_json(text: str):
    body = json.dumps(PREDICTION).replace("0.2", text)
    with pytest.raises(ValidationError) as refused:
        Prediction.model_validate_json(body)
    assert refused.value.errors()[0]["loc"] == ("ttft_s",)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_in_nested_numbers_and_mappings(value: float):
    with pytest.raises(ValidationError, match="finite"):
        Latency(count=1, mean_s=value)
    with pytest.raises(ValidationError, match="finite"):
        LawParameters(values={"alpha_s": value})


@pytest.mark.parametrize("name", ["ttft_ms", "ttft_us", "ttft_min", "ttft_h"])
def test_a_known_field_in_another_unit_is_refused_by_name_with_the_expected_one(name: str):
    body = {**PREDICTION, name: 200.0}
    with pytest.raises(ValidationError) as refused:
        Prediction.model_validate(body)
    assert repr(name) in str(refused.value)
    assert "'ttft_s' is expected" in str(refused.value)


def test_a_field_in_another_unit_is_refused_inside_a_list_of_parts_too():
    window = {"server": "s", "model": "m", "window_start_s": 0, "window_end_s": 1, "quality": "ok"}
    replica = {"replica": "r", "accelerator": "a", "offered_rate_rpm": 60}
    with pytest.raises(ValidationError, match="offered_rate_rps"):
        TelemetryObserved.model_validate({**window, "replicas": [replica]})


def test_a_newer_field_is_ignored():
    newer = Prediction.model_validate({**PREDICTION, "tokens_in_flight": 3, "nested": {"a": [1]}})
    assert newer == Prediction(**PREDICTION)
    assert newer.model_dump() == Prediction(**PREDICTION).model_dump()


def test_a_required_field_in_another_unit_alone_is_missing():
    body = {name: value for name, value in PREDICTION.items() if name != "ttft_s"}
    with pytest.raises(ValidationError) as refused:
        Prediction.model_validate({**body, "ttft_ms": 200.0})
    assert refused.value.errors()[0]["loc"] == ("ttft_s",)


@pytest.mark.parametrize("contract", ALL, ids=lambda c: c.__name__)
def test_no_contract_has_two_fields_that_differ_in_their_unit_only(contract: type[Contract]):
    stems = [unit_stem(name) for name in contract.model_fields if unit_stem(name) != name]
    assert len(set(stems)) == len(stems)


@pytest.mark.parametrize("contract", ALL, ids=lambda c: c.__name__)
def test_a_field_that_may_be_absent_has_a_default_because_absent_fields_are_not_sent(
    contract: type[Contract],
):
    for name, field in contract.model_fields.items():
        if field.is_required():
            assert type(None) not in getattr(field.annotation, "__args__", ()), name


@pytest.mark.parametrize("contract", ALL, ids=lambda c: c.__name__)
def test_every_field_says_what_it_is(contract: type[BaseModel]):
    assert contract.__doc__
    for name, field in contract.model_json_schema()["properties"].items():
        assert field["description"], f"{contract.__name__}.{name}"


@given(st.sampled_from(UNITS), st.from_regex(r"[a-z]{3,8}", fullmatch=True))
def test_the_stem_of_a_name_with_a_unit_is_the_name_without_it(unit: str, stem: str):
    assert unit_stem(stem + unit) == stem
    assert unit_stem(stem) == stem


def test_the_longest_unit_is_the_one_that_counts():
    assert unit_stem("price_cents_per_hour") == "price"
    assert unit_stem("bandwidth_gib_per_s") == "bandwidth_gib"
