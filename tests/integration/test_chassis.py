"""The life of a service on a real server: restored, fed, interrupted, poisoned, replaced, stopped."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
import pytest_asyncio
from echo import OWN, Echo, Sole, chassis_of, forecast, sent, until, window

from schemas.base import Quality
from schemas.fleet import FleetDeclared
from schemas.request import ForecastAnswered
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.runtime.bus import Bus
from services.runtime.chassis import Chassis
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, Raw, decode
from services.runtime.errors import Fatal, Reject, Retry
from services.runtime.http import HealthServer
from services.runtime.metrics import Metrics
from services.runtime.service import Outcome
from services.runtime.settings import HttpSettings
from services.runtime.topology import LEASES, SNAPSHOTS, topology

FORECASTS = "stoker.v1.forecast.issued.*"
PARKED = "stoker.v1.dlq.TELEMETRY.predictor"


@pytest_asyncio.fixture
async def outside(connect: Callable[..., Awaitable[Bus]]) -> Bus:
    """Everybody else: feeds the service and looks at what it published."""
    bus = await connect("collector", storage="file")
    await bus.apply(topology())
    return bus


def ready(chassis: Chassis) -> bool:
    return chassis.active and chassis.reasons() == [] and counted(chassis, "stoker_active") == 1


def counted(chassis: Chassis, name: str, **labels: str) -> float:
    return chassis.metrics.registry.get_sample_value(name, {"service": chassis.service.name} | labels) or 0.0


def messages(chassis: Chassis, outcome: str, topic: str = "telemetry.observed") -> float:
    return counted(chassis, "stoker_messages_total", topic=topic, outcome=outcome)


async def stored(bus: Bus, stream: str, subject: str, count: int, within_s: float = 10.0) -> list[Raw]:
    deadline = time.monotonic() + within_s
    while len(found := await bus.everything(stream, [subject])) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} on {subject}"
    return found


async def unacknowledged(bus: Bus, stream: str = "TELEMETRY") -> tuple[int, int]:
    """Messages delivered to the service without an acknowledgement, and not delivered yet."""
    info = await bus._jetstream.consumer_info(stream, f"predictor-{OWN}")
    return info.num_ack_pending or 0, info.num_pending or 0


async def all_acknowledged(bus: Bus, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while await unacknowledged(bus) != (0, 0):
        assert time.monotonic() < deadline, await unacknowledged(bus)


@asynccontextmanager
async def running(chassis: Chassis) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis) or task.done())
    if task.done():
        task.result()
    try:
        yield task
    finally:
        chassis.stop()
        if not task.done():
            await asyncio.wait_for(task, 10)


# The way of a message.


async def test_a_window_is_handled_published_saved_accepted_and_acknowledged(
    nats: EmbeddedServer, outside: Bus, connect: Callable[..., Awaitable[Bus]]
):
    echo = Echo()
    chassis = chassis_of(nats, echo)
    async with running(chassis):
        await outside.publish(sent(window(7.0)))
        found = await stored(outside, "STATE", FORECASTS, 1)
        await until(lambda: echo.counts == {"s": 1})
        await all_acknowledged(outside)
        assert decode(found[0]).payload == forecast(window(7.0))
        assert decode(found[0]).source == "/stoker/predictor"
        assert messages(chassis, "handled") == 1
        assert counted(chassis, "stoker_published_total", topic="forecast.issued", outcome="new") == 1
        assert counted(chassis, "stoker_skipped_total", reason="odd") == 1
        assert counted(chassis, "stoker_event_age_seconds_count", topic="telemetry.observed") == 1
    assert echo.log == ["open", "restore", "handle TelemetryObserved", "accept", "close"]
    snapshots = await (await connect("predictor")).bucket(SNAPSHOTS)
    assert {key: value for key, (value, _) in (await snapshots.all()).items()} == {f"{OWN}.s": b"1"}


async def test_a_restarted_service_takes_up_its_snapshot_and_the_newest_values_and_what_came_meanwhile(
    nats: EmbeddedServer, outside: Bus
):
    async with running(chassis_of(nats, first := Echo())):
        await outside.publish(sent(window(1.0, "meta-llama/Llama-3.1-8B")))
        await until(lambda: first.counts)
    fleet = FleetDeclared(
        declared_at_s=1, revision="1", accelerators=(), models=(), service_classes=(), servers=()
    )
    for at_s in (1.0, 2.0):
        payload = InventoryObserved(server="s", model="m", observed_at_s=at_s, quality=Quality.OK)
        await outside.publish(sent(payload))
    await outside.publish(sent(fleet))
    await outside.publish(sent(window(2.0, "meta-llama/Llama-3.1-8B")))
    second = chassis_of(nats, echo := Echo())
    async with running(second):
        await until(lambda: echo.counts == {"meta-llama/Llama-3.1-8B": 2})
        assert echo.log[:4] == ["open", "restore", "hydrate InventoryObserved", "hydrate FleetDeclared"]
        handled = [entry for entry in echo.log if entry.startswith("handle") and "Telemetry" not in entry]
        assert handled == ["handle InventoryObserved", "handle FleetDeclared"]


async def test_the_same_fact_under_the_same_identifier_is_counted_as_a_duplicate_and_handled_once(
    nats: EmbeddedServer, outside: Bus
):
    chassis = chassis_of(nats, echo := Echo())
    async with running(chassis):
        wire = sent(window(1.0))
        again = replace(wire, headers=wire.headers | {"Nats-Msg-Id": "another for the server"})
        await outside.publish(wire)
        assert not (await outside.publish(again)).duplicate
        await until(lambda: messages(chassis, "duplicate") == 1)
        await all_acknowledged(outside)
        assert echo.counts == {"s": 1}


async def test_what_is_expired_is_acknowledged_and_not_handled(nats: EmbeddedServer, outside: Bus):
    chassis = chassis_of(nats, echo := Echo())
    async with running(chassis):
        await outside.publish(sent(window(1.0), expires_at_s=time.time() - 1))
        await until(lambda: messages(chassis, "expired") == 1)
        await all_acknowledged(outside)
        assert echo.counts == {}


# Poison.


async def test_poison_among_good_messages_is_parked_as_it_came_and_the_good_are_handled(
    nats: EmbeddedServer, outside: Bus
):
    wires = [sent(window(float(i), f"s{i}")) for i in range(1, 6)]
    bad_body = replace(wires[1], data=b"\x00not json\xff", id="b1")
    bad_type = replace(wires[2], headers=wires[2].headers | {"ce-type": "other"})
    no_header = replace(wires[3], headers={})
    for wire in (wires[0], bad_body, bad_type, no_header, wires[4]):
        await outside.publish(wire)
    chassis = chassis_of(nats, echo := Echo())
    async with running(chassis):
        parked = await stored(outside, "DLQ", PARKED, 3)
        await until(lambda: echo.counts == {"s1": 1, "s5": 1})
        await all_acknowledged(outside)
        assert chassis.reasons() == []
        assert messages(chassis, "parked") == 3
    by_sequence = {raw.headers["stoker-sequence"]: raw for raw in parked}
    assert by_sequence["2"].data == b"\x00not json\xff"
    assert by_sequence["2"].headers["ce-id"] == wires[1].headers["ce-id"]
    assert by_sequence["2"].headers["stoker-subject"] == wires[1].subject
    assert by_sequence["2"].headers["stoker-stream"] == "TELEMETRY"
    assert by_sequence["2"].headers["stoker-consumer"] == "predictor"
    assert "body is not a TelemetryObserved" in by_sequence["2"].headers["stoker-reason"]
    assert "ce-type is 'other'" in by_sequence["3"].headers["stoker-reason"]
    assert "ce-specversion is None" in by_sequence["4"].headers["stoker-reason"]


async def foreign_publish(server: EmbeddedServer, subject: str, header: bytes, data: bytes) -> None:
    """Publish as a client would that writes whatever it likes into headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    block = b"NATS/1.0\r\n" + header + b"\r\n"
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    writer.write(b"HPUB %s %d %d\r\n" % (subject.encode(), len(block), len(block) + len(data)))
    writer.write(block + data + b"\r\nPING\r\n")
    async with asyncio.timeout(5):
        while (line := await reader.readline()) != b"PONG\r\n":
            assert line, "the server ended the connection"
            assert not line.startswith(b"-ERR"), line
    writer.close()


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"a(b: x\r\nNote: kept\r\n", 10),
        (b"No colon at all\r\n", 10),
        (b": no name\r\n", 10),
        (b"Note: \xff\xfe\r\n", 10),
        (b"Status: 503\r\n", 10),
        (b"Nats-Expected-Stream: TELEMETRY\r\nNats-Msg-Id: 1\r\n", 10),
        (b"Note: " + b"y" * 60_000 + b"\r\n", 10),
        (b"", (1 << 20) - 64),
    ],
    ids=["odd name", "no colon", "no name", "not text", "status", "of the server", "long", "large body"],
)
async def test_no_headers_and_no_size_that_another_client_can_store_end_the_service(
    nats: EmbeddedServer, outside: Bus, header: bytes, size: int
):
    chassis = chassis_of(nats, echo := Echo())
    async with running(chassis):
        subject = sent(window(1.0)).subject
        await foreign_publish(nats, subject, header, b"x" * size)
        await outside.publish(sent(window(1.0)))
        parked = await stored(outside, "DLQ", PARKED, 1)
        await until(lambda: echo.counts == {"s": 1})
        await all_acknowledged(outside)
        assert chassis.reasons() == []
        assert parked[0].data.strip(b"x") == b""
        assert len(parked[0].data) >= min(size, (1 << 20) - 4096)
        if b"kept" in header:
            assert parked[0].headers["Note"] == "kept"


