"""Facts about nats-py that were measured: each shown on the plain library, and that the bus does not suffer."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats as plain
import pytest
from nats.aio.client import DEFAULT_MAX_RECONNECT_ATTEMPTS, Client
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.micro import add_service

from schemas.base import Quality
from schemas.subjects import partition_of
from schemas.telemetry import CapacityUnavailable, InventoryObserved, TelemetryObserved
from services.runtime.bus import Bucket, Bus, Conflict, Pull
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, Raw, Wire, encode
from services.runtime.errors import Denied, Fatal, Retry, TooLarge, TopologyDrift
from services.runtime.settings import BusSettings
from services.runtime.topology import SNAPSHOTS, consumer_of_partition, topology

Connect = Callable[..., Awaitable[Bus]]
TUNER_TELEMETRY = consumer_of_partition("tuner", partition_of("m"))


def window(end_s: float, server: str = "s") -> Wire:
    payload = TelemetryObserved(
        server=server, model="m", window_start_s=0, window_end_s=end_s, quality=Quality.OK
    )
    return encode(Emit(payload), "collector", 1.0)


def stock(at_s: float, server: str = "s", **emit: Any) -> Wire:
    payload = InventoryObserved(server=server, model="m", observed_at_s=at_s, quality=Quality.OK)
    return encode(Emit(payload, **emit), "collector", 1.0)


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def library(server: EmbeddedServer, **options: Any) -> AsyncIterator[Client]:
    async def ignore(_: Exception) -> None: ...

    client = await plain.connect(server.url, error_cb=ignore, **options)
    try:
        yield client
    finally:
        await client.close()


async def next_within(pull: Pull, seconds: float = 10.0) -> list[Raw]:
    return await asyncio.wait_for(pull.next(), seconds)


# Draining after an empty pull.


async def test_the_librarys_drain_waits_out_its_timeout_after_an_empty_fetch(nats: EmbeddedServer, bus: Bus):
    async with library(nats, drain_timeout=1) as client:
        subscription = await client.jetstream().pull_subscribe_bind(TUNER_TELEMETRY.name, "TELEMETRY")
        # It does so when the server's answer to the empty fetch arrives after the fetch has given up.
        deadline = time.monotonic() + 10
        while subscription._sub._pending_queue.empty():
            assert time.monotonic() < deadline
            with pytest.raises(NatsTimeout):
                await subscription.fetch(1, timeout=0.05)
            await asyncio.sleep(0.02)
        began = time.monotonic()
        await client.drain()
        assert time.monotonic() - began >= 0.9


async def test_the_bus_closes_at_once_after_an_empty_pull(connect: Connect, bus: Bus):
    other = await connect("tuner")
    pull = await other.pull(TUNER_TELEMETRY)
    with pytest.raises(TimeoutError):
        await next_within(pull, 0.1)
    waiting = asyncio.create_task(pull.next())
    await asyncio.sleep(0)
    began = time.monotonic()
    await other.close()
    assert time.monotonic() - began < 0.5
    assert await asyncio.wait_for(waiting, 1.0) == []


# Configuration that differs.


async def test_the_librarys_durable_pull_ignores_a_configuration_that_differs(nats: EmbeddedServer, bus: Bus):
    async with library(nats) as client:
        differing = ConsumerConfig(ack_wait=1.0, max_deliver=2)
        subscription = await client.jetstream().pull_subscribe(
            TUNER_TELEMETRY.filters[0], durable=TUNER_TELEMETRY.name, stream="TELEMETRY", config=differing
        )
        info = await subscription.consumer_info()
        assert (info.config.ack_wait, info.config.max_deliver) == (30.0, -1)


async def test_applying_the_topology_twice_changes_nothing_the_second_time(connect: Connect):
    bus = await connect("tuner")
    missing = await bus.verify(topology())
    assert len(missing) == len(topology().streams) + len(topology().consumers) + len(topology().buckets)
    assert all("does not exist" in text for text in missing)
    assert len(await bus.apply(topology())) == len(missing)
    assert await bus.verify(topology()) == []
    assert await bus.apply(topology()) == []


async def test_what_differs_is_listed_refused_at_start_and_mended(nats: EmbeddedServer, bus: Bus):
    async with library(nats) as client:
        jetstream = client.jetstream()
        held = (await jetstream.consumer_info("TELEMETRY", TUNER_TELEMETRY.name)).config
        await jetstream.add_consumer("TELEMETRY", held.evolve(ack_wait=1.0, max_deliver=2))
        stream = (await jetstream.stream_info("DECISIONS")).config
        await jetstream.update_stream(stream.evolve(max_age=60.0, duplicate_window=10.0))
        assert await jetstream.delete_key_value(SNAPSHOTS)
    found = "; ".join(await bus.verify(topology()))
    assert f"consumer {TUNER_TELEMETRY.name} of TELEMETRY: ack_wait is 1.0, expected 30.0" in found
    assert f"consumer {TUNER_TELEMETRY.name} of TELEMETRY: max_deliver is 2, expected -1" in found
    assert "stream DECISIONS: max_age is 60.0, expected 2592000.0" in found
    assert "bucket SNAPSHOTS does not exist" in found
    with pytest.raises(TopologyDrift, match=r"ack_wait is 1\.0.*stoker bus apply"):
        await bus.pull(TUNER_TELEMETRY)
    with pytest.raises(TopologyDrift, match="bucket SNAPSHOTS does not exist"):
        await bus.bucket(SNAPSHOTS)
    assert len(await bus.apply(topology())) == 3
    assert await bus.verify(topology()) == []
    await bus.pull(TUNER_TELEMETRY)


async def test_a_consumer_that_differs_in_what_cannot_be_updated_is_made_again(
    nats: EmbeddedServer, bus: Bus
):
    async with library(nats) as client:
        jetstream = client.jetstream()
        await jetstream.delete_consumer("TELEMETRY", TUNER_TELEMETRY.name)
        await jetstream.add_consumer(
            "TELEMETRY",
            ConsumerConfig(
                name=TUNER_TELEMETRY.name,
                durable_name=TUNER_TELEMETRY.name,
                deliver_policy=DeliverPolicy.NEW,
                ack_policy=AckPolicy.NONE,
            ),
        )
    assert await bus.apply(topology()) == [f"consumer {TUNER_TELEMETRY.name} of TELEMETRY created or updated"]
    assert await bus.verify(topology()) == []


async def test_a_stream_that_differs_in_what_cannot_be_changed_is_refused_by_name(connect: Connect, bus: Bus):
    other = await connect("tuner", storage="file")
    with pytest.raises(
        Fatal, match=r"stream STATE: storage is .*memory.*; the server refuses to change that"
    ):
        await other.apply(topology())


async def test_an_account_without_jetstream_is_told_what_was_wanted(tmp_path: Path):
    accounts = "accounts { A { users = [ {user: a, password: a} ] } }"
    async with EmbeddedServer(folder=tmp_path, extra_config=accounts) as server:
        settings = BusSettings.model_validate({"url": server.url, "user": "a", "password": "a"})
        bus = await Bus.connect(settings, "tuner")
        with pytest.raises(Fatal, match="creating streams and consumers at nats://"):
            await bus.apply(topology())
        with pytest.raises(Fatal, match="verifying consumer tuner-"):
            await bus.pull(TUNER_TELEMETRY)
        await bus.close()


# A publish whose acknowledgement is lost.


class Proxy:
    """Stands between client and server; while `held`, nothing that the server says arrives."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    def hold(self) -> None:
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        for source, sink, held in ((reader, far_writer, False), (far_reader, writer, True)):
            task = asyncio.create_task(self._copy(source, sink, held))
            self._tasks.add(task)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, held: bool) -> None:
        try:
            while data := await source.read(65536):
                if held:
                    await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


