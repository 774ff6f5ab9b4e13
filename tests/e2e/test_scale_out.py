"""Several instances of every service as processes, over 60 servers: who does what is read from the streams.

STOKER_TEST_SERVERS asks for more: 300 want a machine that does nothing else.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accounts
from benchmarks.deployment import Deployment
from benchmarks.fleets import fleet_of, write
from schemas.subjects import PARTITIONS, decode_token
from services.predictor.service import PredictorService
from services.predictor.settings import Settings as PredictorSettings
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.settings import BusSettings
from services.runtime.topology import LEASES, SNAPSHOTS

pytestmark = pytest.mark.timeout(600)

# Long enough that a process which waits for its turn on a busy machine does not lose its lease.
LEASE_S = 3.0
SPEED, CYCLE_S = 4.0, 20.0
SERVERS = int(os.environ.get("STOKER_TEST_SERVERS", "60"))
FLEET = fleet_of(SERVERS, models=min(60, SERVERS // 2), load=0.1)
MODELS = {server.name: server.model for server in FLEET.servers}
SHARING = ("tuner", "predictor")
ALONE = ("optimizer", "actuator")
DYING = ("tuner.2", "predictor.2")
INSTANCES = (
    "simulator",
    "collector",
    *(f"{service}{number}" for service in SHARING for number in ("", ".2", ".3")),
    *(f"{service}{number}" for service in ALONE for number in ("", ".2")),
)


@dataclass(frozen=True)
class Scene:
    """A deployment, and a connection as each service."""

    deployment: Deployment
    buses: dict[str, Bus]

    async def holders(self, service: str) -> dict[str, str]:
        return await accounts.holders(await self.buses[service].bucket(LEASES))

    async def parts(self, service: str) -> list[str]:
        """Who holds the partitions of a service."""
        return [name for lease, name in (await self.holders(service)).items() if lease.startswith("parts.")]

    async def shared_by(self, service: str, instances: int) -> bool:
        held = await self.parts(service)
        sizes = [held.count(name) for name in set(held)]
        return len(held) == PARTITIONS and len(sizes) == instances and max(sizes) - min(sizes) <= 1

    async def active(self, service: str) -> str:
        """The instance that is active, by its place in the deployment."""
        name = (await self.holders(service)).get("active", "")
        return name.rpartition("-")[0]

    async def followed(self, before: Sequence[str]) -> bool:
        """Whether each of the services that have one active instance has another than before."""
        now = [await self.active(service) for service in ALONE]
        return all(one and one != other for one, other in zip(now, before, strict=True))

    async def newest_decided(self) -> int:
        """The newest generation that every server has a decision on."""
        decisions = await accounts.facts(self.buses["actuator"], "DECISIONS")
        newest = {f.subject: f.generation for f in decisions if f.topic == "decision.made"}
        return min(newest.values()) if len(newest) == len(MODELS) else 0

    async def until(self, what: str, within_s: float, holds: Callable[[], Awaitable[bool]]) -> float:
        """Wait for something; returns the seconds that it took."""
        began = time.monotonic()
        while not await holds():
            self.deployment.revive()
            if time.monotonic() - began > within_s:
                logs = "\n".join(f"--- {i}\n{self.deployment.log(i)[-1500:]}" for i in INSTANCES)
                raise AssertionError(f"not within {within_s:g} s: {what}\n{logs}")
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    async def decides_on(self, within_s: float = 120.0) -> None:
        """Wait until every server has a decision on a generation that is not decided yet."""
        before = await self.newest_decided()

        async def decided() -> bool:
            return await self.newest_decided() > before

        await self.until(f"a decision after generation {before}", within_s, decided)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    fleet, plant = write(FLEET, tmp_path)
    async with EmbeddedServer(tmp_path / "nats") as nats:
        deployment = Deployment(
            nats.url, tmp_path, fleet.read_text(), plant.read_text(), SPEED, CYCLE_S, LEASE_S
        )
        deployment.apply_bus()
        buses = {s: await Bus.connect(BusSettings(url=nats.url), s) for s in (*SHARING, *ALONE)}
        made = Scene(deployment, buses)
        try:
            for instance in INSTANCES:
                deployment.start(instance)

            async def settled() -> bool:
                ready = await asyncio.to_thread(lambda: all(map(deployment.ready, INSTANCES)))
                return ready and all([await made.shared_by(service, 3) for service in SHARING])

            await made.until("every instance ready, with its share", 120, settled)
            await made.decides_on()
            yield made
        finally:
            await asyncio.to_thread(deployment.stop)
            for bus in buses.values():
                await bus.close()


async def test_whatever_instance_dies_or_stalls_each_key_has_one_owner_and_nothing_is_lost_or_undone(
    scene: Scene,
) -> None:
    deployment = scene.deployment
    settled = {service: await scene.buses[service].last_sequence("STATE") for service in SHARING}

    # One of each dies, and of those that are alone the active one.
    active = [await scene.active(service) for service in ALONE]
    dead = [deployment.name(instance) for instance in DYING]
    for instance in (*DYING, *active):
        deployment.kill(instance)

    async def moved() -> bool:
        return all([await scene.shared_by(service, 2) for service in SHARING])

    took_s = await scene.until("the keys of the dead moved", 120, moved)
    # A term, the rounds that see it, and what a busy machine adds.
    assert took_s < LEASE_S * (1 + 2 / 3) + 8.0
    await scene.until("the active followed", 120, lambda: scene.followed(active))
    for instance in active:
        deployment.start(instance)
    await scene.decides_on()
    await scene.until(
        "the dead stand by", 120, lambda: asyncio.to_thread(lambda: all(map(deployment.ready, active)))
    )

    # The active stall until others have followed, and go on in the middle of what they did.
    active = [await scene.active(service) for service in ALONE]
    for instance in active:
        deployment.freeze(instance)
    await scene.until("the stalled followed", 120, lambda: scene.followed(active))
    await scene.decides_on()
    for instance in active:
        deployment.thaw(instance)
    await scene.decides_on()

    deployment.end("collector")
    for service in SHARING:

        async def handled(service: str = service) -> bool:
            return await accounts.outstanding(scene.buses[service], service) == 0

        await scene.until(f"all windows acknowledged by the {service}", 120, handled)

    found = await accounts.facts(scene.buses["actuator"], "STATE", "DECISIONS")
    for service, topic in zip(SHARING, ("parameters.estimated", "forecast.issued"), strict=True):
        said = [f for f in found if f.topic == topic and f.sequence > settled[service]]
        owners = accounts.turns(said, accounts.partition_of_fact(MODELS))
        assert len(owners) > 20, "most models have a partition of their own"
        assert accounts.shared(owners) == []
        # Only what was a dead one's has changed hands.
        assert {one[0] for one in owners.values() if len(one) > 1} <= set(dead)

    for topic in ("plan.proposed", "plan.issued", "decision.made", "actuation.applied"):
        said = [f for f in found if f.topic == topic]
        assert said
        assert accounts.out_of_order(said) == [], topic
        assert accounts.shared(accounts.turns(said, lambda f: f.subject)) == [], topic
    assert len({f.instance for f in found if f.topic == "decision.made"}) >= 3
    assert len({f.instance for f in found if f.topic == "plan.issued"}) >= 3
    assert await silent_servers(scene.buses["predictor"]) == []


async def silent_servers(bus: Bus) -> list[str]:
    """Servers whose load, as the predictor remembers it, has a window missing."""
    partitions: dict[str, dict[str, bytes]] = {}
    for key, (value, _) in (await (await bus.bucket(SNAPSHOTS)).all()).items():
        partition, _, own = key.partition(".")
        partitions.setdefault(partition, {})[decode_token(own)] = value
    series = {}
    for partition, snapshots in partitions.items():
        part = PredictorService(PredictorSettings()).part(partition)
        part.restore(snapshots)
        series |= part._state.series
    assert series.keys() == MODELS.keys()
    return [name for name, one in series.items() if np.isnan(one.history.rates).any()]