async def test_what_a_service_rejects_is_parked_alone_and_at_once(nats: EmbeddedServer, outside: Bus):
    for i in range(5):
        await outside.publish(sent(window(1.0 + i, f"s{i}")))
    echo = Echo()

    def fail(window: TelemetryObserved) -> None:
        if window.server == "s2":
            raise Reject("no such server")

    echo.fail = fail
    async with running(chassis_of(nats, echo)):
        parked = await stored(outside, "DLQ", PARKED, 1)
        await until(lambda: sorted(echo.counts) == ["s0", "s1", "s3", "s4"])
        await all_acknowledged(outside)
    assert parked[0].headers["stoker-reason"] == "Reject: no such server"
    assert json.loads(parked[0].data)["server"] == "s2"
    assert [len(batch) for batch in echo.batches] == [5, 1, 1, 1, 1, 1]


async def test_an_unexpected_exception_is_isolated_to_its_message_which_is_parked_after_its_deliveries(
    nats: EmbeddedServer, outside: Bus
):
    for i in range(3):
        await outside.publish(sent(window(1.0 + i, f"s{i}")))
    echo = Echo()

    def fail(window: TelemetryObserved) -> None:
        if window.server == "s1":
            raise ZeroDivisionError("by zero")

    echo.fail = fail
    chassis = chassis_of(nats, echo)
    async with running(chassis):
        await until(lambda: echo.counts == {"s0": 1, "s2": 1})
        assert messages(chassis, "parked") == 0
        parked = await stored(outside, "DLQ", PARKED, 1)
        await all_acknowledged(outside)
        assert chassis.reasons() == []
    assert parked[0].headers["stoker-reason"] == "ZeroDivisionError: by zero"
    assert (messages(chassis, "retried"), messages(chassis, "parked")) == (1, 1)
    assert echo.batches == [[1.0, 2.0, 3.0], [1.0], [2.0], [3.0], [2.0]]