async def test_a_publish_that_times_out_may_still_be_stored(nats: EmbeddedServer, bus: Bus):
    async with Proxy(nats.port) as proxy:
        client = await plain.connect(proxy.url)
        proxy.hold()
        with pytest.raises(NatsTimeout):
            await client.jetstream().publish("stoker.v1.capacity.observed", b"{}", timeout=0.2)
        assert (await bus.everything("STATE", ["stoker.v1.capacity.observed"]))[0].data == b"{}"
        proxy.release()
        await client.close()


@pytest.mark.parametrize("expected", [None, 0])
async def test_a_publish_whose_acknowledgement_is_lost_is_stored_once_and_reported_as_there_before(
    nats: EmbeddedServer, bus: Bus, connect: Connect, expected: int | None
):
    async with Proxy(nats.port) as proxy:
        slow = await connect("collector", url=proxy.url, publish_timeout_s=0.2)
        proxy.hold()
        wire = stock(1.0, expected_last_sequence=expected)
        publishing = asyncio.create_task(slow.publish(wire))
        kept = list[Raw]()
        while not kept:
            kept = await bus.everything("STATE", [wire.subject])
        await asyncio.sleep(0.25)
        assert not publishing.done()
        proxy.release()
        stored = await asyncio.wait_for(publishing, 5)
        assert stored.duplicate
        assert stored.sequence == kept[0].sequence
        assert len(await bus.everything("STATE", [wire.subject])) == 1
        await slow.close()


