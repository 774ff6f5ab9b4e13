"""One control cycle of a fleet, from the poll to the last decision, as the messages themselves tell it.

Measured twice: with a process for each service, as it is deployed, and with all of them in one.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from benchmarks.deployment import SERVICES, Deployment
from benchmarks.fleets import fleet_of, write
from benchmarks.report import Progress, Table, quantile
from schemas.topics import ROOT, topic_of_subject
from services.allinone import Options, started
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Raw
from services.runtime.settings import BusSettings

_SERVERS, _CYCLE_S = 100, 6.0
_CYCLES, _WARM_UP = 25, 4
_STAGES = {
    "collect: boundary to first telemetry": ("boundary", "first telemetry"),
    "telemetry: first to last": ("first telemetry", "last telemetry"),
    "forecast: last telemetry to last forecast": ("last telemetry", "last forecast"),
    "plan: last forecast to manifest": ("last forecast", "manifest"),
    "decide: manifest to last decision": ("manifest", "last decision"),
    "total: first telemetry to last decision": ("first telemetry", "last decision"),
    "total: boundary to last decision": ("boundary", "last decision"),
    "total: boundary to last decision received": ("boundary", "received"),
}


@dataclass
class Cycle:
    """What was heard of one cycle: wall seconds of the first and the last message of each topic, and how many."""

    boundary_s: float
    first_s: dict[str, float] = field(default_factory=dict)
    last_s: dict[str, float] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    received_s: float = 0.0
    replicas: list[int] = field(default_factory=list)

    def note(self, topic: str, at_s: float, received_s: float) -> None:
        """Take in a message published at a moment and received at another."""
        self.first_s[topic] = min(self.first_s.get(topic, at_s), at_s)
        self.last_s[topic] = max(self.last_s.get(topic, at_s), at_s)
        self.count[topic] = self.count.get(topic, 0) + 1
        if topic == "decision.made":
            self.received_s = received_s

    def moments(self) -> dict[str, float]:
        """The moments that stages lie between."""
        return {
            "boundary": self.boundary_s,
            "first telemetry": self.first_s["telemetry.observed"],
            "last telemetry": self.last_s["telemetry.observed"],
            "last forecast": self.last_s["forecast.issued"],
            "manifest": self.last_s["plan.issued"],
            "last decision": self.last_s["decision.made"],
            "received": self.received_s,
        }

    def complete(self, servers: int) -> bool:
        """Whether every server has all its messages."""
        wanted = ("telemetry.observed", "forecast.issued", "plan.proposed", "decision.made")
        return "plan.issued" in self.count and all(self.count.get(topic) == servers for topic in wanted)


def run(progress: Progress) -> list[Table]:
    """Measure one fleet of 100 servers in both layouts; takes about seven minutes."""
    return [
        _table("a process for each service", asyncio.run(_deployed(progress))),
        _table("all in one process", asyncio.run(_in_one(progress))),
    ]


def _table(layout: str, cycles: list[Cycle]) -> Table:
    complete = [cycle for cycle in cycles if cycle.complete(_SERVERS)]
    spans: dict[str, list[float]] = {name: [] for name in _STAGES}
    for cycle in complete:
        moments = cycle.moments()
        for name, (start, end) in _STAGES.items():
            spans[name].append(1000.0 * (moments[end] - moments[start]))
    rows = [(name, *(quantile(ms, share) for share in (0.5, 0.95, 1.0))) for name, ms in spans.items()]
    replicas = sorted(n for cycle in cycles[-1:] for n in cycle.replicas)
    mean = sum(replicas) / len(replicas) if replicas else 0.0
    return Table(
        title=f"Control cycle of {_SERVERS} servers, 10 models, 4 accelerator types, {layout} (ms)",
        columns=("stage", "p50", "p95", "max"),
        rows=tuple(rows),
        notes=(
            f"{len(complete)} of {len(cycles)} cycles were complete, after {_WARM_UP} to warm up; "
            f"a cycle every {_CYCLE_S:g} s of wall time.",
            f"Replicas per server at the end: mean {mean:.2f}, largest {replicas[-1] if replicas else 0}.",
            "The simulated fleet and the NATS server share the machine; collecting includes rendering its pages.",
            "The solver is greedy; auto and the exact ones may take their time limit on top.",
            "Times are when messages were made (ce-time), except received: when a subscriber had the last one.",
        ),
    )


async def _deployed(progress: Progress) -> list[Cycle]:
    with tempfile.TemporaryDirectory() as folder:
        fleet, plant = write(fleet_of(_SERVERS), Path(folder))
        async with EmbeddedServer(Path(folder) / "bus") as server:
            deployment = Deployment(
                server.url, Path(folder), fleet.read_text(), plant.read_text(), 1.0, _CYCLE_S
            )
            await asyncio.to_thread(deployment.apply_bus)
            watcher = await Bus.connect(BusSettings(url=server.url), "watch")
            try:
                for service in SERVICES:
                    deployment.start(service)
                return await _cycles(watcher.listen(f"{ROOT}.>"), progress)
            finally:
                await asyncio.to_thread(deployment.stop)
                await watcher.close()


async def _in_one(progress: Progress) -> list[Cycle]:
    with tempfile.TemporaryDirectory() as folder:
        fleet, plant = write(fleet_of(_SERVERS), Path(folder))
        options = Options(
            fleet, plant, speed=1.0, cycle_s=_CYCLE_S, store=Path(folder) / "bus", prometheus=False
        )
        async with started(options) as running:
            return await _cycles(running.messages, progress)


async def _cycles(messages: AsyncIterator[Raw], progress: Progress) -> list[Cycle]:
    """The cycles after the warm-up, until the one after the last has begun."""
    seen: dict[str, Cycle] = {}
    async with asyncio.timeout(60 + 3 * _CYCLE_S * (_CYCLES + _WARM_UP)):
        async for raw in messages:
            received_s = time.time()
            for topic, name, at_s in _marks(raw):
                cycle = seen.setdefault(name, Cycle(float(name.removeprefix("cycle-"))))
                cycle.note(topic, at_s, received_s)
                if topic == "telemetry.observed":
                    cycle.replicas.append(len(json.loads(raw.data).get("replicas", ())))
            if len(seen) > _WARM_UP + _CYCLES:
                break
            progress.say(f"control cycle {max(0, len(seen) - _WARM_UP)} of {_CYCLES}")
    return list(seen.values())[_WARM_UP:-1]


def _marks(raw: Raw) -> Iterator[tuple[str, str, float]]:
    """Topic, cycle and moment of publication of a message that belongs to a cycle."""
    topic, name = topic_of_subject(raw.subject), raw.headers.get("ce-correlationid", "")
    if topic is not None and name.startswith("cycle-"):
        yield topic.name, name, datetime.fromisoformat(raw.headers["ce-time"]).timestamp()