async def test_a_retry_leaves_the_state_as_it_was_and_the_message_comes_again(
    nats: EmbeddedServer, outside: Bus
):
    echo = Echo()
    left = [3]

    def fail(window: TelemetryObserved) -> None:
        if left[0]:
            left[0] -= 1
            raise Retry("not yet", delay_s=0.05)

    echo.fail = fail
    chassis = chassis_of(nats, echo)
    async with running(chassis):
        await outside.publish(sent(window(1.0)))
        await until(lambda: echo.counts == {"s": 1})
        await all_acknowledged(outside)
    assert echo.log.count("accept") == 1
    assert messages(chassis, "retried") == 3
    assert await outside.everything("DLQ", ["stoker.v1.dlq.>"]) == []


async def test_what_cannot_be_published_is_not_accepted(nats: EmbeddedServer, outside: Bus):
    echo = Echo()
    echo.emit = {"expected_last_sequence": 99}
    async with running(chassis_of(nats, echo)):
        await outside.publish(sent(window(1.0)))
        parked = await stored(outside, "DLQ", PARKED, 1)
        assert "Conflict: wrong last sequence" in parked[0].headers["stoker-reason"]
        assert echo.counts == {}
        assert "accept" not in echo.log


async def test_what_cannot_be_saved_is_not_accepted_and_holds_up_nobody_else(
    nats: EmbeddedServer, outside: Bus
):
    echo = Echo()
    echo.snapshot = lambda server, count: b"1" * (2 << 20 if server == "huge" else 1)
    async with running(chassis_of(nats, echo)):
        for server in ("a", "huge", "b"):
            await outside.publish(sent(window(1.0, server)))
        parked = await stored(outside, "DLQ", PARKED, 1)
        await until(lambda: echo.counts == {"a": 1, "b": 1})
        assert "TooLarge" in parked[0].headers["stoker-reason"]


