"""Streams, consumers and buckets, derived from the topic table. Pure data; the bus applies or verifies it."""

from dataclasses import dataclass

from schemas.subjects import PARTITIONS
from schemas.topics import ROOT, TOPICS, Delivery, Stream

SNAPSHOTS = "SNAPSHOTS"
LEASES = "LEASES"
DEDUPLICATION_S = 600.0
ACK_WAIT_S = 30.0


@dataclass(frozen=True)
class StreamSpec:
    """One stream as it must be; zero means no limit."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: float = 0.0
    max_bytes: int = 0
    max_messages_per_subject: int = 0
    summary: str = ""


@dataclass(frozen=True)
class ConsumerSpec:
    """One durable pull consumer as it must be."""

    stream: str
    name: str
    filters: tuple[str, ...]
    newest_only: bool


@dataclass(frozen=True)
class Topology:
    """Everything that must exist on the server before services start."""

    streams: tuple[StreamSpec, ...]
    consumers: tuple[ConsumerSpec, ...]
    buckets: tuple[str, ...]


_LIMITS = {
    Stream.STATE: {"max_messages_per_subject": 64, "max_bytes": 2 << 30},
    Stream.TELEMETRY: {"max_age_s": 6 * 3600.0, "max_bytes": 2 << 30},
    Stream.DECISIONS: {"max_age_s": 30 * 86400.0, "max_bytes": 2 << 30},
    Stream.DLQ: {"max_age_s": 7 * 86400.0, "max_bytes": 1 << 30},
}
_SUMMARY = {
    Stream.STATE: "last values of every subject: fleet, inventory, parameters, forecasts, plans",
    Stream.TELEMETRY: "measured windows",
    Stream.DECISIONS: "decisions, actuations and alerts: the audit trail",
    Stream.DLQ: "messages that were refused, as they came",
}


def topology() -> Topology:
    """All streams, durable consumers and buckets that the topic table asks for."""
    streams = [
        StreamSpec(
            name=stream.value,
            subjects=tuple(t.filter for t in TOPICS if t.stream is stream) or (f"{ROOT}.dlq.>",),
            summary=_SUMMARY[stream],
            **_LIMITS[stream],  # type: ignore[arg-type]
        )
        for stream in Stream
    ]
    services = sorted({name for topic in TOPICS for name in topic.consumers})
    consumers = [spec for service in services for spec in consumers_of(service)]
    return Topology(tuple(streams), tuple(consumers), (SNAPSHOTS, LEASES))


def partitioned(service: str) -> bool:
    """Whether instances of a service share its work: it needs every message of a topic that has partitions."""
    return any("partition" in t.keys and t.consumers.get(service) is Delivery.EVERY for t in TOPICS)


def consumer_of_partition(service: str, partition: str) -> ConsumerSpec:
    """The durable consumer of one partition of what a partitioned service needs every message of."""
    (topic,) = (t for t in TOPICS if "partition" in t.keys and t.consumers.get(service) is Delivery.EVERY)
    keys = (partition if key == "partition" else "*" for key in topic.keys)
    subject = ".".join((topic.prefix, *keys))
    return ConsumerSpec(topic.stream.value, f"{service}-{partition}", (subject,), newest_only=False)


def consumers_of(service: str) -> tuple[ConsumerSpec, ...]:
    """The durable consumers of one service: one for each stream that it reads.

    A partitioned service has one for each partition. What it needs only the newest of, each of its instances
    follows for itself.
    """
    if partitioned(service):
        return tuple(consumer_of_partition(service, str(number)) for number in range(PARTITIONS))
    specs = []
    for stream in Stream:
        wanted = [t for t in TOPICS if t.stream is stream and service in t.consumers]
        if wanted:
            newest = all(t.consumers[service] is Delivery.NEWEST for t in wanted)
            specs.append(ConsumerSpec(stream.value, service, tuple(sorted(t.filter for t in wanted)), newest))
    return tuple(specs)


def newest_filters(service: str) -> dict[str, tuple[str, ...]]:
    """By stream, the subjects of which a service needs only the newest: it reads them when it starts."""
    found: dict[str, list[str]] = {}
    for topic in TOPICS:
        if topic.consumers.get(service) is Delivery.NEWEST:
            found.setdefault(topic.stream.value, []).append(topic.filter)
    return {stream: tuple(filters) for stream, filters in found.items()}


def inbox_prefix(service: str) -> str:
    """Where replies to a service go, so that no other user need listen there."""
    return f"_INBOX.{service}"
