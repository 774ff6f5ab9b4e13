"""CloudEvents on the wire: deterministic, whole, and refused with a reason when they are not."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.alert import AlertKind, AlertRaised
from schemas.parameters import FitEvidence, Health, ParametersEstimated
from schemas.telemetry import CapacityUnavailable
from schemas.topics import MAX_MESSAGE_BYTES, TOPIC_BY_NAME
from services.runtime.envelope import Emit, Raw, Wire, decode, encode, problems, rfc3339
from services.runtime.errors import Reject, TooLarge

EXAMPLES = sorted((Path(__file__).parents[3] / "schemas" / "examples").glob("*/v1/*.json"))
NOW_S = 1_760_000_100.25
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


def unavailable(**changes: Any) -> CapacityUnavailable:
    return CapacityUnavailable(
        **({"type": "A100", "since_s": 1.0, "until_s": 2.0, "reason": "none left"} | changes)
    )


def raw_of(wire: Wire, **changes: Any) -> Raw:
    return replace(Raw(wire.subject, wire.data, wire.headers, stream=wire.stream, sequence=7), **changes)


def good(**changes: Any) -> Raw:
    return raw_of(encode(Emit(unavailable(), expires_at_s=5.0), "actuator", NOW_S), **changes)


def with_header(name: str, value: str | None) -> Raw:
    headers = {k: v for k, v in good().headers.items() if k != name}
    return good(headers=headers if value is None else headers | {name: value})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: f"{p.parts[-3]}/{p.stem}")
def test_what_is_encoded_is_decoded_as_it_was(path: Path):
    topic = TOPIC_BY_NAME[path.parts[-3]]
    payload = topic.payload.model_validate_json(path.read_bytes())
    event = decode(raw_of(encode(Emit(payload, correlation_id="c/1", expires_at_s=9e9), "tuner", NOW_S)))
    assert (event.payload, event.topic, event.sequence) == (payload, topic, 7)
    assert (event.source, event.correlation_id) == ("/stoker/tuner", "c/1")
    assert event.time_s == pytest.approx(NOW_S, abs=1e-6)
    assert event.expires_at_s == pytest.approx(min(9e9, getattr(payload, "expires_at_s", 9e9)), abs=1e-5)
    assert event.as_of_s == getattr(payload, topic.as_of)


@given(NAMES, TEXT, TEXT, TEXT)
def test_any_name_and_identifier_survive_headers_that_hold_only_printable_ascii(
    kind: str, source: str, correlation: str, causation: str
):
    emit = Emit(unavailable(type=kind), correlation_id=correlation, causation_id=causation)
    wire = encode(emit, source, NOW_S)
    for name, value in wire.headers.items():
        assert name.isascii()
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
    event = decode(raw_of(wire))
    assert event.payload == emit.payload
    assert event.correlation_id == correlation
    assert event.source == f"/stoker/{source}"


def test_the_attributes_are_those_of_cloudevents_in_binary_mode():
    wire = encode(Emit(unavailable(), correlation_id="cycle-1", causation_id="abc"), "actuator", NOW_S)
    assert wire.headers["ce-specversion"] == "1.0"
    assert wire.headers["ce-type"] == "stoker.v1.capacity.unavailable"
    assert wire.headers["ce-id"] == wire.headers["Nats-Msg-Id"] == wire.id
    assert wire.headers["content-type"] == "application/json"
    assert wire.headers["ce-time"] == "2025-10-09T08:55:00.250000Z"
    version, trace, span, flags = wire.headers["ce-traceparent"].split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")
    assert int(trace, 16)
    assert int(span, 16)


@given(st.floats(0, 1e11))
def test_a_time_is_rfc_3339_in_utc_and_keeps_its_microseconds(unix_s: float):
    text = rfc3339(unix_s)
    assert text.endswith("Z")
    # Half a microsecond of rounding, and the spacing of doubles at 1e11.
    assert datetime.fromisoformat(text).timestamp() == pytest.approx(unix_s, abs=2e-5)


def test_a_fact_has_the_same_identifier_whenever_it_is_published_and_another_fact_another():
    once = encode(Emit(unavailable()), "actuator", NOW_S)
    again = encode(Emit(unavailable(), correlation_id="c", expires_at_s=1.0), "actuator", NOW_S + 60)
    other = encode(Emit(unavailable(until_s=3.0)), "actuator", NOW_S)
    elsewhere = encode(Emit(unavailable(type="H100")), "actuator", NOW_S)
    assert once.id == again.id
    assert len({once.id, other.id, elsewhere.id}) == 3


def test_a_named_fact_keeps_its_identifier_when_its_content_changes():
    first = encode(Emit(unavailable(), identity="1"), "actuator", NOW_S)
    changed = encode(Emit(unavailable(reason="other"), identity="1"), "actuator", NOW_S)
    second = encode(Emit(unavailable(), identity="2"), "actuator", NOW_S)
    assert first.id == changed.id != second.id


def test_cycles_of_one_correlation_are_one_trace():
    one = encode(Emit(unavailable(), correlation_id="c"), "actuator", NOW_S).headers["ce-traceparent"]
    two = encode(Emit(unavailable(type="H100"), correlation_id="c"), "tuner", 0.0).headers["ce-traceparent"]
    assert one.split("-")[1] == two.split("-")[1]
    assert one.split("-")[2] != two.split("-")[2]


def test_an_expected_sequence_is_the_servers_header():
    wire = encode(Emit(unavailable(), expected_last_sequence=0), "actuator", NOW_S)
    assert wire.headers["Nats-Expected-Last-Subject-Sequence"] == "0"


def test_a_body_above_the_limit_is_not_encoded():
    evidence = FitEvidence(observations=1)
    big = ParametersEstimated(
        model="m",
        accelerator="a",
        law="l",
        law_version=1,
        values={f"parameter_{i}": 0.1 for i in range(60_000)},
        health=Health.PRIOR,
        evidence=evidence,
        estimator="e",
        estimated_at_s=0,
    )
    with pytest.raises(TooLarge, match=f"at most {MAX_MESSAGE_BYTES}"):
        encode(Emit(big), "tuner", NOW_S)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (good(subject="stoker.v1.nothing.known"), "belongs to no topic"),
        (good(subject="stoker.v1.capacity.unavailable"), "belongs to no topic"),
        (good(data=b" " * (MAX_MESSAGE_BYTES + 1)), f"at most {MAX_MESSAGE_BYTES} are read"),
        (with_header("x", "y" * 8192), "headers above 8192 bytes"),
        (with_header("ce-specversion", None), "ce-specversion is None"),
        (with_header("ce-specversion", "0.3"), "ce-specversion is '0.3': expected '1.0'"),
        (with_header("ce-type", None), "ce-type is None"),
        (with_header("ce-type", "stoker.v1.fleet.declared"), "expected 'stoker.v1.capacity.unavailable'"),
        (with_header("ce-id", None), "ce-id is missing"),
        (with_header("ce-id", ""), "ce-id is missing"),
        (with_header("ce-source", None), "ce-source is missing"),
        (with_header("ce-time", None), "ce-time is missing"),
        (with_header("ce-time", "yesterday"), "ce-time is 'yesterday': expected an RFC 3339 time"),
        (with_header("ce-time", "2025-10-09T08:55:00"), "with a zone"),
        (with_header("ce-expirytime", "soon"), "ce-expirytime is 'soon'"),
        (good(data=b""), "body is not a CapacityUnavailable"),
        (good(data=b"\xff\xfe"), "body is not a CapacityUnavailable"),
        (good(data=b"[]"), "body is not a CapacityUnavailable"),
        (good(data=b"null"), "body is not a CapacityUnavailable"),
        (good(data=b"[" * 100_000), "body is not a CapacityUnavailable"),
        (good(data=b'{"type": "\\ud800"}'), "body is not a CapacityUnavailable"),
        (good(data=b'{"type": ""}'), "type: "),
        (good(data=b'{"type": "A100", "since_s": NaN, "until_s": 1, "reason": ""}'), "since_s"),
        (
            good(data=unavailable(type="H100").model_dump_json().encode()),
            "subject is 'stoker.v1.capacity.unavailable.A100', but the body belongs to "
            "'stoker.v1.capacity.unavailable.H100'",
        ),
        (
            good(subject="stoker.v1.capacity.unavailable.=41100"),
            "but the body belongs to 'stoker.v1.capacity.unavailable.A100'",
        ),
    ],
)
def test_a_message_that_is_not_whole_is_refused_with_its_reason(raw: Raw, reason: str):
    with pytest.raises(Reject) as refused:
        decode(raw)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 5000


HOSTILE = st.dictionaries(
    st.one_of(st.sampled_from(sorted(good().headers)), st.sampled_from(["CE-ID", "Ce-Time"]), st.text()),
    st.one_of(st.text(max_size=60), st.sampled_from(["1.0", "%FF%00", "9999-12-31T23:59:59-23:59"])),
    max_size=12,
)


@given(HOSTILE, st.one_of(st.just(good().data), st.binary(max_size=200)), st.booleans())
@settings(max_examples=150)
def test_no_header_and_no_body_can_raise_anything_but_a_refusal(
    headers: dict[str, str], data: bytes, keep: bool
):
    raw = good(headers=dict(good().headers) | headers if keep else headers, data=data)
    try:
        event = decode(raw)
    except Reject as refused:
        assert str(refused)
    else:
        assert event.payload == unavailable()


def test_names_of_headers_are_read_in_any_case():
    upper = {name.upper(): value for name, value in good().headers.items()}
    assert decode(good(headers=upper)) == decode(good())


def test_problems_name_the_field_what_was_expected_and_the_value_and_count_the_rest():
    with pytest.raises(ValidationError) as refused:
        ParametersEstimated.model_validate({"model": 1, "values": {"x" * 10_000: -1}})
    text = problems(refused.value, most=2)
    assert text.startswith("model: Input should be a valid string, got '1'; ")
    assert text.endswith(" more")
    assert len(problems(refused.value, most=20)) < 3000


def test_an_alert_goes_to_the_subject_of_its_kind():
    alert = AlertRaised(kind=AlertKind.STALE_DATA, subject="s", message="", raised_at_s=0)
    assert encode(Emit(alert), "collector", NOW_S).subject == "stoker.v1.alert.raised.stale_data"
    assert json.loads(encode(Emit(alert), "collector", NOW_S).data)["kind"] == "stale_data"
