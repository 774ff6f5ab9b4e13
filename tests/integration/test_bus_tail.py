"""`stoker bus tail` on a real server: the audit trail from a time, by subject and server, and what follows."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from schemas.alert import AlertKind, AlertRaised
from schemas.base import Contract
from schemas.decision import DecisionMade, Verdict
from schemas.plan import Allocation
from schemas.topics import Stream
from services.bus_commands import bus as bus_app
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, encode
from services.runtime.topology import topology
from services.tail import filters_of, start_of

Connect = Callable[..., Awaitable[Bus]]
NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def decision(server: str, generation: int, verdict: Verdict = Verdict.HOLD) -> DecisionMade:
    held = (Allocation(accelerator="H100", replicas=2, max_batch=64),)
    return DecisionMade(
        server=server,
        generation=generation,
        decided_at_s=1_700_000_000.0 + generation,
        current=held,
        gated=held,
        verdict=verdict,
        rule="down",
        reason="a reason",
    )


async def publish(bus: Bus, *facts: Contract) -> None:
    for fact in facts:
        await bus.publish(encode(Emit(fact), "actuator", 1_700_000_000.0))


async def tail(nats: EmbeddedServer, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from services.cli import main; main()",
        "bus",
        "tail",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"STOKER_BUS__URL": nats.url},
    )


@pytest.fixture
async def actuator(nats: EmbeddedServer, connect: Connect) -> Bus:
    connected = await connect("actuator")
    await connected.apply(topology())
    return connected


async def test_the_audit_trail_is_printed_from_a_time_by_subject_and_server(
    nats: EmbeddedServer, actuator: Bus
) -> None:
    alert = AlertRaised(kind=AlertKind.FOREIGN_WRITER, subject="a/chat", message="m", raised_at_s=1.0)
    refused = decision("a/chat", 2, Verdict.REJECT)
    await publish(actuator, decision("a/chat", 1), decision("b", 1), refused, alert)
    child = await tail(nats, "--from", "1h", "--no-follow", "--server", "a/chat", "--json")
    said, complained = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 0, complained.decode()
    lines = [json.loads(line) for line in said.decode().splitlines()]
    assert [(line["data"].get("generation"), line["data"].get("verdict")) for line in lines] == [
        (1, "hold"),
        (2, "reject"),
        (None, None),
    ]
    assert all(line["subject"].startswith("stoker.v1.") and line["id"] for line in lines)

    only = await tail(nats, "stoker.v1.decision.made.*", "--from", "1h", "--no-follow")
    said, complained = await asyncio.wait_for(only.communicate(), 60)
    assert only.returncode == 0, complained.decode()
    assert len(said.decode().splitlines()) == 3
    assert "decision.made  a/chat  reject by down: 2×H100 → 2×H100; a reason" in said.decode()

    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    none = await tail(nats, "--from", future, "--no-follow")
    said, complained = await asyncio.wait_for(none.communicate(), 60)
    assert (none.returncode, said) == (0, b""), complained.decode()


async def test_what_comes_follows_what_was_kept_and_nothing_is_printed_twice(
    nats: EmbeddedServer, actuator: Bus
) -> None:
    await publish(actuator, decision("s", 1))
    child = await tail(nats, "stoker.v1.decision.>", "--from", "1h", "--count", "3", "--json")
    assert child.stdout is not None
    first = json.loads(await asyncio.wait_for(child.stdout.readline(), 60))
    await publish(actuator, decision("s", 2), decision("s", 3))
    rest = [json.loads(line) for line in (await asyncio.wait_for(child.stdout.read(), 60)).splitlines()]
    assert child.stderr is not None
    assert (await child.stderr.read(), await child.wait()) == (b"", 0)
    assert [line["data"]["generation"] for line in (first, *rest)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "yesterday"], "expected an age such as"),
        (["--from", "1h", "other.>"], "reaches nothing that is kept"),
        (["--no-follow"], "needs --from"),
    ],
)
def test_bad_input_is_named_and_ends_with_2(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(bus_app, ["tail", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert expected in result.output


def test_ages_and_times_are_understood() -> None:
    assert start_of("90s", NOW) == NOW - timedelta(seconds=90)
    assert start_of("1.5h", NOW) == NOW - timedelta(minutes=90)
    assert start_of("2026-01-05T10:00", NOW) == NOW - timedelta(hours=2)
    assert start_of("2026-01-05T13:00+02:00", NOW) == NOW - timedelta(hours=1)


def test_a_wildcard_is_looked_for_where_it_is_kept() -> None:
    assert filters_of("stoker.v1.decision.made.s") == {Stream.DECISIONS: ["stoker.v1.decision.made.s"]}
    assert filters_of("stoker.*.alert.>") == {Stream.DECISIONS: ["stoker.v1.alert.raised.*"]}
    assert set(filters_of("stoker.v1.>")) == set(Stream)
    with pytest.raises(ValueError, match="reaches nothing"):
        filters_of("stoker.v1.decision.made")
