"""Several instances of a partitioned service on a real server: every key has one owner, and no window is lost."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from echo import BUSY_S, Echo, chassis_of, messages, sent, until, window

from schemas.base import Contract, Quality
from schemas.subjects import PARTITIONS, partition_of
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.runtime.bus import Bucket, Bus
from services.runtime.chassis import Chassis
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Event
from services.runtime.errors import Retry
from services.runtime.service import Outcome
from services.runtime.topology import ACK_WAIT_S, LEASES, SNAPSHOTS

LEASE_S = 1.5
SERVERS = [(f"server-{i}", f"model-{i % 60}") for i in range(300)]
FORECASTS = "stoker.v1.forecast.issued.*"


Connect = Callable[..., Awaitable[Bus]]


@asynccontextmanager
async def several_more(server: EmbeddedServer, there: Chassis, name: str) -> AsyncIterator[None]:
    """One more instance, beside one that holds everything."""
    joining = chassis_of(server, Counting(), name, lease_s=LEASE_S)
    task = asyncio.create_task(joining.run())
    await shared(there, joining)
    yield
    joining.stop()
    await asyncio.wait_for(task, 60)


@asynccontextmanager
async def several(
    server: EmbeddedServer, *names: str
) -> AsyncIterator[dict[str, tuple[Chassis, asyncio.Task[None]]]]:
    """Instances that share the partitions; at the end all are stopped in order."""
    made = {name: chassis_of(server, Counting(), name, lease_s=LEASE_S) for name in names}
    running = {name: (chassis, asyncio.create_task(chassis.run())) for name, chassis in made.items()}
    try:
        await shared(*(chassis for chassis, _ in running.values()))
        yield running
    finally:
        for chassis, _ in running.values():
            chassis.stop()
        await asyncio.wait_for(
            asyncio.gather(*(task for _, task in running.values()), return_exceptions=True), 60
        )


class Counting(Echo):
    """The parts do not share what they know: what a part has counted, its snapshots alone carry on."""

    def part(self, partition: str) -> "Counting":
        part = super().part(partition)
        part.whole, part.log, part.batches = part, [], []
        assert isinstance(part, Counting)
        return part


async def shared(*instances: Chassis) -> None:
    """Wait until the instances hold all partitions, each its share."""
    await until(
        lambda: (
            sum(len(one.held) for one in instances) == PARTITIONS
            and max(len(one.held) for one in instances) - min(len(one.held) for one in instances) <= 1
        )
    )


async def publish(outside: Bus, rounds: range) -> None:
    """A window of every server in every round."""
    for end_s in rounds:
        wires = [sent(window(float(end_s), server, model)) for server, model in SERVERS]
        await asyncio.gather(*(outside.publish(wire) for wire in wires))


async def owners(outside: Bus) -> dict[str, list[str]]:
    """By server, the instances that answered for it in the order of the stream, repetitions left out."""
    found: dict[str, list[str]] = {}
    for raw in await outside.everything("STATE", [FORECASTS]):
        server, instance = raw.subject.rsplit(".", 1)[1], raw.headers["ce-instance"]
        if found.setdefault(server, []) == [] or found[server][-1] != instance:
            found[server].append(instance)
    return found


async def counted(snapshots: Bucket) -> Counter[int]:
    """How many servers have had how many windows counted, as the snapshots say."""
    return Counter(int(value) for value, _ in (await snapshots.all()).values())


async def all_counted(snapshots: Bucket, windows: int, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (found := await counted(snapshots)) != {windows: len(SERVERS)}:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


async def test_three_instances_share_the_partitions_and_each_server_is_answered_by_one_of_them(
    nats: EmbeddedServer, outside: Bus, connect: Connect
):
    snapshots = await (await connect("predictor")).bucket(SNAPSHOTS)
    async with several(nats, "one", "two", "three") as instances:
        await publish(outside, range(1, 6))
        await all_counted(snapshots, 5, within_s=60)
        held = {name: chassis.held for name, (chassis, _) in instances.items()}
    assert sorted(len(one) for one in held.values()) == [21, 21, 22]
    assert sorted(p for one in held.values() for p in one) == sorted(map(str, range(PARTITIONS)))
    found = await owners(outside)
    assert set(found) == {server for server, _ in SERVERS}
    for server, model in SERVERS:
        (owner,) = found[server]
        assert partition_of(model) in held[owner]


async def test_the_keys_of_a_killed_instance_move_within_the_lease_and_no_window_is_lost(
    nats: EmbeddedServer, outside: Bus, connect: Connect
):
    snapshots = await (await connect("predictor")).bucket(SNAPSHOTS)
    async with several(nats, "one", "two", "three") as instances:
        await publish(outside, range(1, 3))
        await all_counted(snapshots, 2, within_s=60)
        killed, task = instances["two"]
        orphans = killed.held
        publishing = asyncio.create_task(publish(outside, range(3, 6)))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        began = time.monotonic()
        left = [instances["one"][0], instances["three"][0]]
        await until(lambda: orphans <= left[0].held | left[1].held)
        took_s = time.monotonic() - began
        assert took_s < LEASE_S * (1 + 2 / 3) + BUSY_S, "a term, and the rounds that see it"
        assert not left[0].held & left[1].held
        await publishing
        # What it had in hand is delivered again once its acknowledgement is overdue.
        await all_counted(snapshots, 5, within_s=ACK_WAIT_S + 20)
    for server, instances_in_turn in (await owners(outside)).items():
        assert len(instances_in_turn) <= 2, server
        assert len(instances_in_turn) == 1 or instances_in_turn[0] == "two"


async def test_what_a_killed_instance_had_in_hand_is_handled_before_what_came_later(
    nats: EmbeddedServer, outside: Bus
):
    def busy(_: TelemetryObserved) -> None:
        raise Retry("never done", delay_s=3600)

    first, second = Echo(), Echo()
    first.fail = busy
    killed = chassis_of(nats, first, "killed", lease_s=LEASE_S)
    task = asyncio.create_task(killed.run())
    await until(lambda: len(killed.held) == PARTITIONS)
    await outside.publish(sent(window(1.0)))
    await until(lambda: [1.0] in first.batches)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await outside.publish(sent(window(2.0)))
    heir = chassis_of(nats, second, "heir", lease_s=LEASE_S)
    task = asyncio.create_task(heir.run())
    # Long before its acknowledgement is overdue.
    await until(lambda: sum(map(len, second.batches)) == 2, within_s=ACK_WAIT_S / 2)
    assert [end_s for batch in second.batches for end_s in batch] == [1.0, 2.0]
    heir.stop()
    await asyncio.wait_for(task, 60)


async def test_an_instance_that_joins_is_given_its_share_and_one_that_leaves_gives_it_back_at_once(
    nats: EmbeddedServer, outside: Bus, connect: Connect
):
    bus = await connect("predictor")
    snapshots, leases = await bus.bucket(SNAPSHOTS), await bus.bucket(LEASES)
    async with several(nats, "one") as instances:
        one, _ = instances["one"]
        await publish(outside, range(1, 2))
        async with several_more(nats, one, "two"):
            await publish(outside, range(2, 4))
            await all_counted(snapshots, 3, within_s=60)
            assert len(one.held) == PARTITIONS // 2
        # Given back, not left to run out.
        assert not any(b"two" in value or "two" in key for key, (value, _) in (await leases.all()).items())
        await until(lambda: len(one.held) == PARTITIONS)
        await publish(outside, range(4, 5))
        await all_counted(snapshots, 4, within_s=60)
    assert await leases.all() == {}


class Brittle(Echo):
    """Fails on what is said of one server, in the part that it belongs to."""

    def concerns(self, payload: Contract) -> bool:
        return self.whole is not self

    def handle(self, events: Sequence[Event]) -> Outcome:
        if any(isinstance(e.payload, InventoryObserved) and e.payload.server == "bad" for e in events):
            raise ZeroDivisionError("by zero")
        return super().handle(events)


async def test_what_a_part_fails_on_of_what_all_see_is_left_out_alone_and_ends_nothing(
    nats: EmbeddedServer, outside: Bus
):
    # There before the service starts, as after every restart.
    for server in ("bad", "good"):
        payload = InventoryObserved(server=server, model="m", observed_at_s=1.0, quality=Quality.OK)
        await outside.publish(sent(payload))
    chassis = chassis_of(nats, echo := Brittle(), lease_s=LEASE_S)
    task = asyncio.create_task(chassis.run())
    await until(lambda: messages(chassis, "failed", "inventory.observed") == 1)
    await until(lambda: "handle InventoryObserved" in echo.log)
    assert chassis.reasons() == [] and not task.done()
    chassis.stop()
    await asyncio.wait_for(task, 60)


async def test_what_all_instances_see_reaches_every_part_also_when_the_server_has_been_away(
    nats: EmbeddedServer, outside: Bus
):
    def seen(at_s: float) -> InventoryObserved:
        return InventoryObserved(server="s", model="m", observed_at_s=at_s, quality=Quality.OK)

    chassis = chassis_of(nats, echo := Echo(), lease_s=LEASE_S)
    task = asyncio.create_task(chassis.run())
    await until(lambda: len(chassis.held) == PARTITIONS)
    await outside.publish(sent(seen(1.0)))
    await until(lambda: echo.log.count("handle InventoryObserved") == 1)
    nats.kill()
    await until(lambda: not echo.host.active)
    await nats.start()
    await outside.publish(sent(seen(2.0)))
    await until(lambda: echo.log.count("handle InventoryObserved") >= 2)
    chassis.stop()
    await asyncio.wait_for(task, 60)
