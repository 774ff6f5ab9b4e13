"""The life of a service on the bus: connect, verify, lease, restore, hydrate, subscribe, work, end.

A service is active in one instance at a time, or, where its topics have partitions, in all of them, each working
its share.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from pydantic import ValidationError

from schemas.base import Contract
from schemas.request import RequestRefused, StatusAnswered
from schemas.subjects import decode_token
from schemas.topics import MAX_MESSAGE_BYTES, VERBS, Verb
from services.runtime import logs
from services.runtime.bus import Bucket, Bus, Pull
from services.runtime.clock import Clock
from services.runtime.envelope import problems
from services.runtime.errors import Fatal, Retry
from services.runtime.lease import Lease
from services.runtime.metrics import Metrics
from services.runtime.parts import Parts
from services.runtime.service import Service
from services.runtime.settings import RuntimeSettings
from services.runtime.topology import LEASES, SNAPSHOTS, consumers_of, newest_filters, partitioned
from services.runtime.version import VERSION
from services.runtime.worker import Line, Worker, ended, newest_events, side_by_side


class Chassis:
    """Runs one service until it is told to stop."""

    def __init__(self, service: Service, settings: RuntimeSettings, clock: Clock, metrics: Metrics) -> None:
        self.service = service
        self.settings = settings
        self.clock = clock
        self.metrics = metrics
        self.log = logs.logger(service.name)
        self._buses: list[Bus] = []
        self._line: Line | None = None
        self._host: Worker | None = None
        self._parts: Parts | None = None
        self._phase = "connecting"
        self._stop = asyncio.Event()

    # What the service and the health endpoint see.

    @property
    def active(self) -> bool:
        """Whether this instance may act at this moment, for the whole service or a part of it."""
        if self._parts is not None:
            return bool(self._parts.held)
        return self._host is not None and self._host.active

    @property
    def held(self) -> frozenset[str]:
        """The partitions that this instance works, of a service that has them."""
        return self._parts.held if self._parts is not None else frozenset()

    def reasons(self) -> list[str]:
        """Why the service is not ready; a standby is ready to take over."""
        if self._phase not in ("running", "standby"):
            return [self._phase]
        # A standby has taken in nothing yet, so what it lacks says nothing.
        found = list(self.service.trouble()) if self._phase == "running" else []
        if not all(bus.connected for bus in self._buses):
            found.append("the bus is not connected")
        refusals = dict.fromkeys(text for bus in self._buses for text in bus.refusals)
        return found + [f"denied: {text}" for text in refusals]

    def stop(self) -> None:
        """Ask the service to end in order."""
        self._stop.set()

    # Its life.

    async def run(self) -> None:
        """Live from connecting to the end; raises Fatal, or what a task raised."""
        try:
            # What is asked of the server is not to wait behind all the messages that a backlog brings.
            for _ in range(2):
                self._buses.append(await Bus.connect(self.settings.bus, self.service.name))
            bus, inbound = self._buses
            drifts = await side_by_side(bus.drift_of(spec) for spec in consumers_of(self.service.name))
            if drift := [text for found in drifts for text in found]:
                raise Fatal(f"{'; '.join(drift)}; run `stoker bus apply`")
            snapshots, leases = await bus.bucket(SNAPSHOTS), await bus.bucket(LEASES)
            line = self._line = Line(
                self.service.name, bus, inbound, snapshots, self.settings, self.clock, self.metrics, self.log
            )
            await (self._share if partitioned(self.service.name) else self._act)(line, leases)
        except Retry as error:
            raise Fatal(f"{self.service.name} did not start: {error}") from error
        finally:
            self._phase = "stopped"
            for bus in reversed(self._buses):
                await bus.close()

    async def _act(self, line: Line, leases: Bucket) -> None:
        """One active instance: wait for the lease, then work until stopped."""
        lease = Lease(leases, "active", self.settings.instance, self.settings.lease_s)
        self._host = Worker(self.service, line, lease)
        self._phase = "standby"
        if not await self._unless_stopped(lease.acquire(), line):
            return
        self._phase = "starting"
        keeping = [
            asyncio.create_task(lease.keep(), name="lease"),
            asyncio.create_task(line.lost(), name="bus"),
        ]
        try:
            await self._serve(line, self._host, lease, keeping)
        finally:
            await ended(keeping)

    async def _serve(
        self, line: Line, worker: Worker, lease: Lease, keeping: list[asyncio.Task[None]]
    ) -> None:
        await self.service.open()
        try:
            saved = await line.snapshots.all()
            self.service.restore({decode_token(key): value for key, (value, _) in saved.items()})
            await self._hydrate(line, worker)
            pulls = [await line.inbound.pull(spec) for spec in consumers_of(self.service.name)]
            await self._answer_requests(line)
            self.metrics.active.labels(self.service.name).set(1)
            self._run_begins()
            working = [
                asyncio.create_task(worker.consume(pull), name=f"pull-{i}") for i, pull in enumerate(pulls)
            ]
            working += [asyncio.create_task(t(), name=n) for n, t in self.service.tasks().items()]
            await self._until_stopped([*keeping, *working], pulls, line.bus)
            await lease.release()
        finally:
            self.metrics.active.labels(self.service.name).set(0)
            await self.service.close()

    async def _share(self, line: Line, leases: Bucket) -> None:
        """One of any number of instances: work a share of the partitions until stopped."""
        self._phase = "starting"
        self._host = Worker(self.service, line, lease=None)
        await self.service.open()
        parts = self._parts = Parts(self.service, line, leases)
        try:
            await parts.begin()
            await self._answer_requests(line)
            self._run_begins()
            working = [
                asyncio.create_task(line.lost(), name="bus"),
                asyncio.create_task(parts.hold(), name="parts"),
                *(
                    asyncio.create_task(parts.follow(stream, subject), name=f"follow-{subject}")
                    for stream, filters in newest_filters(self.service.name).items()
                    for subject in filters
                ),
            ]
            await self._until_stopped(working, [], line.bus)
            await parts.give_back_all()
        finally:
            await parts.close()
            await self.service.close()

    def _run_begins(self) -> None:
        self._phase = "running"
        self.log.info("running", instance=self.settings.instance)

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
            finishing = [task for task in working if task.get_name().startswith("pull-")]
            finishing.append(asyncio.create_task(self.service.settle(), name="settle"))
            working = [*working, finishing[-1]]
            await asyncio.wait(finishing, timeout=10)
        finally:
            await ended([*working, stopping])

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None], line: Line) -> bool:
        task, stopping = asyncio.create_task(waiting), asyncio.create_task(self._stop.wait())
        lost = asyncio.create_task(line.lost())
        try:
            await asyncio.wait({task, stopping, lost}, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                lost.result()
            if task.done():
                task.result()
            return task.done()
        finally:
            await ended([task, stopping, lost])

    async def _hydrate(self, line: Line, worker: Worker) -> None:
        for stream, filters in newest_filters(self.service.name).items():
            events = await newest_events(line, worker.intake, stream, filters)
            self.service.hydrate(events)
            worker.intake.remember(events)

    # Requests.

    async def _answer_requests(self, line: Line) -> None:
        own = [verb for verb in VERBS if verb.service == self.service.name]
        await line.bus.serve(VERSION, {verb.name: (verb.subject, self._answerer(verb)) for verb in own})

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
            handled=self._line.handled if self._line else 0,
            parked=self._line.parked if self._line else 0,
        )
