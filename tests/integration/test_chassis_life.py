"""Instances of a service on a real server: one active, replaced, stopped, ended by what fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from echo import (
    BUSY_S,
    Echo,
    Sole,
    all_acknowledged,
    chassis_of,
    counted,
    ready,
    running,
    sent,
    until,
    window,
)

from schemas.request import ForecastAnswered
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.errors import Fatal, Retry
from services.runtime.service import Outcome
from services.runtime.topology import LEASES

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
    assert took_s < 1.5 * 1.1 + BUSY_S
    await outside.publish(sent(window(2.0)))
    await until(lambda: second.counts == {"s": 2})
    two.stop()
    await asyncio.wait_for(waiting, 60)


async def test_an_instance_that_stops_in_order_hands_over_before_its_lease_is_over(
    nats: EmbeddedServer, outside: Bus
):
    one = chassis_of(nats, Sole(), "one", lease_s=30.0)
    two = chassis_of(nats, Sole(), "two", lease_s=30.0)
    async with running(one):
        waiting = asyncio.create_task(two.run())
        await until(lambda: two.reasons() == [])
    began = time.monotonic()
    await until(lambda: ready(two))
    assert time.monotonic() - began < 15.0
    two.stop()
    await asyncio.wait_for(waiting, 60)


async def test_a_standby_can_be_stopped(nats: EmbeddedServer, outside: Bus):
    async with running(chassis_of(nats, Sole(), "one")):
        two = chassis_of(nats, echo := Sole(), "two")
        waiting = asyncio.create_task(two.run())
        await until(lambda: two.reasons() == [])
        two.stop()
        await asyncio.wait_for(waiting, 60)
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
        await asyncio.wait_for(task, 60)


async def test_an_instance_whose_lease_another_took_ends(
    nats: EmbeddedServer, outside: Bus, connect: Callable[..., Awaitable[Bus]]
):
    chassis = chassis_of(nats, echo := Sole(), lease_s=1.0)
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis))
    leases = await (await connect("actuator")).bucket(LEASES)
    await leases.put("active", b'{"holder": "two"}')
    with pytest.raises(Fatal, match=r"actuator\.lease ended: .*was lost to two"):
        await asyncio.wait_for(task, 60)
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


class Busy(Sole):
    """Has a loop with something in hand that takes until `done`, and stops it only then."""

    def __init__(self) -> None:
        super().__init__()
        self.done = asyncio.Event()
        self.loops = {"works": self.work}

    async def work(self) -> None:
        await self.done.wait()
        self.log.append("done")
        await asyncio.Event().wait()

    async def settle(self) -> None:
        self.log.append("settling")
        await self.done.wait()
        await until(lambda: "done" in self.log)


async def test_a_service_that_stops_finishes_what_its_loops_have_in_hand(nats: EmbeddedServer, outside: Bus):
    chassis = chassis_of(nats, echo := Busy())
    async with running(chassis):
        chassis.stop()
        await until(lambda: "settling" in echo.log)
        assert chassis.reasons() == ["stopping"]
        echo.done.set()
    assert echo.log[-3:] == ["settling", "done", "close"]


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
    await asyncio.wait_for(task, 60)
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
        await asyncio.wait_for(task, 60)
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
        await asyncio.wait_for(chassis_of(nats, echo).run(), 60)


async def test_a_connection_that_is_ended_for_good_ends_the_run(nats: EmbeddedServer, outside: Bus):
    chassis = chassis_of(nats, Echo())
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis))
    await chassis._buses[0]._client.publish("x" * 5000, b"")
    with pytest.raises(Fatal, match=r"predictor\.bus ended: .*maximum control line exceeded"):
        await asyncio.wait_for(task, 60)


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
