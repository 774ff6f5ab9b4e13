"""Control time: the wall's, accelerated, and manual."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.clock import AcceleratedClock, Clock, VirtualClock, WallClock
from services.runtime.settings import ClockSettings, SettingsRefused, clock_of


@given(st.floats(0.01, 10_000), st.floats(0, 2e9), st.floats(-1e6, 1e6))
def test_an_accelerated_clock_maps_wall_time_linearly_from_its_anchor(
    speed: float, anchor_s: float, elapsed_s: float
):
    wall_s = anchor_s + elapsed_s
    clock = AcceleratedClock(speed, anchor_s, wall=lambda: wall_s)
    # Doubles near 2e9 are 2.4e-7 apart, and the speed multiplies that.
    assert clock.now_s() == pytest.approx(anchor_s + elapsed_s * speed, rel=1e-9, abs=1e-6 * speed)
    assert clock.to_clock_s(anchor_s) == anchor_s


def test_two_processes_with_one_anchor_agree():
    one, other = AcceleratedClock(60, 1e9, lambda: 1e9 + 5), AcceleratedClock(60, 1e9, lambda: 1e9 + 5)
    assert one.now_s() == other.now_s() == 1e9 + 300


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_clock_that_does_not_go_forward_is_refused(speed: float):
    with pytest.raises(ValueError, match="more than 0"):
        AcceleratedClock(speed, 0.0)


@pytest.mark.parametrize("clock", [WallClock(), AcceleratedClock(1000.0, time.time())])
async def test_sleeping_ends_when_control_time_has_come_and_not_before(clock: Clock):
    for ahead_s in (0.02, 0.0, -5.0):
        at_s = clock.now_s() + ahead_s * clock.speed
        await asyncio.wait_for(clock.sleep_until(at_s), 5.0)
        assert clock.now_s() >= at_s


async def test_a_wait_for_the_past_still_lets_others_run():
    ran = []
    asyncio.get_running_loop().call_soon(lambda: ran.append(True))
    await WallClock().sleep_until(0.0)
    assert ran == [True]


def sleeper(clock: VirtualClock, at_s: float, log: list[tuple[str, float]], name: str) -> asyncio.Task[None]:
    async def sleep() -> None:
        await clock.sleep_until(at_s)
        log.append((name, clock.now_s()))

    return asyncio.ensure_future(sleep())


async def test_a_virtual_clock_wakes_sleepers_in_the_order_of_their_times_each_at_its_own():
    clock, log = VirtualClock(100.0), list[tuple[str, float]]()
    tasks = [sleeper(clock, at, log, name) for at, name in ((130, "c"), (110, "a"), (120, "b"), (110, "a2"))]
    await asyncio.sleep(0)
    await clock.advance(125.0)
    assert log == [("a", 110.0), ("a2", 110.0), ("b", 120.0)]
    assert clock.now_s() == 125.0
    await clock.advance(130.0)
    assert log[-1] == ("c", 130.0)
    await asyncio.gather(*tasks)


async def test_a_loop_that_sleeps_again_is_woken_at_every_one_of_its_times():
    clock, ticks = VirtualClock(), list[float]()

    async def loop() -> None:
        while True:
            await clock.sleep_until(clock.now_s() + 10.0)
            ticks.append(clock.now_s())

    task = asyncio.ensure_future(loop())
    await asyncio.sleep(0)
    await clock.advance(35.0)
    task.cancel()
    assert ticks == [10.0, 20.0, 30.0]


async def test_a_sleeper_that_was_cancelled_does_not_stop_the_others():
    clock, log = VirtualClock(), list[tuple[str, float]]()
    gone, kept = sleeper(clock, 1.0, log, "gone"), sleeper(clock, 2.0, log, "kept")
    await asyncio.sleep(0)
    gone.cancel()
    await clock.advance(3.0)
    assert log == [("kept", 2.0)]
    await kept


async def test_virtual_time_does_not_go_back():
    clock = VirtualClock(5.0)
    with pytest.raises(ValueError, match="cannot go back"):
        await clock.advance(4.0)
    await asyncio.wait_for(clock.sleep_until(5.0), 1.0)


@given(st.lists(st.floats(0.001, 100), max_size=20))
def test_virtual_sleepers_wake_sorted_whatever_order_they_came_in(times: list[float]):
    async def run() -> list[tuple[str, float]]:
        clock, log = VirtualClock(), list[tuple[str, float]]()
        tasks = [sleeper(clock, at, log, "") for at in times]
        await asyncio.sleep(0)
        await clock.advance(100.0)
        await asyncio.gather(*tasks)
        return log

    assert [at for _, at in asyncio.run(run())] == sorted(times)


def test_settings_choose_the_clock_and_an_acceleration_needs_an_anchor():
    assert isinstance(clock_of(ClockSettings()), WallClock)
    assert isinstance(clock_of(ClockSettings(speed=30, anchor_s=1.0)), AcceleratedClock)
    with pytest.raises(SettingsRefused, match=r"clock\.anchor_s"):
        clock_of(ClockSettings(speed=30))
