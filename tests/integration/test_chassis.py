"""The way of a message through a service on a real server: handled, interrupted, poisoned."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from echo import (
    OWN,
    Echo,
    all_acknowledged,
    chassis_of,
    counted,
    forecast,
    messages,
    running,
    sent,
    stored,
    unacknowledged,
    until,
    window,
)

from schemas.base import Quality
from schemas.fleet import FleetDeclared
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, decode
from services.runtime.errors import Reject, Retry
from services.runtime.topology import SNAPSHOTS

FORECASTS = "stoker.v1.forecast.issued.*"
PARKED = "stoker.v1.dlq.TELEMETRY.predictor"


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
    async with asyncio.timeout(60):
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
    bus = {"publish_deadline_s": 0.3}
    chassis = chassis_of(nats, echo := Echo(), bus=bus)
    async with running(chassis):
        odd = replace(sent(window(1.0)), data=b"poison")
        await asyncio.gather(*(outside.publish(w) for w in (odd, sent(window(2.0)), sent(window(3.0)))))
        await until(lambda: echo.counts == {"s": 2})
        assert chassis.reasons() == []
        assert messages(chassis, "parked") == 0
        assert (await unacknowledged(outside))[0] >= 1
