"""One service, or one part of it, at work under its lease: batches in, facts and snapshots out.

A batch is validated, handled, published, saved and acknowledged, in that order, so whatever ends the process
in between leaves the message to be delivered again, and deterministic ids keep its effects single.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from schemas.base import Contract
from schemas.subjects import encode_token
from schemas.topics import TOPIC_BY_PAYLOAD, dlq_subject, topic_of_subject
from services.runtime.bus import Bucket, Bus, Pull, Stored
from services.runtime.clock import Clock
from services.runtime.envelope import Emit, Event, Raw, decode, encode
from services.runtime.errors import Fatal, Reject, Retry, TooLarge
from services.runtime.intake import REMEMBERED, Intake
from services.runtime.lease import Lease
from services.runtime.metrics import Metrics
from services.runtime.service import Outcome, Service
from services.runtime.settings import RuntimeSettings

_AT_ONCE = 512
_REMEMBERED_OF_PART = 5_000

C = TypeVar("C", bound=Contract)
T = TypeVar("T")


@dataclass
class Line:
    """What all workers of one service in one process share.

    inbound: the connection that messages are pulled on; bus: the one for all else. sending: bounds the messages
    under way; computing: reading and steps take turns, as they share one interpreter,
    and between two of them leases are renewed.
    handled, parked: messages so far.
    """

    service: str
    bus: Bus
    inbound: Bus
    snapshots: Bucket
    settings: RuntimeSettings
    clock: Clock
    metrics: Metrics
    log: Any
    sending: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    computing: asyncio.Lock = field(default_factory=asyncio.Lock)
    handled: int = 0
    parked: int = 0

    async def lost(self) -> None:
        """Wait until a connection has ended for good; raises Fatal then."""
        await side_by_side((self.bus.lost(), self.inbound.lost()))

    async def park(self, raw: Raw, reason: str) -> None:
        """Keep a refused message with its reason, and acknowledge it."""
        topic = topic_of_subject(raw.subject)
        try:
            async with self.sending:
                await self.bus.park(raw, dlq_subject(raw.stream, self.service), reason, self.service)
                await self.bus.ack(raw)
        except Retry as error:
            # It is delivered again; the others of its batch need not wait for that.
            self.log.warning("not parked", subject=raw.subject, sequence=raw.sequence, error=str(error))
            return
        self.parked += 1
        self.metrics.messages.labels(self.service, topic.name if topic else "unknown", "parked").inc()
        self.log.warning("parked", subject=raw.subject, sequence=raw.sequence, reason=reason)

    def count_handled(self, events: Sequence[Event]) -> None:
        """Note events as handled, with their age in control time."""
        self.handled += len(events)
        now_s = self.clock.now_s()
        ages_s: dict[str, list[float]] = {}
        for event in events:
            ages_s.setdefault(event.topic.name, []).append(max(0.0, now_s - event.as_of_s))
        for topic, several in ages_s.items():
            self.metrics.messages.labels(self.service, topic, "handled").inc(len(several))
            observed = self.metrics.event_age.labels(self.service, topic)
            for age_s in several:
                observed.observe(age_s)


class Worker:
    """The host of one service object.

    Parameters: lease, what allows it to act, nothing for one that only answers requests; group, the first
    token of the keys of its snapshots, empty for a service that is not partitioned.
    """

    def __init__(self, service: Service, line: Line, lease: Lease | None, group: str = "") -> None:
        self.service = service
        self.clock = line.clock
        self.metrics = line.metrics
        self.log = line.log
        self.intake = Intake(line.service, _REMEMBERED_OF_PART if group else REMEMBERED)
        self._line = line
        self._lease = lease
        self._prefix = f"{group}." if group else ""
        self._stepping = asyncio.Lock()
        service.host = self

    # What the service sees.

    @property
    def active(self) -> bool:
        return self._line.bus.connected and self._lease is not None and self._lease.held

    async def transact(self, step: Callable[[], Outcome]) -> None:
        """Take one step on the service's state, publish, save, accept; one at a time."""
        async with self._stepping:
            if self._lease is None or not self._lease.held:
                raise Retry(f"this instance does not hold the lease of {self._line.service}")
            async with self._line.computing:
                outcome = await asyncio.to_thread(step) if self.service.heavy else step()
            await self.publish(outcome.emits)
            await side_by_side(self._save(key, value) for key, value in outcome.snapshots.items())
            if outcome.accept is not None:
                outcome.accept()
        for reason, count in outcome.skipped.items():
            self.metrics.skipped.labels(self._line.service, reason).inc(count)

    async def publish(self, emits: Sequence[Emit]) -> list[int]:
        """Publish facts side by side; returns their places in the stream, 0 for one too large to send."""
        stored = await side_by_side(self._publish(emit) for emit in emits)
        return [one.sequence if one is not None else 0 for one in stored]

    async def newest(self, payload: type[C], **keys: str) -> list[C]:
        """The newest message of each subject of a topic, of those with these keys; raises Retry."""
        topic = TOPIC_BY_PAYLOAD[payload]
        tokens = (encode_token(keys[key]) if key in keys else "*" for key in topic.keys)
        found = []
        for raw in await self._line.bus.newest(topic.stream, [".".join((topic.prefix, *tokens))]):
            try:
                message = decode(raw).payload
            except Reject:
                continue
            if isinstance(message, payload):
                found.append(message)
        return found

    # Messages.

    async def take_over(self, left: Sequence[Raw]) -> None:
        """Handle what the holder before had in hand, ahead of what is new; raises Retry.

        It is delivered again once its acknowledgement is overdue; then it is acknowledged, or handled one by one.
        """
        events = [event for _, event in self.intake.sort(left, self.clock.now_s()).good]
        if not events:
            return
        try:
            await self.transact(lambda: self.service.handle(events))
        except (Fatal, Retry):
            raise
        except Exception:
            self.log.exception("not taken over", messages=len(events))
            return
        self.intake.remember(events)
        self._line.count_handled(events)

    async def consume(self, pull: Pull) -> None:
        """Handle what a consumer delivers until its pull is stopped."""
        while not pull.stopped:
            if batch := await pull.next(self.service.linger_s):
                try:
                    if self._lease is not None:
                        # A part that may not act must not take the turns of those that may.
                        await self._lease.regained()
                    await self._process(batch)
                except Retry as error:
                    # What was not acknowledged is delivered again.
                    self.log.warning("retrying", messages=len(batch), error=str(error))

    async def _process(self, batch: Sequence[Raw]) -> None:
        began = time.perf_counter()
        async with self._line.computing:
            found = self.intake.sort(batch, self.clock.now_s())
        for _, topic, outcome in found.done:
            self.metrics.messages.labels(self._line.service, topic, outcome).inc()
        await side_by_side(self._line.park(raw, reason) for raw, reason in found.refused)
        acks = [raw for raw, _, _ in found.done]
        if found.good:
            acks += await self._handle(found.good)
        for raw in acks:
            await self._line.bus.ack(raw)
        self.metrics.handle.labels(self._line.service).observe(time.perf_counter() - began)

    async def _handle(self, good: list[tuple[Raw, Event]]) -> list[Raw]:
        """Handle a batch; if it fails, message by message, so that one cannot hold up the rest."""
        events = [event for _, event in good]
        try:
            await self.transact(lambda: self.service.handle(events))
        except Fatal:
            raise
        except Retry as error:
            self.log.warning("retrying", messages=len(good), error=str(error))
            for raw, event in good:
                self.metrics.messages.labels(self._line.service, event.topic.name, "retried").inc()
                await self._line.bus.retry(raw, error.delay_s)
            return []
        except Exception as error:
            if len(good) > 1:
                return [raw for one in good for raw in await self._handle([one])]
            raw, event = good[0]
            if isinstance(error, Reject) or raw.deliveries >= self._line.settings.bus.max_deliveries:
                await self._line.park(raw, f"{type(error).__name__}: {error}")
                return []
            self.log.exception("retrying", subject=raw.subject, deliveries=raw.deliveries)
            self.metrics.messages.labels(self._line.service, event.topic.name, "retried").inc()
            await self._line.bus.retry(raw, 1.0)
            return []
        self.intake.remember(events)
        self._line.count_handled(events)
        return [raw for raw, _ in good]

    async def _publish(self, emit: Emit) -> Stored | None:
        line = self._line
        topic = TOPIC_BY_PAYLOAD[type(emit.payload)].name
        try:
            wire = encode(emit, line.service, self.clock.now_s(), line.settings.instance)
            async with line.sending:
                stored = await line.bus.publish(wire)
        except TooLarge as error:
            self.metrics.published.labels(line.service, topic, "too_large").inc()
            self.log.error("not published", topic=topic, error=str(error))
            return None
        outcome = "duplicate" if stored.duplicate else "new"
        self.metrics.published.labels(line.service, topic, outcome).inc()
        return stored

    async def _save(self, key: str, value: bytes | None) -> None:
        async with self._line.sending:
            if value is None:
                await self._line.snapshots.delete(self._prefix + encode_token(key))
            else:
                await self._line.snapshots.put(self._prefix + encode_token(key), value)


async def newest_events(line: Line, intake: Intake, stream: str, filters: Sequence[str]) -> list[Event]:
    """The newest good message of each subject; raises Retry."""
    now_s = line.clock.now_s()
    found = intake.sort(await line.bus.newest(stream, filters), now_s)
    events = [event for _, event in found.good]
    if refused := sorted({raw.subject for raw, _ in found.refused}):
        # What cannot be read must not hide what was said before it.
        older = intake.sort(await line.bus.everything(stream, refused), now_s)
        events += [event for _, event in older.good]
    return events


async def side_by_side(doing: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all at once; the first failure ends the others, so that none lands after what is done next."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in doing]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they are over, whatever they end with.

    Once is not enough: nats-py swallows a cancellation that meets it while it flushes.
    """
    tasks = list(tasks)
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.2)
    await asyncio.gather(*tasks, return_exceptions=True)