async def test_what_is_too_large_to_publish_is_counted_and_the_step_goes_on(
    nats: EmbeddedServer, outside: Bus
):
    chassis = chassis_of(nats, echo := Echo())
    async with running(chassis):
        small = forecast(window(1.0))
        large = forecast(window(1.0, "large")).model_copy(update={"reason": "x" * 1_000_000})
        assert await echo.host.publish([Emit(large), Emit(small)]) == [0, 1]
        labels = {"topic": "forecast.issued", "outcome": "too_large"}
        assert counted(chassis, "stoker_published_total", **labels) == 1


async def test_what_cannot_be_parked_now_is_left_for_later_and_the_service_goes_on(
    nats: EmbeddedServer, outside: Bus
):
    assert await outside._jetstream.delete_stream("DLQ")
    bus = {"publish_timeout_s": 0.1, "publish_deadline_s": 0.3}
    chassis = chassis_of(nats, echo := Echo(), bus=bus)
    async with running(chassis):
        odd = replace(sent(window(1.0)), data=b"poison")
        await asyncio.gather(*(outside.publish(w) for w in (odd, sent(window(2.0)), sent(window(3.0)))))
        await until(lambda: echo.counts == {"s": 2})
        assert chassis.reasons() == []
        assert messages(chassis, "parked") == 0
        assert (await unacknowledged(outside))[0] >= 1


# Two instances.


async def test_of_two_instances_one_works_and_the_other_takes_over_within_the_lease_when_it_is_killed(
    nats: EmbeddedServer, outside: Bus
):
    one = chassis_of(nats, first := Sole(), "one", lease_s=1.5)
    two = chassis_of(nats, second := Sole(), "two", lease_s=1.5)
    killed = asyncio.create_task(one.run())
    await until(lambda: ready(one))
    waiting = asyncio.create_task(two.run())
    await until(lambda: two.reasons() == [])
    await outside.publish(sent(window(1.0)))
    await until(lambda: first.counts == {"s": 1})
    assert (one.active, two.active, second.log) == (True, False, [])
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    began = time.monotonic()
    await until(lambda: ready(two))
    took_s = time.monotonic() - began
    print(f"took over after {took_s:.2f} s of a lease of 1.5 s")
    assert took_s < 1.5 * 1.1 + 1.0
    await outside.publish(sent(window(2.0)))
    await until(lambda: second.counts == {"s": 2})
    two.stop()
    await asyncio.wait_for(waiting, 10)


async def test_an_instance_that_stops_in_order_hands_over_before_its_lease_is_over(
    nats: EmbeddedServer, outside: Bus
):
    one = chassis_of(nats, Sole(), "one", lease_s=5.0)
    two = chassis_of(nats, Sole(), "two", lease_s=5.0)
    async with running(one):
        waiting = asyncio.create_task(two.run())
        await until(lambda: two.reasons() == [])
    began = time.monotonic()
    await until(lambda: ready(two))
    assert time.monotonic() - began < 2.5
    two.stop()
    await asyncio.wait_for(waiting, 10)


async def test_a_standby_can_be_stopped(nats: EmbeddedServer, outside: Bus):
    async with running(chassis_of(nats, Sole(), "one")):
        two = chassis_of(nats, echo := Sole(), "two")
        waiting = asyncio.create_task(two.run())
        await until(lambda: two.reasons() == [])
        two.stop()
        await asyncio.wait_for(waiting, 5)
        assert echo.log == []


class Lacking(Sole):
    """Knows too little to work."""

    def trouble(self) -> Sequence[str]:
        return ("nothing is declared yet",)


async def test_a_standby_is_ready_whatever_it_will_lack_when_it_works(nats: EmbeddedServer, outside: Bus):
    one, two = chassis_of(nats, Lacking(), "one"), chassis_of(nats, Lacking(), "two")
    working = asyncio.create_task(one.run())
    await until(lambda: one.reasons() == ["nothing is declared yet"])
    waiting = asyncio.create_task(two.run())
    await until(lambda: two.reasons() == [])
    for chassis, task in ((two, waiting), (one, working)):
        chassis.stop()
        await asyncio.wait_for(task, 10)


