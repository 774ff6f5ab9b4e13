"""Facts about nats-py that were measured: each shown on the plain library, and that the bus does not suffer."""

import asyncio
import time
from pathlib import Path

import nats as plain
import pytest
from nats.aio.client import DEFAULT_MAX_RECONNECT_ATTEMPTS
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from plain_nats import TUNER_TELEMETRY, Connect, library, next_within, stock, until, window

from services.runtime.bus import Bus, Conflict
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Raw, Wire
from services.runtime.errors import Denied, Fatal, Retry, TopologyDrift
from services.runtime.settings import BusSettings
from services.runtime.topology import SNAPSHOTS, topology

# Draining after an empty pull.


async def test_the_librarys_drain_waits_out_its_timeout_after_an_empty_fetch(nats: EmbeddedServer, bus: Bus):
    async with library(nats, drain_timeout=1) as client:
        subscription = await client.jetstream().pull_subscribe_bind(TUNER_TELEMETRY.name, "TELEMETRY")
        # It does so when the server's answer to the empty fetch arrives after the fetch has given up.
        deadline = time.monotonic() + 60
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
    assert time.monotonic() - began < 3.0
    assert await asyncio.wait_for(waiting, 60) == []


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
        stored = await asyncio.wait_for(publishing, 60)
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
        assert time.monotonic() - began < 5.0
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
    await asyncio.wait_for(publishing, 60)
    batch = await asyncio.wait_for(waiting, 60)
    took_s = time.monotonic() - back
    print(f"resumed {took_s:.2f} s after the server was back")
    assert 2 in [raw.sequence for raw in batch]
    assert took_s < 20.0
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
    assert len(await next_within(pull, 60)) == 1
    assert time.monotonic() - began < 20.0


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
    assert len(await asyncio.wait_for(waiting, 60)) == 1


async def test_a_consumer_that_stays_away_ends_the_pull_with_what_would_help(nats: EmbeddedServer, bus: Bus):
    pull = await bus.pull(TUNER_TELEMETRY)
    waiting = asyncio.create_task(pull.next())
    await until(lambda: pull._open > 0)
    async with library(nats) as client:
        await client.jetstream().delete_consumer("TELEMETRY", TUNER_TELEMETRY.name)
    await until(lambda: pull._rebuffed_s is not None)
    pull._rebuffed_s = asyncio.get_running_loop().time() - 60.0
    with pytest.raises(TopologyDrift, match="stoker bus apply"):
        await asyncio.wait_for(waiting, 60)


async def test_an_error_of_the_server_ends_the_librarys_connection_for_good_and_the_bus_says_so(
    nats: EmbeddedServer, bus: Bus
):
    lost = asyncio.create_task(bus.lost())
    await asyncio.sleep(0)
    assert not lost.done()
    with pytest.raises(Retry):
        await bus.request("x" * 5000, b"", timeout_s=1.0)
    with pytest.raises(Fatal, match="maximum control line exceeded"):
        await asyncio.wait_for(lost, 60)
    assert not bus.connected
