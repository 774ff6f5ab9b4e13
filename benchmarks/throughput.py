"""Telemetry at a sustained rate: a publisher process, a real NATS server, one consuming service in this process.

Run as a module with an address, a rate and a duration it is the publisher.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import urlsplit

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


def _frame(server: int) -> bytes:
    """A server's window as the protocol has it, but for its id and times, which all have the same width.

    To make every window anew, or to publish it through a client, takes longer than all that is measured here.
    """
    wire = encode(Emit(_window(server, 1e9)), "collector", 1e9)
    body = wire.data.decode()
    for field, time_s in (("window_start_s", 1e9 - 0.15), ("window_end_s", 1e9)):
        body = body.replace(f'"{field}":{time_s}', f'"{field}":%({field})b')
    headers = wire.headers | {"ce-id": "%(id)b", "Nats-Msg-Id": "%(id)b", "ce-time": "%(ce-time)b"}
    block = "\r\n".join(("NATS/1.0", *(f"{name}: {value}" for name, value in headers.items()), "", ""))
    sample = _changing(0, time.time())
    sizes = len(block.encode() % sample), len((block + body).encode() % sample)
    return f"HPUB {wire.subject} stored {sizes[0]} {sizes[1]}\r\n{block}{body}\r\n".encode()


def _changing(number: int, now_s: float) -> dict[bytes, bytes]:
    """What differs between the windows of a server."""
    return {
        b"id": b"window-%09d" % number,
        b"ce-time": rfc3339(now_s).encode(),
        b"window_start_s": b"%.6f" % (now_s - 0.15),
        b"window_end_s": b"%.6f" % now_s,
    }


async def _publish(url: str, rate_per_s: float, seconds: float) -> None:
    """Publish to the stream and wait until all is acknowledged; prints how many were, in how many seconds."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\nSUB stored 1\r\n')
    frames = [_frame(server) for server in range(SERVERS)]
    published = stored = 0
    all_stored = asyncio.Event()

    async def count() -> None:
        nonlocal stored
        rest = b""
        while data := await reader.read(1 << 20):
            *lines, rest = (rest + data).split(b"\r\n")
            for line in lines:
                if line.startswith(b"-ERR") or b'"error"' in line:
                    raise RuntimeError(line.decode())
                stored += line.startswith(b"{")
            if b"PING" in lines:
                writer.write(b"PONG\r\n")
            if stored == published:
                all_stored.set()

    counting = asyncio.create_task(count())
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (elapsed_s := loop.time() - began) < seconds and not counting.done():
        due = min(int(elapsed_s * rate_per_s), stored + _UNDER_WAY) - published
        now_s = time.time()
        for _ in range(due):
            writer.write(frames[published % SERVERS] % _changing(published, now_s))
            published += 1
        await writer.drain()
        await asyncio.sleep(_TICK_S)
    all_stored.clear()
    if stored < published:
        await asyncio.wait(
            {counting, asyncio.create_task(all_stored.wait())}, timeout=30, return_when="FIRST_COMPLETED"
        )
    if counting.done():
        counting.result()
    if stored < published:
        raise RuntimeError(f"{published - stored} of {published} windows were not stored within 30 s")
    print(json.dumps({"published": published, "seconds": loop.time() - began}))
    writer.close()


if __name__ == "__main__":
    asyncio.run(_publish(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
