"""Of all instances one at a time holds the lease, whatever the network does to their messages.

Time is virtual: the event loop jumps to its next timer, so minutes pass in milliseconds.
"""

import asyncio
import json
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.bus import Conflict
from services.runtime.errors import Fatal, Retry
from services.runtime.lease import Lease

TERM_S = 10.0


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, moves its loop's time on."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for something that cannot come"
        self.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Store:
    """One key in memory. `travel` gives, per request, the seconds there and back, and what gets lost."""

    def __init__(self, travel: Callable[[], tuple[float, float, bool]] = lambda: (0.0, 0.0, False)) -> None:
        self.value: bytes | None = None
        self.revision = 0
        self.timeout_s = 2.0
        self._travel = travel

    async def _ask(self, apply: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        there_s, back_s, lost = self._travel()
        answered: asyncio.Future[Any] = loop.create_future()

        def arrive() -> None:
            try:
                result: Any = apply()
            except Conflict as error:
                result = error
            loop.call_later(back_s, lambda: answered.done() or answered.set_result(result))

        if not lost:
            loop.call_later(there_s, arrive)
        try:
            result = await asyncio.wait_for(answered, self.timeout_s)
        except TimeoutError:
            raise Retry("no answer") from None
        if isinstance(result, Conflict):
            raise result
        return result

    def _write(self, value: bytes | None, revision: int | None) -> int:
        if revision is not None and revision != self.revision:
            raise Conflict("wrong last sequence")
        if revision is None and self.value is not None:
            raise Conflict("exists")
        self.revision += 1
        self.value = value
        return self.revision

    async def get(self, key: str) -> tuple[bytes, int] | None:
        return await self._ask(lambda: (self.value, self.revision) if self.value is not None else None)

    async def create(self, key: str, value: bytes) -> int:
        return await self._ask(lambda: self._write(value, None))

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await self._ask(lambda: self._write(value, revision))

    async def delete(self, key: str, revision: int) -> None:
        await self._ask(lambda: self._write(None, revision))


def lease(
    store: Store, holder: str, term_s: float = TERM_S, offset_s: float = 0.0, rate: float = 1.0
) -> Lease:
    loop = asyncio.get_running_loop()
    return Lease(store, "active", holder, term_s, monotonic=lambda: offset_s + loop.time() * rate)


async def until(condition: Callable[[], bool], within_s: float) -> float:
    deadline = now_s() + within_s
    while not condition():
        assert now_s() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)
    return now_s()


def test_the_first_gets_a_free_lease_at_once_and_keeps_it():
    async def main() -> None:
        one = lease(Store(), "one")
        assert not one.held
        await one.acquire()
        assert now_s() == 0.0
        keeping = asyncio.ensure_future(one.keep())
        for _ in range(1000):
            await asyncio.sleep(0.1)
            assert one.held
        keeping.cancel()
        await asyncio.sleep(TERM_S)
        assert not one.held

    run(main())


def test_a_second_instance_gets_the_lease_within_a_term_and_a_little_after_the_first_falls_silent():
    async def main() -> None:
        store = Store()
        one, two = lease(store, "one"), lease(store, "two", offset_s=1e6)
        await one.acquire()
        keeping, waiting = asyncio.ensure_future(one.keep()), asyncio.ensure_future(two.acquire())
        await asyncio.sleep(100.0)
        assert not waiting.done()
        keeping.cancel()
        silent_s = now_s()
        taken_s = await until(lambda: two.held, 3 * TERM_S)
        assert not one.held
        assert taken_s - silent_s <= TERM_S * 1.1 + 0.02
        await waiting

    run(main())


def test_a_released_lease_is_taken_at_once():
    async def main() -> None:
        store = Store()
        one, two = lease(store, "one"), lease(store, "two")
        await one.acquire()
        waiting = asyncio.ensure_future(two.acquire())
        await asyncio.sleep(1.0)
        await one.release()
        assert not one.held
        await asyncio.wait_for(waiting, TERM_S / 10 + 0.01)
        assert two.held

    run(main())


def test_releasing_what_is_no_longer_held_leaves_the_lease_of_the_next_alone():
    async def main() -> None:
        store = Store()
        one, two = lease(store, "one"), lease(store, "two")
        await one.acquire()
        await asyncio.sleep(TERM_S * 3)
        await two.acquire()
        before = store.revision
        await one.release()
        assert store.revision == before
        assert two.held

    run(main())


def test_a_release_that_arrives_after_another_took_the_lease_does_not_free_it():
    async def main() -> None:
        delay = [0.0]
        store = Store(lambda: (delay[0], 0.0, False))
        one, two = lease(store, "one"), lease(store, "two")
        await one.acquire()
        waiting = asyncio.ensure_future(two.acquire())
        await asyncio.sleep(TERM_S * 0.79)
        delay[0] = TERM_S
        releasing = asyncio.ensure_future(one.release())
        await asyncio.sleep(0)
        delay[0] = 0.0
        await releasing
        await asyncio.wait_for(waiting, TERM_S)
        await asyncio.sleep(TERM_S * 0.7)
        assert two.held
        assert json.loads(store.value or b"")["holder"] == "two"

    run(main())


