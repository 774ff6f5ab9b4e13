"""Streams, consumers and buckets on the server: create them, or say how they differ from the topic table."""

from collections.abc import Sequence
from typing import Any

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    KeyValueConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from services.runtime.errors import Fatal, TopologyDrift
from services.runtime.settings import BusSettings
from services.runtime.topology import ACK_WAIT_S, DEDUPLICATION_S, ConsumerSpec, StreamSpec, Topology

_STREAM_FIELDS = (
    "subjects",
    "storage",
    "num_replicas",
    "max_age",
    "max_bytes",
    "max_msgs_per_subject",
    "duplicate_window",
    "allow_direct",
)
_CONSUMER_FIELDS = (
    "filter_subjects",
    "deliver_policy",
    "ack_policy",
    "ack_wait",
    "max_ack_pending",
    "max_deliver",
)


async def apply(jetstream: JetStreamContext, topology: Topology, settings: BusSettings) -> list[str]:
    """Create or update what the topology asks for; returns what was changed, nothing the second time.

    Raises Fatal for a stream that differs in what the server does not change.
    """
    changed = []
    for stream in topology.streams:
        wanted = _stream_config(stream, settings)
        try:
            held = (await jetstream.stream_info(stream.name)).config
        except NotFoundError:
            await jetstream.add_stream(wanted)
            changed.append(f"stream {stream.name} created")
            continue
        if differences := _differences(held, wanted, _STREAM_FIELDS):
            try:
                await jetstream.update_stream(wanted)
            except APIError as error:
                raise Fatal(
                    f"stream {stream.name}: {'; '.join(differences)}; the server refuses to change that: "
                    f"{error.description}"
                ) from error
            changed.append(f"stream {stream.name} updated")
    for bucket in topology.buckets:
        try:
            held = (await jetstream.stream_info(f"KV_{bucket}")).config
        except NotFoundError:
            await jetstream.create_key_value(
                KeyValueConfig(
                    bucket=bucket,
                    history=1,
                    storage=StorageType(settings.storage),
                    replicas=settings.replicas,
                    direct=True,
                )
            )
            changed.append(f"bucket {bucket} created")
            continue
        if not held.allow_direct:
            await jetstream.update_stream(held, allow_direct=True)
            changed.append(f"bucket {bucket} updated")
    for consumer in topology.consumers:
        if await consumer_drift(jetstream, consumer):
            try:
                await jetstream.add_consumer(consumer.stream, _consumer_config(consumer))
            except APIError:
                # Not everything can be updated; what a new consumer delivers again, services skip.
                await jetstream.delete_consumer(consumer.stream, consumer.name)
                await jetstream.add_consumer(consumer.stream, _consumer_config(consumer))
            changed.append(f"consumer {consumer.name} of {consumer.stream} created or updated")
    return changed


async def drift(jetstream: JetStreamContext, topology: Topology, settings: BusSettings) -> list[str]:
    """What differs between the server and the topology; nothing when all is well."""
    found = []
    for stream in topology.streams:
        try:
            held = (await jetstream.stream_info(stream.name)).config
        except NotFoundError:
            found.append(f"stream {stream.name} does not exist")
            continue
        differences = _differences(held, _stream_config(stream, settings), _STREAM_FIELDS)
        found += [f"stream {stream.name}: {text}" for text in differences]
    for bucket in topology.buckets:
        found += await _bucket_drift(jetstream, bucket)
    for consumer in topology.consumers:
        found += await consumer_drift(jetstream, consumer)
    return found


async def consumer_drift(jetstream: JetStreamContext, spec: ConsumerSpec) -> list[str]:
    """How a durable consumer differs from what it must be."""
    what = f"consumer {spec.name} of {spec.stream}"
    try:
        held = (await jetstream.consumer_info(spec.stream, spec.name)).config
    except NotFoundError:
        return [f"{what} does not exist"]
    return [f"{what}: {text}" for text in _differences(held, _consumer_config(spec), _CONSUMER_FIELDS)]


async def verify_consumer(jetstream: JetStreamContext, spec: ConsumerSpec) -> None:
    """Raises TopologyDrift unless the durable consumer exists and is as it must be.

    The library's own bind ignores a configuration that differs, so it is compared here.
    """
    if found := await consumer_drift(jetstream, spec):
        raise TopologyDrift(f"{'; '.join(found)}; run `stoker bus apply`")


async def _bucket_drift(jetstream: JetStreamContext, bucket: str) -> list[str]:
    """How a bucket differs: only what is read directly has the key in the request's subject, which rights need."""
    try:
        held = (await jetstream.stream_info(f"KV_{bucket}")).config
    except NotFoundError:
        return [f"bucket {bucket} does not exist"]
    return [] if held.allow_direct else [f"bucket {bucket} is not read directly"]


def _stream_config(spec: StreamSpec, settings: BusSettings) -> StreamConfig:
    return StreamConfig(
        name=spec.name,
        description=spec.summary,
        subjects=list(spec.subjects),
        retention=RetentionPolicy.LIMITS,
        storage=StorageType(settings.storage),
        num_replicas=settings.replicas,
        max_age=spec.max_age_s,
        max_bytes=spec.max_bytes or -1,
        max_msgs_per_subject=spec.max_messages_per_subject or -1,
        duplicate_window=DEDUPLICATION_S,
        allow_direct=True,
    )


def _consumer_config(spec: ConsumerSpec) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=spec.name,
        name=spec.name,
        filter_subjects=list(spec.filters),
        deliver_policy=DeliverPolicy.LAST_PER_SUBJECT if spec.newest_only else DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        max_ack_pending=20_000,
        max_deliver=-1,
    )


def _differences(held: Any, wanted: Any, fields: Sequence[str]) -> list[str]:
    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, list) else value

    found = []
    for field in fields:
        actual, expected = plain(getattr(held, field)), plain(getattr(wanted, field))
        if actual != expected:
            found.append(f"{field} is {actual}, expected {expected}")
    return found
