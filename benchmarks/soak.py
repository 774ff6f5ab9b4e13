"""An hour of control time under random restarts of every process and of the NATS server, and what came of it.

Checked from the streams: no decision lost, nothing actuated twice, no plan of an old generation after a newer one;
and from the processes, over an hour without restarts: resident memory.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import psutil

from benchmarks import accounts
from benchmarks.accounts import Fact
from benchmarks.deployment import SERVICES, Deployment
from benchmarks.fleets import fleet_of, write
from benchmarks.report import Progress, Table
from schemas.topics import ROOT
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.errors import Retry
from services.runtime.settings import BusSettings

SERVERS, SPEED, CYCLE_S, HOURS, LEASE_S = 200, 10.0, 40.0, 1.0, 3.0
_SEED = 20240101
_RESTART_EVERY_S = (10.0, 25.0)
_NATS = "nats"
_RESTARTED = tuple(service for service in SERVICES if service != "simulator")
_ORDERED = ("plan.proposed", "plan.issued", "decision.made", "actuation.applied")
_SAMPLE_S = 2.0
_SETTLE_S = 60.0


@dataclass(frozen=True)
class Account:
    """What the streams say after a run; counts.

    partly: generations superseded while they were being decided, so that some servers have no decision on them;
    behind: servers whose newest decision is not of the newest complete generation.
    """

    generations: int
    decisions: int
    actuations: int
    partly: int
    behind: int
    repeated_decisions: int
    repeated_actuations: int
    out_of_order: int
    parked: int


def account_of(found: Sequence[Fact], servers: Sequence[str], parked: int) -> Account:
    """Count over everything in STATE and DECISIONS, each in the order of its stream; parked: messages refused."""
    by_topic: dict[str, list[Fact]] = {}
    for fact in found:
        by_topic.setdefault(fact.topic, []).append(fact)
    decisions = by_topic.get("decision.made", [])
    actuations = by_topic.get("actuation.applied", []) + by_topic.get("actuation.failed", [])
    newest = max((fact.generation for fact in by_topic.get("plan.issued", [])), default=0)
    decided = dict.fromkeys(servers, -1) | {f.body["server"]: f.generation for f in decisions}
    lost = accounts.undecided(decisions, servers)
    return Account(
        generations=len({fact.generation for fact in decisions}),
        decisions=len(decisions),
        actuations=len(actuations),
        partly=len({generation for missing in lost.values() for generation in missing}),
        behind=sum(generation < newest for generation in decided.values()),
        repeated_decisions=len(accounts.repeated(decisions)),
        repeated_actuations=len(accounts.repeated(actuations)),
        out_of_order=sum(len(accounts.out_of_order(by_topic.get(topic, []))) for topic in _ORDERED),
        parked=parked,
    )


class Soak:
    """A deployment under random restarts; seconds here are wall seconds."""

    def __init__(self, deployment: Deployment, server: EmbeddedServer, seed: int) -> None:
        self._deployment = deployment
        self._server = server
        self._random = Random(seed)
        self.restarts: dict[str, int] = {}
        self.ended_by_themselves: list[str] = []
        self.memory_mb: dict[str, list[float]] = {}

    async def run(self, seconds: float, progress: Progress, restarting: bool) -> None:
        """Restart one thing after another, or none, and watch the memory of all, which is noted from here on."""
        self.memory_mb.clear()
        end_s = time.monotonic() + seconds
        next_s = time.monotonic() + self._random.uniform(*_RESTART_EVERY_S)
        while (now_s := time.monotonic()) < end_s:
            progress.say(f"soak: {end_s - now_s:.0f} s left, {sum(self.restarts.values())} restarts")
            if restarting and now_s >= next_s:
                await self._restart(self._random.choice([*_RESTARTED, _NATS]))
                next_s = time.monotonic() + self._random.uniform(*_RESTART_EVERY_S)
            self.look()
            await asyncio.sleep(_SAMPLE_S)

    async def _restart(self, what: str) -> None:
        self.restarts[what] = self.restarts.get(what, 0) + 1
        away_s = self._random.uniform(0.5, 3.0)
        if what == _NATS:
            self._server.kill()
            await asyncio.sleep(away_s)
            await self._server.start()
        elif self._deployment.alive(what):
            gently = self._random.random() < 0.3
            await asyncio.to_thread(self._deployment.end if gently else self._deployment.kill, what)
            await asyncio.sleep(away_s)
            self._deployment.start(what)

    def look(self) -> None:
        """Revive what ended by itself, and note the memory of everything."""
        for instance, words in self._deployment.revive().items():
            self.ended_by_themselves.append(f"{instance} ended by itself: {words[:300]}")
        pids = {service: self._deployment.pid(service) for service in SERVICES} | {_NATS: self._server.pid}
        for what, pid in pids.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.memory_mb.setdefault(what, []).append(psutil.Process(pid).memory_info().rss / 2**20)


async def account_at_end(url: str, servers: Sequence[str], within_s: float) -> Account:
    """What the streams say once every server is decided on as far as there are plans, or when time is up."""
    bus = await Bus.connect(BusSettings(url=url), "soak")
    try:
        end_s = time.monotonic() + within_s
        while True:
            with contextlib.suppress(Retry):
                found = await accounts.facts(bus, "STATE", "DECISIONS")
                parked = await bus.everything("DLQ", [f"{ROOT}.dlq.>"])
                account = account_of(found, servers, len(parked))
                if not account.behind or time.monotonic() > end_s:
                    return account
            await asyncio.sleep(1.0)
    finally:
        await bus.close()


def run(progress: Progress) -> list[Table]:
    """Measure an hour of control time under restarts and one without; takes about a quarter of an hour."""
    soak, account = asyncio.run(soaked(SERVERS, HOURS * 3600 / SPEED, progress))
    return [_streams(account, soak), _memory(soak)]


async def soaked(servers: int, seconds: float, progress: Progress) -> tuple[Soak, Account]:
    """A fleet of so many servers under restarts for so many wall seconds, what came of it, and as long in peace."""
    fleet = fleet_of(servers, models=min(servers, 20), load=0.1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        declared, plant = write(fleet, folder)
        async with EmbeddedServer(folder / "nats") as server:
            deployment = Deployment(
                server.url, folder, declared.read_text(), plant.read_text(), SPEED, CYCLE_S, LEASE_S
            )
            await asyncio.to_thread(deployment.apply_bus)
            try:
                for service in SERVICES:
                    deployment.start(service)
                soak = Soak(deployment, server, _SEED)
                await soak.run(seconds, progress, restarting=True)
                names = [one.name for one in fleet.servers]
                account = await account_at_end(server.url, names, _SETTLE_S)
                await soak.run(seconds, progress, restarting=False)
                return soak, account
            finally:
                await asyncio.to_thread(deployment.stop)


def _streams(account: Account, soak: Soak) -> Table:
    rows: list[tuple[str, int]] = [(name.replace("_", " "), value) for name, value in asdict(account).items()]
    rows.append(("restarts", sum(soak.restarts.values())))
    rows.append(("ended by themselves and revived", len(soak.ended_by_themselves)))
    return Table(
        title=f"{SERVERS} servers, {HOURS:g} h of control time at {SPEED:g} times the wall's, random restarts",
        columns=("what", "count"),
        rows=tuple(rows),
        notes=(
            f"Restarts: {', '.join(f'{k} {v}' for k, v in sorted(soak.restarts.items()))}; seed {_SEED}.",
            *soak.ended_by_themselves,
            "Behind: servers without a decision on the newest plan, at the end. Partly: generations that a newer "
            "one followed before all servers were decided.",
            "The simulated fleet stands for the cluster and is not restarted.",
        ),
    )


def _memory(soak: Soak) -> Table:
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    return Table(
        title=f"Resident memory (MB) over {HOURS:g} h of control time after that, without restarts",
        columns=("process", "first", "quarter", "half", "three quarters", "last"),
        rows=tuple(
            (what, *(mb[round(share * (len(mb) - 1))] for share in quarters))
            for what, mb in soak.memory_mb.items()
        ),
    )