async def test_a_publish_that_is_never_acknowledged_is_to_be_done_again_later(
    nats: EmbeddedServer, bus: Bus, connect: Connect
):
    async with Proxy(nats.port) as proxy:
        slow = await connect("collector", url=proxy.url, publish_timeout_s=0.1, publish_deadline_s=0.3)
        proxy.hold()
        with pytest.raises(Retry, match=r"publishing to stoker\.v1\.inventory"):
            await slow.publish(stock(1.0))
        proxy.release()
        await slow.close()


async def test_duplicates_are_known_per_stream_so_an_identifier_must_name_its_subject(
    nats: EmbeddedServer, bus: Bus
):
    async with library(nats) as client:
        jetstream, header = client.jetstream(), {"Nats-Msg-Id": "one"}
        first = await jetstream.publish("stoker.v1.capacity.observed", b"1", headers=header)
        other = await jetstream.publish("stoker.v1.decision.made.s", b"2", headers=header)
        lost = await jetstream.publish("stoker.v1.plan.issued", b"3", headers=header)
        assert (first.duplicate, other.duplicate, lost.duplicate) == (None, None, True)
    wires = [stock(1.0, "a"), stock(1.0, "b"), window(1.0, "a")]
    assert [(await bus.publish(w)).duplicate for w in wires] == [False, False, False]
    assert [(await bus.publish(w)).duplicate for w in wires] == [True, True, True]


async def test_an_expected_sequence_that_no_longer_holds_is_a_conflict(bus: Bus):
    first = await bus.publish(stock(1.0, expected_last_sequence=0))
    with pytest.raises(Conflict, match="wrong last sequence"):
        await bus.publish(stock(2.0, expected_last_sequence=0))
    await bus.publish(stock(2.0, expected_last_sequence=first.sequence))


# A denied publish.

DENYING = """
authorization { users = [
  {user: "admin", password: "p"},
  {user: "tuner", password: "p", permissions: {
    publish: {deny: ["stoker.v1.plan.>"]}, subscribe: {deny: ["secret.>"]}}}
] }
"""


async def test_a_denied_publish_looks_like_a_time_out_to_the_library_and_has_its_reason_on_the_bus(
    tmp_path: Path,
):
    async with EmbeddedServer(folder=tmp_path, extra_config=DENYING) as server:
        settings = {"url": server.url, "password": "p", "storage": "memory", "publish_timeout_s": 0.3}
        admin = await Bus.connect(BusSettings.model_validate(settings | {"user": "admin"}), "admin")
        await admin.apply(topology())
        subject = "stoker.v1.plan.proposed.meta-llama=2FLlama"
        async with library(server, user="tuner", password="p") as client:
            with pytest.raises(NatsTimeout):
                await client.jetstream().publish(subject, b"{}", timeout=0.3)
        bus = await Bus.connect(BusSettings.model_validate(settings | {"user": "tuner"}), "tuner")
        assert bus.refusals == ()
        began = time.monotonic()
        with pytest.raises(Denied, match="permissions violation for publish to"):
            await bus.publish(Wire(subject, b"{}", {}, "1", "STATE"))
        assert time.monotonic() - began < 1.5
        assert len(bus.refusals) == 1
        assert "stoker.v1.plan.proposed.meta-llama" in bus.refusals[0]
        assert not (await bus.publish(stock(1.0))).duplicate
        assert len(bus.refusals) == 1
        await bus.close()
        await admin.close()


