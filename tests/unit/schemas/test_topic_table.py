"""The topic table: subjects, filters, and who may do what."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.base import Contract
from schemas.subjects import decode_token
from schemas.topics import (
    ROOT,
    TOPIC_BY_NAME,
    TOPIC_BY_PAYLOAD,
    TOPICS,
    VERBS,
    Stream,
    Topic,
    dlq_subject,
    topic_of_subject,
)

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
BY_NAME = {t.name: t for t in TOPICS}


def matches(subject: str, pattern: str) -> bool:
    """Whether a subject matches a filter with `*` and a closing `>`, as a NATS server decides it."""
    tokens, wanted = subject.split("."), pattern.split(".")
    if wanted[-1] == ">":
        return len(tokens) >= len(wanted) and all(
            w in ("*", t) for w, t in zip(wanted[:-1], tokens, strict=False)
        )
    return len(tokens) == len(wanted) and all(w in ("*", t) for w, t in zip(wanted, tokens, strict=True))


def payload(topic: Topic, **keys: Any) -> Contract:
    return topic.payload.model_construct(**({"model": "m"} | keys))


@given(st.sampled_from(TOPICS), st.data())
def test_every_subject_matches_the_filter_of_its_own_topic_and_of_no_other(topic: Topic, data: st.DataObject):
    own_keys = {key: data.draw(NAMES) for key in topic.keys if key != "partition"}
    subject = topic.subject(payload(topic, **own_keys))
    assert [t.name for t in TOPICS if matches(subject, t.filter)] == [topic.name]
    assert topic_of_subject(subject) is topic
    tokens = subject.removeprefix(f"{topic.prefix}.").split(".") if topic.keys else []
    read = {k: decode_token(t) for k, t in zip(topic.keys, tokens, strict=True) if k != "partition"}
    assert read == own_keys


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "stoker",
        "stoker.v1",
        "stoker.v1.fleet",
        "stoker.v1.fleet.declared.more",
        "stoker.v1.forecast.issued",
        "stoker.v1.forecast.issued.a.b",
        "stoker.v2.fleet.declared",
        "other.v1.fleet.declared",
        "stoker.v1.dlq.STATE.tuner",
        "stoker.v1.svc.tuner.status",
        "stoker.v1.fleet.declaredx",
    ],
)
def test_a_subject_outside_the_table_has_no_topic(subject: str):
    assert topic_of_subject(subject) is None


def test_names_payloads_and_filters_are_unique():
    assert len(TOPIC_BY_NAME) == len(TOPIC_BY_PAYLOAD) == len({t.filter for t in TOPICS}) == len(TOPICS)
    assert len({v.subject for v in VERBS}) == len(VERBS)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_the_keys_and_the_moment_of_a_topic_are_required_fields_of_its_payload(topic: Topic):
    fields = topic.payload.model_fields
    for key in (*topic.keys, topic.as_of):
        if key != "partition":
            assert fields[key].is_required(), key
    if "partition" in topic.keys:
        assert fields["model"].is_required()


def test_only_the_optimizer_publishes_plans_and_only_the_actuator_decisions():
    assert BY_NAME["plan.proposed"].publishers == BY_NAME["plan.issued"].publishers == ("optimizer",)
    for name in ("decision.made", "actuation.applied", "actuation.failed"):
        assert BY_NAME[name].publishers == ("actuator",)


def test_parked_messages_and_requests_belong_to_no_topic_and_to_no_stream_but_the_parked():
    parked = dlq_subject(Stream.STATE, "tuner")
    assert parked == f"{ROOT}.dlq.STATE.tuner"
    for subject in (parked, *(v.subject for v in VERBS)):
        assert not any(matches(subject, t.filter) for t in TOPICS)
