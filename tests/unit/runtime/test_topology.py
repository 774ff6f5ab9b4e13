"""Streams, consumers and buckets derive from the topic table."""

import pytest

from schemas.subjects import PARTITIONS
from schemas.topics import TOPICS, Delivery, Stream, Topic
from services.runtime.topology import (
    ACK_WAIT_S,
    DEDUPLICATION_S,
    LEASES,
    SNAPSHOTS,
    consumers_of,
    inbox_prefix,
    newest_filters,
    partitioned,
    topology,
)

SERVICES = sorted({name for topic in TOPICS for name in topic.consumers})


def test_every_stream_of_the_table_exists_once_with_exactly_the_filters_of_its_topics():
    streams = {spec.name: spec for spec in topology().streams}
    assert set(streams) == {stream.value for stream in Stream}
    for stream in Stream:
        wanted = {topic.filter for topic in TOPICS if topic.stream is stream}
        assert set(streams[stream.value].subjects) == (wanted or {"stoker.v1.dlq.>"})


def test_no_subject_is_kept_in_two_streams():
    subjects = [subject for spec in topology().streams for subject in spec.subjects]
    assert len(set(subjects)) == len(subjects)


def test_every_stream_is_bounded():
    for spec in topology().streams:
        assert spec.max_bytes > 0
        assert spec.max_age_s > 0 or spec.max_messages_per_subject > 0
        assert spec.max_age_s == 0 or spec.max_age_s >= DEDUPLICATION_S


def covers(wide: str, narrow: str) -> bool:
    pairs = list(zip(wide.split("."), narrow.split("."), strict=True))
    return all(w in ("*", n) for w, n in pairs)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_every_message_of_a_topic_is_delivered_once_to_a_partitioned_consumer_that_needs_every_one(
    topic: Topic,
):
    for service in filter(partitioned, SERVICES):
        specs = [spec for spec in topology().consumers if spec.name.startswith(f"{service}-")]
        filters = [f for spec in specs for f in spec.filters if spec.stream == topic.stream.value]
        if topic.consumers.get(service) is Delivery.EVERY:
            for number in range(PARTITIONS):
                subject = topic.filter.replace("*", str(number), 1)
                assert sum(covers(f, subject) for f in filters) == 1
        else:
            assert filters == [] or topic.stream is Stream.TELEMETRY


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_every_consumer_of_the_table_has_exactly_one_durable_consumer_for_the_topic(topic: Topic):
    for service in (s for s in SERVICES if not partitioned(s)):
        covering = [
            spec
            for spec in topology().consumers
            if spec.name == service and spec.stream == topic.stream.value and topic.filter in spec.filters
        ]
        assert len(covering) == (1 if service in topic.consumers else 0)


@pytest.mark.parametrize("service", [s for s in SERVICES if not partitioned(s)])
def test_a_service_reads_nothing_beyond_the_table_and_every_message_where_any_topic_needs_every(service: str):
    for spec in consumers_of(service):
        topics = [t for t in TOPICS if t.filter in spec.filters]
        assert {t.filter for t in topics} == set(spec.filters)
        assert spec.newest_only == all(t.consumers[service] is Delivery.NEWEST for t in topics)


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_needs_only_the_newest_of_is_what_it_reads_when_it_starts(service: str):
    found = {f for filters in newest_filters(service).values() for f in filters}
    assert found == {t.filter for t in TOPICS if t.consumers.get(service) is Delivery.NEWEST}


def test_a_service_without_topics_has_no_consumer():
    assert consumers_of("simulator") == ()
    assert newest_filters("simulator") == {}


def test_buckets_and_inboxes_are_private_and_the_wait_for_an_acknowledgement_is_finite():
    assert topology().buckets == (SNAPSHOTS, LEASES)
    assert len({inbox_prefix(service) for service in SERVICES}) == len(SERVICES)
    assert 0 < ACK_WAIT_S < DEDUPLICATION_S


def test_the_services_that_need_every_window_are_the_ones_that_are_partitioned():
    assert {service for service in SERVICES if partitioned(service)} == {"tuner", "predictor"}
