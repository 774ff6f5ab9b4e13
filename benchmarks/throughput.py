"""Telemetry at a sustained rate: a publisher process, a real NATS server, one consuming service in this process.

Run as a module with an address, a rate and a duration it is the publisher.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from benchmarks.report import Progress, Table, quantile
from schemas.base import Quality
from schemas.request import ParametersAnswered, ParametersRequested
from schemas.telemetry import Latency, OfferedFrom, ReplicaTelemetry, TelemetryObserved
from services.predictor.service import PredictorService
from services.predictor.settings import Settings as PredictorProcess
from services.runtime.bus import Bus
from services.runtime.chassis import Chassis
from services.runtime.clock import WallClock
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, Event, encode
from services.runtime.metrics import Metrics
from services.runtime.service import Outcome, Service, VerbHandler
from services.runtime.settings import BusSettings, RuntimeSettings
from services.runtime.topology import topology

RATE_PER_S = 5_000
SECONDS = 20
SERVERS = 1_000
_TICK_S = 0.02


class Counting(Service):
    """Takes every window and does nothing with it: what the chassis alone sustains."""

    name: ClassVar[str] = "tuner"

    def part(self, partition: str) -> "Counting":
        return self

    def handle(self, events: Sequence[Event]) -> Outcome:
        return Outcome()

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {"parameters": self._nothing}

    async def _nothing(self, _: ParametersRequested) -> ParametersAnswered:
        return ParametersAnswered(parameters=())


def run(progress: Progress) -> list[Table]:
    """Measure the chassis alone and the predictor."""
    rows = []
    for name in ("chassis alone", "predictor"):
        progress.say(f"throughput: {name}, {SECONDS} s")
        rows.append((name, *asyncio.run(_measure(name))))
    columns = (
        "consumer",
        "asked/s",
        "published/s",
        "handled/s",
        "left",
        "caught up s",
        "age p50 ms",
        "age p95 ms",
    )
    notes = (
        f"{SERVERS} servers with two replicas each, {SECONDS} s. Publisher, server and consumer share two cores.",
        "left: published but not handled when the publisher ended; caught up: seconds until none was left.",
    )
    return [Table("Telemetry through JetStream, sustained", columns, tuple(rows), notes)]


async def _measure(name: str) -> tuple[float, ...]:
    ages_s: list[float] = []
    handled = 0

    def note(events: Sequence[Event]) -> None:
        nonlocal handled
        now_s = time.time()
        ages_s.extend(now_s - event.as_of_s for event in events)
        handled += len(events)

    class Bare(Counting):
        def handle(self, events: Sequence[Event]) -> Outcome:
            note(events)
            return super().handle(events)

    class Predicting(PredictorService):
        def handle(self, events: Sequence[Event]) -> Outcome:
            note([event for event in events if isinstance(event.payload, TelemetryObserved)])
            return super().handle(events)

    settings = RuntimeSettings() if name == "chassis alone" else PredictorProcess()
    service = Bare() if name == "chassis alone" else Predicting(PredictorProcess())
    async with EmbeddedServer() as server:
        own = settings.model_copy(update={"bus": BusSettings(url=server.url)})
        setup = await Bus.connect(own.bus, "setup")
        await setup.apply(topology())
        await setup.close()
        chassis = Chassis(service, own, WallClock(), Metrics())
        running = asyncio.create_task(chassis.run())
        while chassis.reasons():  # noqa: ASYNC110 - what it waits for is not an event of this loop
            await asyncio.sleep(0.01)
        publisher = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, server.url, str(RATE_PER_S), str(SECONDS), stdout=-1
        )
        said, _ = await publisher.communicate()
        done = json.loads(said)
        left, ended = done["published"] - handled, time.perf_counter()
        at_end = handled
        while handled < done["published"]:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        caught_up_s = time.perf_counter() - ended
        chassis.stop()
        await running
    ages_ms = [1000 * (quantile(ages_s, share) or 0.0) for share in (0.5, 0.95)]
    published_per_s = done["published"] / done["seconds"]
    return (RATE_PER_S, published_per_s, at_end / done["seconds"], left, caught_up_s, *ages_ms)


def _window(server: int, now_s: float) -> TelemetryObserved:
    latency = Latency(count=90.0, mean_s=0.021, p50_s=0.02, p90_s=0.024, p95_s=0.026, p99_s=0.031)
    replicas = tuple(
        ReplicaTelemetry(
            replica=f"server-{server:04d}-h100-{i}",
            accelerator="H100",
            max_batch=64,
            offered_rate_rps=1.5,
            completed_rate_rps=1.5,
            input_tokens=512.3,
            output_tokens=201.7,
            ttft=latency,
            itl=latency,
            running=11.0,
            waiting=0.0,
            kv_used_share=0.21,
        )
        for i in range(2)
    )
    return TelemetryObserved(
        server=f"server-{server:04d}",
        model=f"model-{server % 20}",
        window_start_s=now_s - 0.15,
        window_end_s=now_s,
        quality=Quality.OK,
        offered_rate_rps=3.0,
        offered_from=OfferedFrom.COUNTERS,
        completed_rate_rps=3.0,
        input_tokens=512.3,
        output_tokens=201.7,
        ttft=latency,
        itl=latency,
        running=22.0,
        waiting=0.0,
        replicas=replicas,
    )


async def _publish(url: str, rate_per_s: float, seconds: float) -> None:
    bus = await Bus.connect(BusSettings(url=url, publish_deadline_s=60.0), "collector")
    loop = asyncio.get_running_loop()
    began, published = loop.time(), 0
    while (elapsed_s := loop.time() - began) < seconds:
        due = int(elapsed_s * rate_per_s) - published
        if due <= 0:
            await asyncio.sleep(_TICK_S)
            continue
        now_s = time.time()
        burst = [_window((published + i) % SERVERS, now_s) for i in range(min(due, SERVERS))]
        wires = [encode(Emit(window), "collector", now_s) for window in burst]
        await asyncio.gather(*(bus.publish(wire) for wire in wires))
        published += len(wires)
    print(json.dumps({"published": published, "seconds": loop.time() - began}))
    await bus.close()


if __name__ == "__main__":
    asyncio.run(_publish(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
