"""Telemetry at a sustained rate: a publisher process, a real NATS server, one consuming service in this process.

Run as a module with an address, a rate and a duration it is the publisher.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import nats
from nats.aio.msg import Msg

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
from services.runtime.envelope import Emit, Event, encode, rfc3339
from services.runtime.metrics import Metrics
from services.runtime.process import spare_the_collector
from services.runtime.service import Outcome, Service, VerbHandler
from services.runtime.settings import BusSettings, RuntimeSettings
from services.runtime.topology import topology

RATE_PER_S = 5_000
SECONDS = 20
SERVERS = 1_000
_TICK_S = 0.005
_UNDER_WAY = 4_000


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
    spare_the_collector()
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


def _templates() -> list[tuple[str, dict[str, str], list[bytes]]]:
    """Subject, headers and body of each server's window, the body in parts between which its two times belong.

    To make every window anew as a contract takes the publisher longer than all that is measured here.
    """
    made = []
    for server in range(SERVERS):
        wire = encode(Emit(_window(server, 1e9)), "collector", 1e9)
        times = (f'"window_start_s":{1e9 - 0.15}', f'"window_end_s":{1e9}')
        body = wire.data.decode()
        for text in times:
            body = body.replace(text, text.split(":")[0] + ":\0")
        made.append((wire.subject, wire.headers, body.encode().split(b"\0")))
    return made


async def _publish(url: str, rate_per_s: float, seconds: float) -> None:
    """Publish to the stream and wait until all is acknowledged; prints how many were, in how many seconds."""
    client = await nats.connect(url)
    stored = 0
    all_stored = asyncio.Event()

    async def acknowledged(answer: Msg) -> None:
        nonlocal stored
        if b'"error"' in answer.data:
            raise RuntimeError(answer.data.decode())
        stored += 1
        all_stored.set()

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=acknowledged)
    templates = _templates()
    loop = asyncio.get_running_loop()
    began, published = loop.time(), 0
    while (elapsed_s := loop.time() - began) < seconds:
        due = min(int(elapsed_s * rate_per_s), stored + _UNDER_WAY) - published
        if due <= 0:
            await asyncio.sleep(_TICK_S)
            continue
        now_s = time.time()
        moment = rfc3339(now_s)
        for _ in range(due):
            subject, headers, (head, middle, tail) = templates[published % SERVERS]
            identity = f"window-{published}"
            own = headers | {"ce-id": identity, "Nats-Msg-Id": identity, "ce-time": moment}
            start, end = repr(now_s - 0.15).encode(), repr(now_s).encode()
            await client.publish(subject, b"".join((head, start, middle, end, tail)), inbox, own)
            published += 1
    while stored < published:
        all_stored.clear()
        await asyncio.wait_for(all_stored.wait(), 30)
    print(json.dumps({"published": published, "seconds": loop.time() - began}))
    await client.close()


if __name__ == "__main__":
    asyncio.run(_publish(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
