"""Time as the services see it: the wall's, an accelerated one that processes share, or a manual one.

Control time is Unix seconds. An accelerated clock maps wall time linearly, so processes that are given the
same anchor agree without talking to each other.
"""

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What the shells need of time."""

    @property
    def speed(self) -> float:
        """Control seconds per wall second."""

    def now_s(self) -> float:
        """Control time, Unix seconds."""

    def to_clock_s(self, wall_s: float) -> float:
        """Control time at a moment of wall time, both Unix seconds."""

    async def sleep_until(self, at_s: float) -> None:
        """Wait until control time has reached `at_s`."""


class WallClock:
    """Control time is wall time."""

    speed = 1.0

    def now_s(self) -> float:
        return time.time()

    def to_clock_s(self, wall_s: float) -> float:
        return wall_s

    async def sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(0)
        # Timers follow the monotonic clock, which the wall's need not keep pace with.
        while (left_s := at_s - self.now_s()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left_s)


class AcceleratedClock:
    """Control time that runs `speed` times as fast as the wall's from a common anchor.

    Parameters: speed, control seconds per wall second; anchor_s, Unix seconds at which both clocks agree.
    """

    def __init__(self, speed: float, anchor_s: float, wall: Callable[[], float] = time.time) -> None:
        if not speed > 0:
            raise ValueError(f"clock speed is {speed}: expected more than 0")
        self.speed = speed
        self.anchor_s = anchor_s
        self._wall = wall

    def now_s(self) -> float:
        return self.to_clock_s(self._wall())

    def to_clock_s(self, wall_s: float) -> float:
        return self.anchor_s + (wall_s - self.anchor_s) * self.speed

    async def sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(0)
        while (left_s := at_s - self.now_s()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left_s / self.speed)


class VirtualClock:
    """Control time that moves only when told to, for tests and lock-step runs."""

    speed = 1.0

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def now_s(self) -> float:
        return self._now_s

    def to_clock_s(self, wall_s: float) -> float:
        return wall_s

    async def sleep_until(self, at_s: float) -> None:
        if at_s <= self._now_s:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (at_s, self._order, woken))
        await woken

    async def advance(self, to_s: float) -> None:
        """Move to `to_s`, waking sleepers in their order; raises ValueError when that lies in the past."""
        if to_s < self._now_s:
            raise ValueError(f"virtual time is {self._now_s}: cannot go back to {to_s}")
        while self._sleepers and self._sleepers[0][0] <= to_s:
            at_s, _, woken = heapq.heappop(self._sleepers)
            self._now_s = max(self._now_s, at_s)
            if not woken.done():
                woken.set_result(None)
            for _ in range(10):
                await asyncio.sleep(0)
        self._now_s = to_s
        await asyncio.sleep(0)