async def test_an_instance_whose_lease_another_took_ends(
    nats: EmbeddedServer, outside: Bus, connect: Callable[..., Awaitable[Bus]]
):
    chassis = chassis_of(nats, echo := Sole(), lease_s=1.0)
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis))
    leases = await (await connect("actuator")).bucket(LEASES)
    await leases.put("active", b'{"holder": "two"}')
    with pytest.raises(Fatal, match=r"actuator\.lease ended: .*was lost to two"):
        await asyncio.wait_for(task, 5)
    assert echo.log[-1] == "close"


async def test_without_its_lease_an_instance_takes_no_step_and_with_the_bus_back_it_goes_on(
    nats: EmbeddedServer, outside: Bus
):
    chassis = chassis_of(nats, echo := Sole(), lease_s=1.0)
    async with running(chassis):
        nats.kill()
        await until(lambda: not chassis.active)
        await until(lambda: not chassis._host._lease.held)  # type: ignore[union-attr]
        assert chassis.reasons() == ["the bus is not connected"]
        with pytest.raises(Retry, match="does not hold the lease of actuator"):
            await echo.host.transact(lambda: Outcome(accept=lambda: echo.log.append("wrong")))
        await nats.start()
        await until(lambda: ready(chassis))
        await outside.publish(sent(window(1.0)))
        await until(lambda: echo.counts == {"s": 1})
        assert "wrong" not in echo.log


# Ends.


async def test_a_service_that_stops_finishes_what_it_has_in_hand(nats: EmbeddedServer, outside: Bus):
    chassis = chassis_of(nats, echo := Echo())
    async with running(chassis):
        asking = asyncio.create_task(
            outside.request("stoker.v1.svc.predictor.forecast", b'{"server": "slow"}')
        )
        await until(lambda: "asked" in echo.log)
    assert ForecastAnswered.model_validate_json(await asking) == ForecastAnswered()
    assert echo.log[-1] == "close"
    assert chassis.reasons() == ["stopped"]
    assert counted(chassis, "stoker_active") == 0


@pytest.mark.parametrize("later", range(10))
async def test_a_service_that_is_stopped_at_any_step_of_a_message_ends_in_order_and_acknowledges_it(
    nats: EmbeddedServer, outside: Bus, later: int
):
    chassis = chassis_of(nats, echo := Echo())

    async def stop_later() -> None:
        for _ in range(later):
            await asyncio.sleep(0)
        chassis.stop()

    stopping = list[asyncio.Task[None]]()
    echo.accepted = lambda: stopping.append(asyncio.create_task(stop_later()))
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis))
    await outside.publish(sent(window(1.0)))
    await asyncio.wait_for(task, 10)
    assert echo.log[-2:] == ["accept", "close"]
    assert len(stopping) == 1
    await all_acknowledged(outside)


async def test_the_first_task_that_fails_ends_the_run_with_its_name_and_the_others_are_ended(
    nats: EmbeddedServer, outside: Bus
):
    echo, go = Sole(), asyncio.Event()

    async def fails() -> None:
        await go.wait()
        raise RuntimeError("boom")

    async def lasts() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            echo.log.append("lasts ended")

    echo.loops = {"fails": fails, "lasts": lasts}
    chassis = chassis_of(nats, echo)
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis))
    go.set()
    with pytest.raises(Fatal, match=r"actuator\.fails ended: RuntimeError\('boom'\)"):
        await asyncio.wait_for(task, 5)
    assert echo.log[-2:] == ["lasts ended", "close"]
    assert chassis.reasons() == ["stopped"]


@pytest.mark.parametrize("how", ["returns", "cancels itself"])
async def test_a_task_that_ends_without_an_error_ends_the_run_too(
    nats: EmbeddedServer, outside: Bus, how: str
):
    async def ends() -> None:
        if how == "cancels itself":
            raise asyncio.CancelledError

    echo = Sole()
    echo.loops = {"ends": ends}
    with pytest.raises(Fatal, match=r"actuator\.ends ended: None"):
        await asyncio.wait_for(chassis_of(nats, echo).run(), 5)


async def test_a_connection_that_is_ended_for_good_ends_the_run(nats: EmbeddedServer, outside: Bus):
    chassis = chassis_of(nats, Echo())
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis))
    assert chassis._bus is not None
    await chassis._bus._client.publish("x" * 5000, b"")
    with pytest.raises(Fatal, match=r"predictor\.bus ended: .*maximum control line exceeded"):
        await asyncio.wait_for(task, 5)


