"""The life of a service on the bus: connect, verify, lease, restore, hydrate, subscribe, work, end.

A batch is validated, handled, published, saved and acknowledged, in that order, so whatever ends the process
in between leaves the message to be delivered again, and deterministic ids keep its effects single.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from schemas.base import Contract
from schemas.request import RequestRefused, StatusAnswered
from schemas.subjects import decode_token, encode_token
from schemas.topics import (
    MAX_MESSAGE_BYTES,
    TOPIC_BY_PAYLOAD,
    VERBS,
    Verb,
    dlq_subject,
    topic_of_subject,
)
from services.runtime import logs
from services.runtime.bus import Bucket, Bus, Pull, Stored
from services.runtime.clock import Clock
from services.runtime.envelope import Emit, Event, Raw, encode, problems
from services.runtime.errors import Fatal, Reject, Retry, TooLarge
from services.runtime.intake import Intake
from services.runtime.lease import Lease
from services.runtime.metrics import Metrics
from services.runtime.service import Outcome, Service
from services.runtime.settings import RuntimeSettings
from services.runtime.topology import LEASES, SNAPSHOTS, consumers_of, newest_filters
from services.runtime.version import VERSION

_AT_ONCE = 512

T = TypeVar("T")


class Chassis:
    """Runs one service until it is told to stop."""

    def __init__(self, service: Service, settings: RuntimeSettings, clock: Clock, metrics: Metrics) -> None:
        self.service = service
        self.settings = settings
        self.clock = clock
        self.metrics = metrics
        self.log = logs.logger(service.name)
        self._intake = Intake(service.name)
        self._bus: Bus | None = None
        self._snapshots: Bucket | None = None
        self._lease: Lease | None = None
        self._phase = "connecting"
        self._stop = asyncio.Event()
        self._handled = 0
        self._parked = 0
        self._stepping = asyncio.Lock()
        self._sending = asyncio.Semaphore(_AT_ONCE)
        service.host = self

    # What the service and the health endpoint see.

    @property
    def active(self) -> bool:
        return bool(self._bus and self._bus.connected and self._lease and self._lease.held)

    def reasons(self) -> list[str]:
        """Why the service is not ready; a standby is ready to take over."""
        if self._phase not in ("running", "standby"):
            return [self._phase]
        found = list(self.service.trouble())
        if self._bus is not None:
            if not self._bus.connected:
                found.append("the bus is not connected")
            found += [f"denied: {text}" for text in self._bus.refusals]
        return found

    def stop(self) -> None:
        """Ask the service to end in order."""
        self._stop.set()

    async def transact(self, step: Callable[[], Outcome]) -> None:
        """Take one step on the service's state, publish, save, accept; one at a time."""
        async with self._stepping:
            if self._lease is None or not self._lease.held:
                raise Retry(f"this instance does not hold the lease of {self.service.name}")
            outcome = await asyncio.to_thread(step) if self.service.heavy else step()
            await self.publish(outcome.emits)
            await _side_by_side(self._save(key, value) for key, value in outcome.snapshots.items())
            if outcome.accept is not None:
                outcome.accept()
        for reason, count in outcome.skipped.items():
            self.metrics.skipped.labels(self.service.name, reason).inc(count)

    async def publish(self, emits: Sequence[Emit]) -> list[int]:
        """Publish facts side by side; returns their places in the stream, 0 for one too large to send."""
        stored = await _side_by_side(self._publish(emit) for emit in emits)
        return [one.sequence if one is not None else 0 for one in stored]

    # Its life.

    async def run(self) -> None:
        """Live from connecting to the end; raises Fatal, or what a task raised."""
        try:
            bus = self._bus = await Bus.connect(self.settings.bus, self.service.name)
            drift = [d for spec in consumers_of(self.service.name) for d in await bus.drift_of(spec)]
            if drift:
                raise Fatal(f"{'; '.join(drift)}; run `stoker bus apply`")
            self._snapshots = await bus.bucket(SNAPSHOTS)
            lease = self._lease = Lease(
                await bus.bucket(LEASES), "active", self.settings.instance, self.settings.lease_s
            )
            self._phase = "standby"
            if not await self._unless_stopped(lease.acquire(), bus):
                return
            await self._work(bus, lease)
        except Retry as error:
            raise Fatal(f"{self.service.name} did not start: {error}") from error
        finally:
            self._phase = "stopped"
            if self._bus is not None:
                await self._bus.close()

    async def _work(self, bus: Bus, lease: Lease) -> None:
        self._phase = "starting"
        keeping = [
            asyncio.create_task(lease.keep(), name="lease"),
            asyncio.create_task(bus.lost(), name="bus"),
        ]
        try:
            await self._serve(bus, lease, keeping)
        finally:
            await _ended(keeping)

    async def _serve(self, bus: Bus, lease: Lease, keeping: list[asyncio.Task[None]]) -> None:
        await self.service.open()
        try:
            self.service.restore(await self._snapshots_of(bus))
            await self._hydrate(bus)
            pulls = [await bus.pull(spec) for spec in consumers_of(self.service.name)]
            await bus.serve(VERSION, {v.name: (v.subject, self._answerer(v)) for v in self._own_verbs()})
            self.metrics.active.labels(self.service.name).set(1)
            self._phase = "running"
            self.log.info("running", instance=self.settings.instance)
            working = [
                asyncio.create_task(self._consume(pull), name=f"pull-{i}") for i, pull in enumerate(pulls)
            ]
            working += [asyncio.create_task(t(), name=n) for n, t in self.service.tasks().items()]
            await self._until_stopped([*keeping, *working], pulls, bus)
            await lease.release()
        finally:
            self.metrics.active.labels(self.service.name).set(0)
            await self.service.close()

    async def _until_stopped(self, working: list[asyncio.Task[None]], pulls: list[Pull], bus: Bus) -> None:
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([*working, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                error = None if task.cancelled() else task.exception()
                if error is None and self._stop.is_set():
                    continue
                raise Fatal(f"{self.service.name}.{task.get_name()} ended: {error!r}") from error
            self._phase = "stopping"
            for pull in pulls:
                await pull.stop()
            await bus.stop_requests()
            consuming = [task for task in working if task.get_name().startswith("pull-")]
            if consuming:
                await asyncio.wait(consuming, timeout=10)
        finally:
            await _ended([*working, stopping])

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None], bus: Bus) -> bool:
        task, stopping = asyncio.create_task(waiting), asyncio.create_task(self._stop.wait())
        lost = asyncio.create_task(bus.lost())
        try:
            await asyncio.wait({task, stopping, lost}, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                lost.result()
            if task.done():
                task.result()
            return task.done()
        finally:
            await _ended([task, stopping, lost])

    async def _snapshots_of(self, bus: Bus) -> dict[str, bytes]:
        assert self._snapshots is not None
        return {decode_token(key): value for key, value in (await self._snapshots.all()).items()}

    async def _hydrate(self, bus: Bus) -> None:
        for stream, filters in newest_filters(self.service.name).items():
            found = self._intake.sort(await bus.newest(stream, filters), self.clock.now_s())
            events = [event for _, event in found.good]
            if refused := sorted({raw.subject for raw, _ in found.refused}):
                # What cannot be read must not hide what was said before it.
                older = self._intake.sort(await bus.everything(stream, refused), self.clock.now_s())
                events += [event for _, event in older.good]
            self.service.hydrate(events)
            self._intake.remember(events)

    # Messages.

    async def _consume(self, pull: Pull) -> None:
        while not self._stop.is_set():
            if batch := await pull.next(self.service.linger_s):
                try:
                    await self._process(batch)
                except Retry as error:
                    # What was not acknowledged is delivered again.
                    self.log.warning("retrying", messages=len(batch), error=str(error))

    async def _process(self, batch: Sequence[Raw]) -> None:
        assert self._bus is not None
        began = time.perf_counter()
        found = self._intake.sort(batch, self.clock.now_s())
        for _, topic, outcome in found.done:
            self.metrics.messages.labels(self.service.name, topic, outcome).inc()
        await _side_by_side(self._park(raw, reason) for raw, reason in found.refused)
        acks = [raw for raw, _, _ in found.done]
        if found.good:
            acks += await self._handle(found.good)
        for raw in acks:
            await self._bus.ack(raw)
        self.metrics.handle.labels(self.service.name).observe(time.perf_counter() - began)

    async def _handle(self, good: list[tuple[Raw, Event]]) -> list[Raw]:
        """Handle a batch; if it fails, message by message, so that one cannot hold up the rest."""
        assert self._bus is not None
        events = [event for _, event in good]
        try:
            await self.transact(lambda: self.service.handle(events))
        except Fatal:
            raise
        except Retry as error:
            self.log.warning("retrying", messages=len(good), error=str(error))
            for raw, event in good:
                self.metrics.messages.labels(self.service.name, event.topic.name, "retried").inc()
                await self._bus.retry(raw, error.delay_s)
            return []
        except Exception as error:
            if len(good) > 1:
                return [raw for one in good for raw in await self._handle([one])]
            raw, event = good[0]
            if isinstance(error, Reject) or raw.deliveries >= self.settings.bus.max_deliveries:
                await self._park(raw, f"{type(error).__name__}: {error}")
                return []
            self.log.exception("retrying", subject=raw.subject, deliveries=raw.deliveries)
            self.metrics.messages.labels(self.service.name, event.topic.name, "retried").inc()
            await self._bus.retry(raw, 1.0)
            return []
        self._intake.remember(events)
        self._handled += len(events)
        now_s = self.clock.now_s()
        ages_s: dict[str, list[float]] = {}
        for event in events:
            ages_s.setdefault(event.topic.name, []).append(max(0.0, now_s - event.as_of_s))
        for topic, several in ages_s.items():
            self.metrics.messages.labels(self.service.name, topic, "handled").inc(len(several))
            observed = self.metrics.event_age.labels(self.service.name, topic)
            for age_s in several:
                observed.observe(age_s)
        return [raw for raw, _ in good]

    async def _park(self, raw: Raw, reason: str) -> None:
        assert self._bus is not None
        topic = topic_of_subject(raw.subject)
        try:
            async with self._sending:
                await self._bus.park(
                    raw, dlq_subject(raw.stream, self.service.name), reason, self.service.name
                )
                await self._bus.ack(raw)
        except Retry as error:
            # It is delivered again; the others of its batch need not wait for that.
            self.log.warning("not parked", subject=raw.subject, sequence=raw.sequence, error=str(error))
            return
        self._parked += 1
        self.metrics.messages.labels(self.service.name, topic.name if topic else "unknown", "parked").inc()
        self.log.warning("parked", subject=raw.subject, sequence=raw.sequence, reason=reason)

    async def _publish(self, emit: Emit) -> Stored | None:
        assert self._bus is not None
        topic = TOPIC_BY_PAYLOAD[type(emit.payload)].name
        try:
            wire = encode(emit, self.service.name, self.clock.now_s())
            async with self._sending:
                stored = await self._bus.publish(wire)
        except TooLarge as error:
            self.metrics.published.labels(self.service.name, topic, "too_large").inc()
            self.log.error("not published", topic=topic, error=str(error))
            return None
        outcome = "duplicate" if stored.duplicate else "new"
        self.metrics.published.labels(self.service.name, topic, outcome).inc()
        return stored

    async def _save(self, key: str, value: bytes | None) -> None:
        assert self._snapshots is not None
        async with self._sending:
            if value is None:
                await self._snapshots.delete(encode_token(key))
            else:
                await self._snapshots.put(encode_token(key), value)

    # Requests.

    def _own_verbs(self) -> list[Verb]:
        return [verb for verb in VERBS if verb.service == self.service.name]

    def _answerer(self, verb: Verb) -> Any:
        handlers = {"status": self._status, **self.service.verbs()}
        handler = handlers[verb.name]

        async def answer(data: bytes) -> bytes:
            outcome = "answered"
            reply: Contract
            try:
                reply = await handler(verb.request.model_validate_json(data or b"{}"))
            except ValidationError as error:
                outcome, reply = "refused", RequestRefused(error=problems(error))
            except ValueError as error:
                outcome, reply = "refused", RequestRefused(error=str(error)[:8000])
            except Exception as error:
                self.log.exception("request failed", verb=verb.name)
                outcome, reply = "failed", RequestRefused(error=f"{type(error).__name__}: {error}"[:8000])
            body = reply.model_dump_json(exclude_none=True).encode()
            if len(body) > MAX_MESSAGE_BYTES:
                outcome = "refused"
                text = f"the answer has {len(body)} bytes: at most {MAX_MESSAGE_BYTES} are carried"
                body = RequestRefused(error=text).model_dump_json().encode()
            self.metrics.requests.labels(self.service.name, verb.name, outcome).inc()
            return body

        return answer

    async def _status(self, _: Contract) -> StatusAnswered:
        reasons = tuple(reason[:2000] for reason in self.reasons())
        return StatusAnswered(
            service=self.service.name,
            version=VERSION,
            ready=not reasons,
            reasons=reasons,
            handled=self._handled,
            parked=self._parked,
        )


async def _side_by_side(doing: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all at once; the first failure ends the others, so that none lands after what is done next."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in doing]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
