"""The parts of a partitioned service that this process holds: taken, worked, given back.

Each partition is held under a lease of its own and worked by a service object of its own, so what one part does
is what a whole service without partitions does.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.subjects import PARTITIONS, decode_token, encode_token
from services.runtime.bus import Bucket, Conflict, Pull
from services.runtime.envelope import Event, Raw
from services.runtime.errors import Fatal, Retry, TopologyDrift
from services.runtime.intake import Intake
from services.runtime.lease import Lease, LeaseLost
from services.runtime.service import Service
from services.runtime.shares import Roll, preferred, share_of
from services.runtime.topology import consumer_of_partition, newest_filters
from services.runtime.worker import Line, Worker, ended, newest_events, side_by_side

_SIGNS = "members"
_LEASES = "parts"
_ENDING_S = 10.0
_IN_HAND = 128
"""Messages of one part under way: those of all parts are done with well before they would be delivered again."""


@dataclass
class Part:
    """One partition while it is held.

    keeping: renews the lease, from when it was won; left: what its holder before had in hand; unseen: messages
    for all instances that it has not yet taken.
    """

    worker: Worker
    lease: Lease
    keeping: asyncio.Task[None]
    pull: Pull
    left: Sequence[Raw] = ()
    unseen: dict[str, Event] = field(default_factory=dict)
    noted: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None


class Parts:
    """Holds this instance's share of the partitions of a service.

    Parameters: pattern, the service that makes the parts; leases, the bucket of leases of the service.
    """

    def __init__(self, pattern: Service, line: Line, leases: Bucket) -> None:
        self._pattern = pattern
        self._line = line
        self._leases = leases
        self._instance = line.settings.instance
        self._term_s = line.settings.lease_s
        self._order = preferred(self._instance, PARTITIONS)
        self._attempts = {p: self._lease(p) for p in self._order}
        self._roll = Roll()
        self._held: dict[str, Part] = {}
        self._newest: dict[str, Event] = {}
        self._intake = Intake(line.service)
        self._after: dict[str, int] = {}

    @property
    def held(self) -> frozenset[str]:
        """The partitions that this instance works at this moment."""
        return frozenset(self._held)

    async def begin(self) -> None:
        """Take in the newest of what all instances see; raises Retry."""
        for stream, filters in newest_filters(self._line.service).items():
            last = await self._line.bus.last_sequence(stream)
            self._after |= dict.fromkeys(filters, last)
            events = await newest_events(self._line, self._intake, stream, filters)
            self._intake.remember(events)
            self._note(events)

    async def follow(self, stream: str, subject: str) -> None:
        """Pass on to the parts what all instances see of a subject, for ever."""
        while True:
            try:
                pull = await self._line.bus.follow(stream, subject, self._after[subject])
            except Retry as error:
                self._line.log.warning("not following", subject=subject, error=str(error))
                await asyncio.sleep(error.delay_s)
                continue
            try:
                while True:
                    await self._pass_on(subject, pull)
            except TopologyDrift:
                # A server that restarted has forgotten the consumer; the next goes on where this one was.
                continue
            finally:
                await pull.stop()

    async def _pass_on(self, subject: str, pull: Pull) -> None:
        batch = await pull.next()
        found = self._intake.sort(batch, self._line.clock.now_s())
        for _, topic, outcome in found.done:
            self._line.metrics.messages.labels(self._line.service, topic, outcome).inc()
        await side_by_side(self._line.park(raw, reason) for raw, reason in found.refused)
        events = [event for _, event in found.good]
        self._intake.remember(events)
        self._note(events)
        self._line.count_handled(events)
        self._after[subject] = max(self._after[subject], *(raw.sequence for raw in batch))

    def _note(self, events: Sequence[Event]) -> None:
        self._newest |= {event.subject: event for event in events}
        self._pattern.hydrate(events)
        for part in self._held.values():
            part.unseen |= {e.subject: e for e in events if part.worker.service.concerns(e.payload)}
            if part.unseen:
                part.noted.set()

    async def hold(self) -> None:
        """Keep to this instance's share, for ever; raises what a part raised."""
        while True:
            try:
                await self._balance()
            except Retry as error:
                self._line.log.warning("shares not looked at", error=str(error))
            await self._watch(self._term_s / 3)

    async def _balance(self) -> None:
        sign = f"{_SIGNS}.{encode_token(self._instance)}"
        await self._leases.put(sign, b"{}")
        records = await self._leases.all()
        signs = {k.removeprefix(f"{_SIGNS}."): r for k, (_, r) in records.items() if k.startswith(_SIGNS)}
        self._roll = self._roll.called(signs, time.monotonic())
        for name, revision in self._roll.forgotten(time.monotonic(), self._term_s).items():
            with contextlib.suppress(Conflict):
                await self._leases.delete(f"{_SIGNS}.{name}", revision)
        living = self._roll.living(time.monotonic(), self._term_s)
        surplus = len(self._held) - share_of(encode_token(self._instance), living, PARTITIONS)
        if surplus > 0:
            await self._give_back([p for p in reversed(self._order) if p in self._held][:surplus])
        else:
            await self._take(records, -surplus)

    async def _take(self, records: Mapping[str, tuple[bytes, int]], count: int) -> None:
        """Try leases that are free until so many are won, and begin with these."""
        # All are looked at, whether wanted or not: the leases of an instance that dies are free a term later.
        others = {p: records.get(f"{_LEASES}.{p}") for p in self._order if p not in self._held}
        free = [partition for partition, record in others.items() if self._attempts[partition].free(record)]
        won: list[str] = []
        while free and len(won) < count:
            tried, free = free[: count - len(won)], free[count - len(won) :]
            took = await asyncio.gather(*(self._attempts[p].attempt(others[p]) for p in tried))
            won += [partition for partition, ours in zip(tried, took, strict=True) if ours]
        if won:
            await self._work(won)

    async def _work(self, partitions: Sequence[str]) -> None:
        # The first parts are at work while the last are made ready, which may take longer than a lease lives.
        keeping = {p: asyncio.create_task(self._attempts[p].keep(), name=f"lease-{p}") for p in partitions}
        try:
            snapshots: dict[str, dict[str, bytes]] = {partition: {} for partition in partitions}
            for key, (value, _) in (await self._line.snapshots.all(*partitions)).items():
                partition, _, own = key.partition(".")
                snapshots[partition][decode_token(own)] = value
            for partition in partitions:
                await self._begin(partition, snapshots[partition], keeping)
        finally:
            await ended(keeping.values())
        self._count("taken", partitions)

    async def _begin(
        self, partition: str, snapshots: Mapping[str, bytes], keeping: dict[str, asyncio.Task[None]]
    ) -> None:
        lease = self._attempts[partition]
        service = self._pattern.part(partition)
        worker = Worker(service, self._line, lease, partition)
        consumer = consumer_of_partition(self._line.service, partition)
        left = await self._line.bus.in_hand(consumer)
        pull = await self._line.inbound.pull_verified(consumer, _IN_HAND)
        service.restore(snapshots)
        known = {s: event for s, event in self._newest.items() if service.concerns(event.payload)}
        service.hydrate(list(known.values()))
        # Handled once more, in case the part's last holder ended before it could say what follows from it.
        part = self._held[partition] = Part(worker, lease, keeping.pop(partition), pull, left, known)
        if known:
            part.noted.set()
        part.life = asyncio.create_task(self._live(part), name=f"part-{partition}")

    async def _live(self, part: Part) -> None:
        service = part.worker.service
        working = [
            part.keeping,
            asyncio.create_task(self._consume(part)),
            asyncio.create_task(self._observe(part)),
            *(asyncio.create_task(task()) for task in service.tasks().values()),
        ]
        try:
            done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await ended(working)
            await part.pull.stop()

    async def _consume(self, part: Part) -> None:
        """Work what was left behind, then what comes: what is skipped as older than the newest would be lost."""
        while part.left:
            try:
                await part.worker.take_over(part.left)
                part.left = ()
            except Retry as error:
                self._line.log.warning("retrying", messages=len(part.left), error=str(error))
                await asyncio.sleep(error.delay_s)
        await part.worker.consume(part.pull)

    async def _observe(self, part: Part) -> None:
        """Give a part what all instances see; what cannot be published is tried again with what came since."""
        while True:
            await part.noted.wait()
            part.noted.clear()
            events, part.unseen = list(part.unseen.values()), {}
            try:
                await self._tell(part, events)
            except Retry as error:
                self._line.log.warning("retrying", messages=len(events), error=str(error))
                part.unseen = {event.subject: event for event in events} | part.unseen
                await asyncio.sleep(error.delay_s)
                part.noted.set()

    async def _tell(self, part: Part, events: Sequence[Event]) -> None:
        """Handle messages; if that fails, one by one, so that one cannot hold up the rest or end the process."""
        try:
            await part.worker.transact(lambda: part.worker.service.handle(events))
        except (Retry, Fatal):
            raise
        except Exception:
            if len(events) > 1:
                for event in events:
                    await self._tell(part, [event])
                return
            self._line.log.exception("left out", subject=events[0].subject)
            outcomes = self._line.metrics.messages
            outcomes.labels(self._line.service, events[0].topic.name, "failed").inc()

    async def _watch(self, for_s: float) -> None:
        """Wait; a part that lost its lease is let go, one that failed ends the process."""
        lives = {part.life: partition for partition, part in self._held.items() if part.life is not None}
        if not lives:
            await asyncio.sleep(for_s)
            return
        done, _ = await asyncio.wait(lives, timeout=for_s, return_when=asyncio.FIRST_COMPLETED)
        for life in done:
            partition = lives[life]
            del self._held[partition]
            self._attempts[partition] = self._lease(partition)
            try:
                life.result()
            except LeaseLost as error:
                self._line.log.warning("lost", partition=partition, error=str(error))
            self._count("lost", [partition])

    async def give_back_all(self) -> None:
        """Finish what is in hand and leave the service to the other instances."""
        await self._give_back(list(self._held))
        with contextlib.suppress(Conflict, Retry):
            await self._leases.delete(f"{_SIGNS}.{encode_token(self._instance)}")

    async def _give_back(self, partitions: Sequence[str]) -> None:
        parts = [self._held.pop(partition) for partition in partitions]
        for part in parts:
            await part.pull.stop()
        lives = [part.life for part in parts if part.life is not None]
        if lives:
            await asyncio.wait(lives, timeout=_ENDING_S)
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        await asyncio.gather(*(part.lease.release() for part in parts))
        self._attempts |= {partition: self._lease(partition) for partition in partitions}
        self._count("given back", partitions)

    async def close(self) -> None:
        """Drop what is still held, as it is; its leases run out."""
        lives = [part.life for part in self._held.values() if part.life is not None]
        self._held.clear()
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        self._count("dropped", [])

    def _lease(self, partition: str) -> Lease:
        return Lease(self._leases, f"{_LEASES}.{partition}", self._instance, self._term_s)

    def _count(self, what: str, partitions: Sequence[str]) -> None:
        self._line.metrics.partitions.labels(self._line.service).set(len(self._held))
        self._line.metrics.active.labels(self._line.service).set(1 if self._held else 0)
        if partitions:
            self._line.log.info(f"partitions {what}", partitions=len(partitions), held=len(self._held))