async def test_a_service_does_not_start_on_a_server_without_its_streams(nats: EmbeddedServer):
    with pytest.raises(Fatal, match=r"consumer predictor-0 of TELEMETRY does not exist.*stoker bus apply"):
        await chassis_of(nats, Echo()).run()


async def test_an_error_while_opening_ends_the_run(nats: EmbeddedServer, outside: Bus):
    class Unopened(Echo):
        async def open(self) -> None:
            raise Fatal("no target")

    with pytest.raises(Fatal, match="no target"):
        await chassis_of(nats, unopened := Unopened()).run()
    assert unopened.log == []


# Requests.


@pytest.mark.parametrize(
    ("body", "told", "outcome"),
    [
        (b"{", "Invalid JSON", "refused"),
        (b"", "server: Field required", "refused"),
        (b'{"server": 3}', "server: Input should be a valid string, got '3'", "refused"),
        (b'{"server": "unknown"}', "server 'unknown' is not in the fleet", "refused"),
        (b'{"server": "broken"}', "KeyError: 'broken'", "failed"),
        (b'{"server": "long"}', "bytes: at most 921600 are carried", "refused"),
    ],
)
async def test_a_request_that_cannot_be_met_is_answered_with_what_is_wrong(
    nats: EmbeddedServer, outside: Bus, body: bytes, told: str, outcome: str
):
    chassis = chassis_of(nats, Echo())
    async with running(chassis):
        answer = json.loads(await outside.request("stoker.v1.svc.predictor.forecast", body))
        assert list(answer) == ["error"]
        assert told in answer["error"]
        assert counted(chassis, "stoker_requests_total", verb="forecast", outcome=outcome) == 1


async def test_a_service_answers_what_it_knows_of_itself(nats: EmbeddedServer, outside: Bus):
    echo = Echo()
    chassis = chassis_of(nats, echo)
    async with running(chassis):
        await outside.publish(sent(window(1.0)))
        await outside.publish(replace(sent(window(2.0)), data=b""))
        await until(lambda: echo.counts and messages(chassis, "parked"))
        status = json.loads(await outside.request("stoker.v1.svc.predictor.status", b""))
        assert status["service"] == "predictor"
        assert (status["ready"], status["handled"], status["parked"]) == (True, 1, 1)
        echo.trouble = lambda: ["x" * 5000]  # type: ignore[method-assign]
        status = json.loads(await outside.request("stoker.v1.svc.predictor.status", b""))
        assert (status["ready"], len(status["reasons"][0])) == (False, 2000)


# Health.


async def test_the_health_endpoints_follow_the_life_of_the_service(nats: EmbeddedServer, outside: Bus):
    chassis = chassis_of(nats, echo := Echo())
    health = HealthServer(HttpSettings(), chassis.metrics, lambda: {"predictor": chassis.reasons()})
    await health.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{health.port}") as http:

        async def get(path: str) -> tuple[int, str]:
            async with http.get(path) as answer:
                return answer.status, await answer.text()

        async def readiness(within_s: float, wanted: list[str]) -> None:
            deadline = time.monotonic() + within_s
            while True:
                status, text = await get("/readyz")
                reasons = json.loads(text)["reasons"].get("predictor", [])
                assert json.loads(text)["ready"] == (status == 200) == (not reasons)
                if reasons == wanted:
                    return
                assert time.monotonic() < deadline, reasons

        await readiness(1, ["connecting"])
        assert 'stoker_ready{service="predictor"} 0.0' in (await get("/metrics"))[1]
        async with running(chassis):
            await readiness(5, [])
            page = (await get("/metrics"))[1]
            assert 'stoker_ready{service="predictor"} 1.0' in page
            assert 'stoker_active{service="predictor"} 1.0' in page
            echo.trouble = lambda: ["no telemetry yet"]  # type: ignore[method-assign]
            await readiness(1, ["no telemetry yet"])
            echo.trouble = lambda: ()  # type: ignore[method-assign]
            nats.kill()
            await readiness(5, ["the bus is not connected"])
            assert (await get("/livez"))[0] == 200
            await nats.start()
            await readiness(10, [])
        await readiness(1, ["stopped"])
        assert (await get("/livez"))[0] == 200
    await health.stop()


async def test_a_port_of_the_health_endpoint_that_is_taken_is_an_error():
    one = HealthServer(HttpSettings(), Metrics(), dict)
    await one.start()
    other = HealthServer(HttpSettings(port=one.port), Metrics(), dict)
    with pytest.raises(OSError, match="in use"):
        await other.start()
    await other.stop()
    await one.stop()
