"""The two ends of the loop on a real server: the fleet from files that change, decisions as metrics and audit."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import unused_port
from gate_cases import ask, hold, measure, propose

from schemas.alert import AlertRaised
from schemas.base import Contract
from schemas.decision import DecisionMade
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from schemas.plan import PlanIssued, SolveStatus
from schemas.telemetry import TelemetryObserved
from services.actuator.service import ActuatorService
from services.actuator.settings import Settings as ActuatorProcess
from services.collector.service import CollectorService
from services.collector.settings import Settings as CollectorProcess
from services.runtime.bus import Bus, Stored
from services.runtime.chassis import Chassis
from services.runtime.clock import WallClock
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, Wire, decode, encode
from services.runtime.errors import Retry
from services.runtime.metrics import Metrics
from services.runtime.service import Service
from services.runtime.settings import RuntimeSettings
from services.runtime.topology import topology

DEADLINE_S = 60.0


@pytest_asyncio.fixture
async def outside(connect: Callable[..., Awaitable[Bus]]) -> Bus:
    """Everybody else on the bus."""
    bus = await connect("optimizer")
    await bus.apply(topology())
    return bus


async def until(read: Callable[[], Awaitable[Any]]) -> Any:
    """What was read as soon as there is something; fails when the deadline has passed."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := await read()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.05)
    return found


async def told(bus: Bus, stream: str, subject: str) -> list[Any]:
    return [decode(raw).payload for raw in await bus.everything(stream, [subject])]


@asynccontextmanager
async def running(service: Service, settings: RuntimeSettings) -> AsyncIterator[Chassis]:
    chassis = Chassis(service, settings, WallClock(), Metrics())
    task = asyncio.create_task(chassis.run())
    try:
        yield chassis
    finally:
        chassis.stop()
        await asyncio.wait_for(task, DEADLINE_S)


def collector(nats: EmbeddedServer, fleet: Path) -> tuple[Service, RuntimeSettings]:
    settings = CollectorProcess.model_validate(
        {
            "bus": {"url": nats.url},
            "collector": {
                "cycle_s": 0.2,
                "sources": ["endpoints"],
                "source_settings": {"endpoints": {"urls": [f"http://127.0.0.1:{unused_port()}"]}},
                "fleet": str(fleet),
            },
        }
    )
    return CollectorService(settings), settings


def written(path: Path, *servers: str) -> None:
    """A fleet with these servers, replaced at once as a mounted file is."""
    content = {
        "accelerators": [{"name": "A", "type": "A", "cost_per_hour": 4}],
        "models": [{"name": "m", "profiles": [{"accelerator": "A"}]}],
        "service_classes": [{"name": "gold", "priority": 1}],
        "servers": [{"name": name, "model": "m", "service_class": "gold"} for name in servers],
    }
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(content))
    beside.replace(path)


async def test_a_changed_fleet_is_declared_and_a_bad_one_is_refused_until_it_is_mended(
    nats: EmbeddedServer, outside: Bus, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.json"
    written(file, "a")

    async def declared(count: int) -> list[FleetDeclared] | None:
        found = await told(outside, "STATE", "stoker.v1.fleet.declared")
        return found if len(found) >= count else None

    async def alerts(count: int) -> list[AlertRaised] | None:
        found = await told(outside, "DECISIONS", "stoker.v1.alert.raised.fleet_refused")
        return found if len(found) >= count else None

    async with running(*collector(nats, file)):
        await until(lambda: declared(1))
        written(file, "a", "b")
        first, second = await until(lambda: declared(2))
        assert [server.name for server in second.servers] == ["a", "b"]
        assert first.revision != second.revision
        file.write_text('{"servers": [{"name": "a", "modle": "m"}]}')
        (refused,) = await until(lambda: alerts(1))
        assert "fleet.json: servers[0].modle is not a key" in refused.message and not refused.resolved
        written(file, "b")
        *_, last = await until(lambda: declared(3))
        assert [server.name for server in last.servers] == ["b"]
        assert (await until(lambda: alerts(2)))[1].resolved


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "is ended and started again"])
@pytest.mark.parametrize("arrives", [False, True], ids=["message lost", "acknowledgement lost"])
async def test_windows_join_though_one_is_not_known_to_be_published_and_the_collector(
    nats: EmbeddedServer,
    outside: Bus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arrives: bool,
    ends: bool,
) -> None:
    file = tmp_path / "fleet.json"
    written(file, "a", "b", "c")
    publish, failures = Bus.publish, [3, 7, 8]
    failed = asyncio.Event()
    seen = 0

    async def unsure(self: Bus, wire: Wire) -> Stored:
        nonlocal seen
        if wire.subject.startswith("stoker.v1.telemetry."):
            seen += 1
            if failures and seen == failures[0]:
                del failures[0]
                if arrives:
                    await publish(self, wire)
                failed.set()
                if ends:
                    # Its process is killed before it can do anything more.
                    await asyncio.Event().wait()
                raise Retry("no answer")
        return await publish(self, wire)

    async def windows(count: int) -> dict[str, list[TelemetryObserved]]:
        found: dict[str, list[TelemetryObserved]] = {name: [] for name in ("a", "b", "c")}
        for window in await told(outside, "TELEMETRY", "stoker.v1.telemetry.observed.*.*"):
            found[window.server].append(window)
        return found if all(len(several) >= count for several in found.values()) else {}

    monkeypatch.setattr(Bus, "publish", unsure)
    if ends:
        task = asyncio.create_task(Chassis(*collector(nats, file), WallClock(), Metrics()).run())
        await failed.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        failures.clear()
    async with running(*collector(nats, file)):
        found = await until(lambda: windows(8))
    assert failed.is_set()
    for several in found.values():
        for before, after in pairwise(several):
            assert after.window_start_s == before.window_end_s < after.window_end_s


