"""A service that answers every window, and what the tests of the chassis do with it."""

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from schemas.base import Quality
from schemas.forecast import ForecastIssued, RateQuantile
from schemas.request import ForecastAnswered, ForecastRequested
from schemas.subjects import partition_of
from schemas.telemetry import TelemetryObserved
from services.runtime.bus import Bus
from services.runtime.chassis import Chassis
from services.runtime.clock import WallClock
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, Event, Raw, Wire, encode
from services.runtime.metrics import Metrics
from services.runtime.service import Outcome, Service, Task, VerbHandler
from services.runtime.settings import BusSettings, RuntimeSettings

OWN = partition_of("m")


class Echo(Service):
    """Answers each window with a forecast of its rate, and counts windows by server.

    Of its parts the one that all windows belong to shares its log; its counts are those of that part.
    """

    name: ClassVar[str] = "predictor"

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.log: list[str] = []
        self.whole: Echo | None = None
        self.batches: list[list[float]] = []
        self.fail: Callable[[TelemetryObserved], None] = lambda window: None
        self.accepted: Callable[[], None] = lambda: None
        self.emit: Mapping[str, Any] = {}
        self.snapshot: Callable[[str, int], bytes] = lambda server, count: str(count).encode()
        self.loops: dict[str, Task] = {}

    def part(self, partition: str) -> "Echo":
        part = copy.copy(self)
        part.whole, part.counts = self, {}
        if partition != OWN:
            part.log, part.whole, part.loops = [], part, {}
        return part

    async def open(self) -> None:
        self.log.append("open")

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        self.log.append("restore")
        self._keep({server: int(raw) for server, raw in snapshots.items()})

    def _keep(self, counts: dict[str, int]) -> None:
        self.counts = counts
        if self.whole is not None:
            self.whole.counts = counts

    def hydrate(self, events: Sequence[Event]) -> None:
        if self.whole is None and self.name == "predictor":
            return
        self.log += [f"hydrate {type(event.payload).__name__}" for event in events]

    def handle(self, events: Sequence[Event]) -> Outcome:
        windows = [e.payload for e in events if isinstance(e.payload, TelemetryObserved)]
        self.log += [f"handle {type(event.payload).__name__}" for event in events]
        self.batches.append([w.window_end_s for w in windows])
        counts = dict(self.counts)
        emits = []
        for window in windows:
            self.fail(window)
            counts[window.server] = counts.get(window.server, 0) + 1
            emits.append(Emit(forecast(window), **self.emit))

        def accept() -> None:
            self._keep(counts)
            self.log.append("accept")
            self.accepted()

        changed = {w.server: self.snapshot(w.server, counts[w.server]) for w in windows}
        return Outcome(emits, changed, {"odd": len(windows)}, accept)

    def tasks(self) -> Mapping[str, Task]:
        return self.loops

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {"forecast": self.answer}

    async def answer(self, request: ForecastRequested) -> ForecastAnswered:
        if request.server == "unknown":
            raise ValueError("server 'unknown' is not in the fleet")
        if request.server == "broken":
            raise KeyError("broken")
        if request.server == "slow":
            self.log.append("asked")
            await asyncio.sleep(0.2)
        if request.server == "long":
            found = forecast(window(1.0)).model_copy(update={"reason": "x" * 1_000_000})
            return ForecastAnswered(forecast=found)
        return ForecastAnswered()

    async def close(self) -> None:
        self.log.append("close")


class Sole(Echo):
    """The same as a service of which one instance is active."""

    name: ClassVar[str] = "actuator"

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {"pause": self.answer, "resume": self.answer}


def window(end_s: float, server: str = "s", model: str = "m") -> TelemetryObserved:
    return TelemetryObserved(
        server=server,
        model=model,
        window_start_s=0,
        window_end_s=end_s,
        quality=Quality.OK,
        offered_rate_rps=end_s,
    )


def forecast(window: TelemetryObserved) -> ForecastIssued:
    return ForecastIssued(
        server=window.server,
        issued_at_s=window.window_end_s,
        horizon_s=60,
        quality=window.quality,
        rate=(RateQuantile(quantile=0.9, rate_rps=window.offered_rate_rps or 0.0),),
        forecaster="echo",
    )


def sent(payload: Any, **emit: Any) -> Wire:
    return encode(Emit(payload, **emit), "collector", time.time())


def chassis_of(server: EmbeddedServer, service: Service, instance: str = "one", **settings: Any) -> Chassis:
    bus = {"url": server.url, "connect_timeout_s": 30, "max_deliveries": 2} | settings.pop("bus", {})
    chosen = RuntimeSettings(
        instance=instance, bus=BusSettings.model_validate(bus), lease_s=settings.pop("lease_s", 10.0)
    )
    return Chassis(service, chosen, WallClock(), Metrics())


BUSY_S = 5.0
"""What a machine that is busy with other tests may add to a time that is asserted."""


async def until(condition: Callable[[], Any], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def ready(chassis: Chassis) -> bool:
    return chassis.active and chassis.reasons() == [] and counted(chassis, "stoker_active") == 1


def counted(chassis: Chassis, name: str, **labels: str) -> float:
    return chassis.metrics.registry.get_sample_value(name, {"service": chassis.service.name} | labels) or 0.0


def messages(chassis: Chassis, outcome: str, topic: str = "telemetry.observed") -> float:
    return counted(chassis, "stoker_messages_total", topic=topic, outcome=outcome)


async def stored(bus: Bus, stream: str, subject: str, count: int, within_s: float = 60.0) -> list[Raw]:
    deadline = time.monotonic() + within_s
    while len(found := await bus.everything(stream, [subject])) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} on {subject}"
    return found


async def unacknowledged(bus: Bus, stream: str = "TELEMETRY") -> tuple[int, int]:
    """Messages delivered to the service without an acknowledgement, and not delivered yet."""
    info = await bus._jetstream.consumer_info(stream, f"predictor-{OWN}")
    return info.num_ack_pending or 0, info.num_pending or 0


async def all_acknowledged(bus: Bus, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while await unacknowledged(bus) != (0, 0):
        assert time.monotonic() < deadline, await unacknowledged(bus)


@asynccontextmanager
async def running(chassis: Chassis) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(chassis.run())
    await until(lambda: ready(chassis) or task.done())
    if task.done():
        task.result()
    try:
        yield task
    finally:
        chassis.stop()
        if not task.done():
            await asyncio.wait_for(task, 60)