async def test_a_denied_subscription_is_among_the_refusals(tmp_path: Path):
    async with EmbeddedServer(folder=tmp_path, extra_config=DENYING) as server:
        settings = {"url": server.url, "user": "tuner", "password": "p"}
        bus = await Bus.connect(BusSettings.model_validate(settings), "tuner")
        listening = asyncio.create_task(anext(bus.listen("secret.plan")))
        await until(lambda: bool(bus.refusals))
        assert "permissions violation for subscription to" in bus.refusals[0]
        listening.cancel()
        await bus.close()


# An outage.


async def test_the_library_gives_up_after_sixty_reconnects_and_the_bus_never(bus: Bus):
    assert DEFAULT_MAX_RECONNECT_ATTEMPTS == 60
    assert bus._client.options["max_reconnect_attempts"] == -1


async def test_a_pull_goes_on_within_seconds_of_a_crash_of_the_server(nats: EmbeddedServer, connect: Connect):
    bus = await connect("tuner", storage="file")
    await bus.apply(topology())
    pull = await bus.pull(TUNER_TELEMETRY)
    await bus.publish(window(1.0))
    assert [raw.sequence for raw in await next_within(pull)] == [1]
    waiting = asyncio.create_task(pull.next())
    nats.kill()
    await until(lambda: not bus.connected)
    publishing = asyncio.create_task(bus.publish(window(2.0)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await nats.start()
    back = time.monotonic()
    await asyncio.wait_for(publishing, 10)
    batch = await asyncio.wait_for(waiting, 10)
    took_s = time.monotonic() - back
    print(f"resumed {took_s:.2f} s after the server was back")
    assert 2 in [raw.sequence for raw in batch]
    assert took_s < 6.0
    assert bus.connected


async def test_a_pull_whose_requests_the_server_forgot_asks_again_by_itself(bus: Bus):
    pull = await bus.pull(TUNER_TELEMETRY)
    with pytest.raises(TimeoutError):
        await next_within(pull, 0.05)
    # The client's inbox is all that the server knows of a request; without it, nothing comes.
    pull._inbox, forgotten = bus._client.new_inbox(), pull._subscription
    await pull.start()
    await forgotten.unsubscribe()
    await bus.publish(window(1.0))
    began = time.monotonic()
    assert len(await next_within(pull, 12)) == 1
    assert time.monotonic() - began < 8.0


async def test_a_consumer_that_is_gone_is_asked_for_calmly_and_used_once_it_is_back(
    nats: EmbeddedServer, bus: Bus
):
    pull = await bus.pull(TUNER_TELEMETRY)
    waiting = asyncio.create_task(pull.next())
    async with library(nats) as client:
        jetstream = client.jetstream()
        await until(lambda: pull._open > 0)
        await jetstream.delete_consumer("TELEMETRY", TUNER_TELEMETRY.name)
        await until(lambda: pull._rebuffed_s is not None)
        asked = bus._client.stats["out_msgs"]
        await asyncio.sleep(1.0)
        assert bus._client.stats["out_msgs"] - asked <= 5
    await bus.apply(topology())
    await bus.publish(window(1.0))
    assert len(await asyncio.wait_for(waiting, 10)) == 1


async def test_a_consumer_that_stays_away_ends_the_pull_with_what_would_help(nats: EmbeddedServer, bus: Bus):
    pull = await bus.pull(TUNER_TELEMETRY)
    waiting = asyncio.create_task(pull.next())
    await until(lambda: pull._open > 0)
    async with library(nats) as client:
        await client.jetstream().delete_consumer("TELEMETRY", TUNER_TELEMETRY.name)
    await until(lambda: pull._rebuffed_s is not None)
    pull._rebuffed_s = asyncio.get_running_loop().time() - 60.0
    with pytest.raises(TopologyDrift, match="stoker bus apply"):
        await asyncio.wait_for(waiting, 5)


async def test_an_error_of_the_server_ends_the_librarys_connection_for_good_and_the_bus_says_so(
    nats: EmbeddedServer, bus: Bus
):
    lost = asyncio.create_task(bus.lost())
    await asyncio.sleep(0)
    assert not lost.done()
    with pytest.raises(Retry):
        await bus.request("x" * 5000, b"", timeout_s=1.0)
    with pytest.raises(Fatal, match="maximum control line exceeded"):
        await asyncio.wait_for(lost, 5)
    assert not bus.connected


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
    await asyncio.wait_for(stopping, 5)
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