async def test_the_six_legacy_files_are_declared_and_reloaded_as_they_are(
    nats: EmbeddedServer, outside: Bus, tmp_path: Path, reference_data: Path
) -> None:
    folder = tmp_path / "system"
    shutil.copytree(reference_data / "systems" / "small", folder)
    for name in ("system-data.json", "solution-data.json"):
        (folder / name).unlink()

    async def declared(count: int) -> list[FleetDeclared] | None:
        found = await told(outside, "STATE", "stoker.v1.fleet.declared")
        return found if len(found) >= count else None

    async with running(*collector(nats, folder)):
        (first,) = await until(lambda: declared(1))
        servers = json.loads((folder / "server-data.json").read_text())["servers"]
        assert {server.name for server in first.servers} == {one["name"] for one in servers}
        assert all(server.model in {m.name for m in first.models} for server in first.servers)
        (folder / "server-data.json").write_text(json.dumps({"servers": servers[:1]}))
        _, second = await until(lambda: declared(2))
        assert [server.name for server in second.servers] == [servers[0]["name"]]


def fleet(revision: str, *names: str) -> FleetDeclared:
    return FleetDeclared(
        declared_at_s=time.time(),
        revision=revision,
        accelerators=(Accelerator(name="A", type="A", cost_per_hour=1),),
        models=(Model(name="m", profiles=(ModelProfile(accelerator="A"),)),),
        service_classes=(ServiceClass(name="c", priority=1),),
        servers=tuple(Server(name=name, model="m", service_class="c") for name in names),
    )


def generation(number: int, plans: dict[str, int]) -> list[Contract]:
    """Fresh inputs and a complete generation that asks for so many replicas of each server, which have two."""
    now_s = time.time()
    times = {"issued_at_s": now_s, "expires_at_s": now_s + 90}
    facts: list[Contract] = []
    for server, replicas in plans.items():
        facts += [
            fact.model_copy(update={"server": server})
            for fact in (
                hold(ask(A=2), now_s),
                measure(now_s),
                propose(ask(A=replicas), generation=number, **times),
            )
        ]
    manifest = PlanIssued(
        generation=number,
        servers=len(plans),
        status=SolveStatus.FEASIBLE,
        cost_per_hour=0,
        solver="x",
        performance_model="x",
        solve_s=0,
        **times,
    )
    return [*facts, manifest]


async def test_decisions_are_metrics_while_their_server_is_declared_and_all_are_in_the_audit_trail(
    nats: EmbeddedServer, outside: Bus
) -> None:
    settings = ActuatorProcess.model_validate({"bus": {"url": nats.url}, "actuator": {"target": "metrics"}})
    names = ("stoker_desired_replicas", "wva_desired_replicas", "inferno_desired_replicas")

    async def publish(*facts: Contract) -> None:
        for fact in facts:
            await outside.publish(encode(Emit(fact), "test", time.time()))

    def shown(chassis: Chassis, server: str) -> set[float | None]:
        labels = {"variant_name": server, "namespace": "", "accelerator_type": "A"}
        registry = chassis.metrics.registry
        own = registry.get_sample_value(names[0], {"server": server, "accelerator": "A"})
        return {own, *(registry.get_sample_value(name, labels) for name in names[1:])}

    async with running(ActuatorService(settings), settings) as chassis:
        await publish(fleet("one", "a", "b"), *generation(1, {"a": 3, "b": 1}))

        async def both() -> bool:
            return shown(chassis, "a") == {3.0} and shown(chassis, "b") == {2.0}

        assert await until(both)
        await publish(fleet("two", "a"), *generation(2, {"a": 4}))

        async def one() -> bool:
            return shown(chassis, "a") == {4.0} and shown(chassis, "b") == {None}

        assert await until(one)
    decisions: list[DecisionMade] = await told(outside, "DECISIONS", "stoker.v1.decision.made.*")
    assert [(d.server, d.generation, d.verdict.value, d.rule) for d in decisions] == [
        ("a", 1, "allow", "plan"),
        ("b", 1, "hold", "down"),
        ("a", 2, "allow", "plan"),
    ]
    assert decisions[2].current == ask(A=3)  # An autoscaler that is still at two is no other writer.
    assert not any(d.dry_run for d in decisions)
