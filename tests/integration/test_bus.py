"""The bus on a real server: what it refuses to send, requests, reading, parking, buckets."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from nats.errors import TimeoutError as NatsTimeout
from nats.micro import add_service
from plain_nats import TUNER_TELEMETRY, Connect, library, next_within, stock, until, window

from schemas.telemetry import CapacityUnavailable
from services.runtime.bus import Bucket, Bus, Conflict
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, Raw, encode
from services.runtime.errors import Retry, TooLarge
from services.runtime.topology import SNAPSHOTS, topology

# What would end the connection is not sent.


async def test_a_subject_or_a_body_beyond_what_the_server_takes_is_refused_and_the_connection_stays(bus: Bus):
    wide = CapacityUnavailable(type="語" * 253, since_s=0, until_s=0, reason="")
    with pytest.raises(TooLarge, match="at most 2048"):
        await bus.publish(encode(Emit(wide), "actuator", 1.0))
    snapshots = await bus.bucket(SNAPSHOTS)
    with pytest.raises(TooLarge, match="the server takes 1048576"):
        await snapshots.put("key", b"x" * (1 << 20))
    huge = replace(stock(1.0), headers={"x": "y" * (1 << 20)})
    with pytest.raises(TooLarge):
        await bus.publish(huge)
    await snapshots.put("key", b"x" * ((1 << 20) - 64))
    assert not (await bus.publish(stock(1.0))).duplicate


# Requests.


async def test_the_librarys_handlers_run_one_after_another_and_the_buss_side_by_side(
    nats: EmbeddedServer, bus: Bus, connect: Connect
):
    together = asyncio.Barrier(2)

    async def meet(_: bytes) -> bytes:
        await together.wait()
        return b"met"

    async with library(nats) as client:

        async def handle(message: Any) -> None:
            await message.respond(await meet(message.data))

        await client.subscribe("plain", cb=handle)
        await client.flush()
        with pytest.raises(NatsTimeout):
            await asyncio.gather(*(client.request("plain", b"", timeout=0.3) for _ in range(2)))
    await together.reset()
    await bus.serve("1.0.0", {"meet": ("served.meet", meet)})
    asking = await connect("optimizer")
    answers = await asyncio.gather(*(asking.request("served.meet", b"") for _ in range(2)))
    assert answers == [b"met", b"met"]


async def test_the_librarys_stop_drops_requests_in_hand(nats: EmbeddedServer):
    async with library(nats) as client, library(nats) as asking:
        began = asyncio.Event()

        async def handle(request: Any) -> None:
            began.set()
            await asyncio.sleep(0.1)
            await request.respond(b"done")

        service = await add_service(client, name="plain", version="1.0.0")
        await service.add_endpoint(name="slow", subject="plain.slow", handler=handle)
        await client.flush()
        requests = [asyncio.create_task(asking.request("plain.slow", b"", timeout=0.8)) for _ in range(3)]
        await began.wait()
        await service.stop()
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert any(isinstance(answer, NatsTimeout) for answer in answers)


async def test_requests_in_flight_are_answered_when_the_bus_stops_and_later_ones_told_that_nobody_is_there(
    bus: Bus, connect: Connect
):
    began, go_on = 0, asyncio.Event()

    async def slow(data: bytes) -> bytes:
        nonlocal began
        began += 1
        await go_on.wait()
        return b"done " + data

    await bus.serve("1.0.0", {"slow": ("served.slow", slow)})
    asking = await connect("optimizer")
    requests = [asyncio.create_task(asking.request("served.slow", b"%d" % i)) for i in range(50)]
    await until(lambda: began > 0)
    stopping = asyncio.create_task(bus.stop_requests())
    await until(lambda: bus._micro is None or not bus._micro._endpoints)
    go_on.set()
    await asyncio.wait_for(stopping, 60)
    answers = await asyncio.gather(*requests, return_exceptions=True)
    told = [a for a in answers if isinstance(a, Retry)]
    answered = [a for a in answers if isinstance(a, bytes)]
    assert len(told) + len(answered) == 50
    assert len(answered) == began
    assert all("no answer on served.slow" in str(a) and "timeout" not in str(a).lower() for a in told)
    with pytest.raises(Retry, match="no responders"):
        await asking.request("served.slow", b"")


async def test_a_request_that_nobody_can_be_answered_on_does_not_disturb_the_others(
    bus: Bus, connect: Connect
):
    async def echo(data: bytes) -> bytes:
        return data

    await bus.serve("1.0.0", {"echo": ("served.echo", echo)})
    asking = await connect("optimizer")
    await asking._client.publish("served.echo", b"no reply subject")
    assert await asking.request("served.echo", b"x") == b"x"
    await until(lambda: not bus._in_flight)


# Reading and parking.


async def test_the_newest_of_each_subject_and_everything_are_read_in_the_order_of_the_stream(bus: Bus):
    for at_s, server in ((1.0, "a"), (1.0, "b"), (2.0, "a"), (3.0, "c"), (2.0, "b")):
        await bus.publish(stock(at_s, server))
    filters = ["stoker.v1.inventory.observed.*"]
    assert [raw.sequence for raw in await bus.newest("STATE", filters)] == [3, 4, 5]
    assert [raw.sequence for raw in await bus.everything("STATE", filters)] == [1, 2, 3, 4, 5]
    assert await bus.newest("STATE", ["stoker.v1.plan.issued"]) == []


async def test_more_than_a_batch_is_read_whole(bus: Bus, connect: Connect):
    await asyncio.gather(*(bus.publish(window(1.0 + i)) for i in range(300)))
    few = await connect("tuner", batch=7)
    found = await few.everything("TELEMETRY", ["stoker.v1.telemetry.observed.*.*"])
    assert [raw.sequence for raw in found] == list(range(1, 301))
    pull, seen = await few.pull(TUNER_TELEMETRY), list[int]()
    while len(seen) < 300:
        batch = await next_within(pull)
        assert 1 <= len(batch) <= 7
        seen += [raw.sequence for raw in batch]
        for raw in batch:
            await few.ack(raw)
    assert seen == list(range(1, 301))


async def test_no_consumer_is_left_over_from_reading(nats: EmbeddedServer, bus: Bus):
    await bus.publish(stock(1.0))
    await bus.newest("STATE", ["stoker.v1.inventory.observed.*"])
    async with library(nats) as client:
        held = await client.jetstream().consumers_info("STATE")
    assert {info.name for info in held} == {
        spec.name for spec in topology().consumers if spec.stream == "STATE"
    }


async def test_reading_a_stream_that_does_not_exist_is_to_be_tried_again(connect: Connect):
    bus = await connect("tuner")
    with pytest.raises(Retry, match="reading NOWHERE"):
        await bus.newest("NOWHERE", [">"])


async def test_a_message_of_any_headers_and_any_size_that_was_stored_can_be_parked(
    nats: EmbeddedServer, bus: Bus
):
    headers = {"a/b(c)": "x", "ce-id": "naïve\u2028", "Nats-Msg-Id": "1", "Big": "y" * 20_000, "": "z"}
    limit = bus._client.max_payload
    for i, data in enumerate((b"\x00\xff", b"x" * (limit - 10))):
        raw = Raw("stoker.v1.capacity.observed", data, headers, "STATE", 5 + i)
        await bus.park(raw, "stoker.v1.dlq.STATE.tuner", "why\r\nInjected: yes", "tuner")
    small, large = await bus.everything("DLQ", ["stoker.v1.dlq.>"])
    assert small.data == b"\x00\xff"
    assert small.headers["ce-id"] == "na?ve?"
    assert small.headers["stoker-reason"] == "why??Injected: yes"
    assert small.headers["stoker-sequence"] == "5"
    assert not {"Injected", "a/b(c)", "Big", "stoker-bytes"} & set(small.headers)
    assert large.headers["stoker-bytes"] == str(limit - 10)
    assert limit - 4096 < len(large.data) < limit
    assert bus.connected


async def test_a_message_parked_twice_is_kept_once_for_each_consumer(bus: Bus):
    raw = Raw("stoker.v1.capacity.observed", b"{}", {}, "STATE", 5)
    for consumer in ("tuner", "optimizer", "tuner"):
        await bus.park(raw, f"stoker.v1.dlq.STATE.{consumer}", "r", consumer)
    assert len(await bus.everything("DLQ", ["stoker.v1.dlq.>"])) == 2


async def test_a_retried_message_comes_again_and_counts_its_deliveries(bus: Bus):
    pull = await bus.pull(TUNER_TELEMETRY)
    await bus.publish(window(1.0))
    first = (await next_within(pull))[0]
    await bus.retry(first, 0.05)
    again = (await next_within(pull))[0]
    assert (first.deliveries, again.deliveries) == (1, 2)
    assert again.sequence == first.sequence
    await bus.ack(again)


async def test_on_a_closed_connection_acknowledging_is_to_be_tried_again(connect: Connect, bus: Bus):
    other = await connect("tuner")
    pull = await other.pull(TUNER_TELEMETRY)
    await bus.publish(window(1.0))
    raw = (await next_within(pull))[0]
    await other.close()
    with pytest.raises(Retry):
        await other.ack(raw)
    with pytest.raises(Retry):
        await other.retry(raw, 1.0)


# Buckets.


async def test_a_bucket_keeps_the_keys_of_each_service_apart(bus: Bus, connect: Connect):
    own, other = await bus.bucket(SNAPSHOTS), await (await connect("predictor")).bucket(SNAPSHOTS)
    await own.put("a", b"1")
    await own.put("b=2F", b"2")
    await own.put("a", b"3")
    await other.put("a", b"4")
    assert await values(own) == {"a": b"3", "b=2F": b"2"}
    await own.delete("a")
    assert await values(own) == {"b=2F": b"2"}
    assert await own.get("a") is None
    assert await values(other) == {"a": b"4"}


async def test_a_bucket_reads_the_keys_of_some_groups_alone_with_their_revisions(bus: Bus):
    bucket = await bus.bucket(SNAPSHOTS)
    for key in ("1.a", "1.b", "12.a", "2.a", "a"):
        await bucket.put(key, key.encode())
    assert await values(bucket, "1", "2") == {"1.a": b"1.a", "1.b": b"1.b", "2.a": b"2.a"}
    (value, revision) = (await bucket.all("12"))["12.a"]
    assert await bucket.get("12.a") == (value, revision)


async def values(bucket: Bucket, *groups: str) -> dict[str, bytes]:
    return {key: value for key, (value, _) in (await bucket.all(*groups)).items()}


async def test_a_bucket_tells_who_was_first(bus: Bus):
    bucket = await bus.bucket(SNAPSHOTS)
    first = await bucket.create("k", b"1")
    with pytest.raises(Conflict):
        await bucket.create("k", b"2")
    second = await bucket.update("k", b"2", first)
    with pytest.raises(Conflict):
        await bucket.update("k", b"3", first)
    with pytest.raises(Conflict):
        await bucket.delete("k", first)
    assert await bucket.get("k") == (b"2", second)
    await bucket.delete("k", second)
    assert await bucket.get("k") is None
    assert await bucket.create("k", b"4") > second


async def test_a_bucket_without_the_bus_is_to_be_tried_again(connect: Connect, bus: Bus):
    other = await connect("tuner")
    bucket = await other.bucket(SNAPSHOTS)
    await other.close()
    for doing in (bucket.get("k"), bucket.create("k", b""), bucket.update("k", b"", 1), bucket.delete("k")):
        with pytest.raises(Retry):
            await doing