def test_without_the_bus_a_release_does_not_fail():
    async def main() -> None:
        lost = [False]
        one = lease(Store(lambda: (0.0, 0.0, lost[0])), "one")
        await one.acquire()
        lost[0] = True
        await one.release()
        assert not one.held

    run(main())


def test_an_instance_of_the_same_name_that_comes_back_need_not_wait():
    async def main() -> None:
        store = Store()
        await lease(store, "pod-0").acquire()
        again = lease(store, "pod-0")
        await again.acquire()
        assert now_s() == 0.0
        assert again.held

    run(main())


@pytest.mark.parametrize("garbage", [b"", b"{", b"null", b"[]", b'{"holder": 1}', b"\xff"])
def test_a_record_that_cannot_be_read_is_waited_out_like_any_other(garbage: bytes):
    async def main() -> None:
        store = Store()
        store._write(garbage, None)
        one = lease(store, "one")
        await one.acquire()
        assert TERM_S <= now_s() <= TERM_S * 1.11

    run(main())


def test_a_renewal_whose_acknowledgement_is_lost_is_found_to_be_ones_own():
    async def main() -> None:
        back = [0.0]
        store = Store(lambda: (0.0, back[0], False))
        one = lease(store, "one")
        await one.acquire()
        keeping = asyncio.ensure_future(one.keep())
        back[0] = 60.0
        await until(lambda: store.revision == 2, TERM_S)
        back[0] = 0.0
        for _ in range(500):
            await asyncio.sleep(0.1)
            assert one.held
        assert not keeping.done()
        keeping.cancel()

    run(main())


def test_who_finds_another_in_its_place_stops_with_the_others_name():
    async def main() -> None:
        store = Store()
        one = lease(store, "one")
        await one.acquire()
        store._write(b'{"holder": "two"}', store.revision)
        with pytest.raises(Fatal, match="'active' was lost to two"):
            await one.keep()
        assert not one.held

    run(main())


def test_who_finds_its_lease_deleted_stops():
    async def main() -> None:
        store = Store()
        one = lease(store, "one")
        await one.acquire()
        store._write(None, store.revision)
        with pytest.raises(Fatal, match="lost to nobody"):
            await one.keep()

    run(main())


def test_keeping_before_acquiring_is_a_fault_of_the_program():
    async def main() -> None:
        with pytest.raises(Fatal, match="before it is acquired"):
            await lease(Store(), "one").keep()

    run(main())


def test_an_outage_that_nobody_used_ends_with_the_lease_held_again():
    async def main() -> None:
        lost = [False]
        store = Store(lambda: (0.0, 0.0, lost[0]))
        one = lease(store, "one")
        await one.acquire()
        keeping = asyncio.ensure_future(one.keep())
        lost[0] = True
        await asyncio.sleep(5 * TERM_S)
        assert not one.held
        lost[0] = False
        await until(lambda: one.held, TERM_S)
        assert not keeping.done()
        keeping.cancel()

    run(main())


@given(
    seed=st.integers(0, 2**32),
    instances=st.integers(2, 4),
    slow_s=st.sampled_from([0.0, 0.5, 3.0, 15.0]),
    loss=st.sampled_from([0.0, 0.1, 0.5]),
    timeout_s=st.sampled_from([2.0, 8.0]),
)
@settings(max_examples=40, deadline=None)
def test_two_instances_never_hold_the_lease_at_once_whatever_is_delayed_or_lost(
    seed: int, instances: int, slow_s: float, loss: float, timeout_s: float
):
    async def main() -> int:
        chance = random.Random(seed)

        def travel() -> tuple[float, float, bool]:
            there_s = chance.uniform(0, slow_s) if chance.random() < 0.3 else 0.01
            back_s = chance.uniform(0, slow_s) if chance.random() < 0.3 else 0.01
            return there_s, back_s, chance.random() < loss

        store = Store(travel)
        store.timeout_s = timeout_s
        alive: dict[str, Lease] = {}
        wins = 0

        async def live(name: str) -> None:
            nonlocal wins
            while True:
                own = lease(store, name, offset_s=chance.uniform(0, 1e5), rate=chance.uniform(0.98, 1.02))
                alive[name] = own
                await own.acquire()
                assert not any(one.held for one in alive.values() if one is not own)
                wins += 1
                ending = chance.choice(["kept", "crashed", "released"])
                keeping = asyncio.ensure_future(own.keep())
                await asyncio.wait({keeping}, timeout=chance.uniform(0, 6 * TERM_S))
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                if ending == "released":
                    await own.release()
                if ending == "crashed":
                    del alive[name]
                    await asyncio.sleep(chance.uniform(1, 3) * TERM_S)
                else:
                    await until(lambda own=own: not own.held, 2 * TERM_S)

        lives = [asyncio.ensure_future(live(f"i{i}")) for i in range(instances)]
        while now_s() < 40 * TERM_S:
            await asyncio.sleep(0.2)
            held = [name for name, one in alive.items() if one.held]
            assert len(held) <= 1, (held, now_s())
            for task in lives:
                if task.done():
                    task.result()
        for task in lives:
            task.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        return wins

    assert run(main()) > (0 if loss or slow_s > 1 else instances)
