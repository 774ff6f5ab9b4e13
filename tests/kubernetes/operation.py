"""The collector's source and the actuator on one cluster, cycle by cycle, with plans that a test makes up."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from api_server import READY_S

from schemas.base import Contract, Quality
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from schemas.plan import Allocation, Inputs, PlanIssued, PlanProposed, ServerStatus, SolveStatus
from schemas.telemetry import InventoryObserved
from schemas.topics import TOPIC_BY_PAYLOAD
from services.actuator.service import ActuatorService
from services.actuator.settings import ActuatorSettings, Settings
from services.cluster.client import ClusterSettings
from services.collector.core import State, step
from services.collector.settings import CollectorSettings
from services.collector.sources.kubernetes import KubernetesSettings, KubernetesSource
from services.runtime.envelope import Event
from services.runtime.logs import logger
from services.runtime.metrics import Metrics
from services.runtime.service import Outcome

F = TypeVar("F", bound=Contract)
STARTUP_S = 1.0
"""What the fleet declares, so that a replica is overdue after twice as long."""


class Host:
    """A chassis without a bus: it keeps what is published, and time is the wall's."""

    active = True

    def __init__(self) -> None:
        self.clock, self.metrics, self.log = self, Metrics(), logger("actuator")
        self.published: list[Contract] = []

    def now_s(self) -> float:
        return time.time()

    def to_clock_s(self, wall_s: float) -> float:
        return wall_s

    async def sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - time.time()))

    async def transact(self, take: Callable[[], Outcome]) -> None:
        outcome = take()
        self.published += [emit.payload for emit in outcome.emits]
        if outcome.accept is not None:
            outcome.accept()

    async def publish(self, emits: Sequence[Any]) -> list[int]:
        raise AssertionError("an actuator publishes in steps only")


class Operation:
    """Some servers on H100 and L4, read as `reader` and written to as `writer`, each a kubeconfig.

    Only the rules that are about the cluster are asked, for the others would hold most of what a test plans.
    """

    def __init__(self, reader: Path, writer: Path, *servers: str, **target: Any) -> None:
        access = ClusterSettings(kubeconfig=reader, timeout_s=5)
        self.source = KubernetesSource(KubernetesSettings(cluster=access), to_clock_s=lambda wall_s: wall_s)
        self.host = Host()
        actuator = ActuatorSettings(
            target="kubernetes",
            target_settings={"cluster": {"kubeconfig": str(writer), "timeout_s": 5}, **target},
            rules=("opinion", "ownership", "rollback"),
            rule_settings={"ownership": {"settle_s": 0.5}},
        )
        self.actuator = ActuatorService(Settings(actuator=actuator))
        self.actuator.host = self.host
        self.fleet = _fleet(servers)
        self.generation = 0
        self._collected = State()

    async def __aenter__(self) -> "Operation":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.source.close()
        await self.actuator.close()

    async def inventory(self) -> dict[str, InventoryObserved]:
        """What the collector says of each server now."""
        now_s = time.time()
        readings = await self.source.poll(now_s)
        self._collected, out = step(self._collected, [readings], self.fleet, now_s, CollectorSettings())
        return {one.server: one for one in out.inventory}

    async def until(self, server: str, good: Callable[[dict[str, Any]], bool]) -> InventoryObserved:
        """The inventory of a server as soon as its variants, by accelerator, are good."""
        deadline_s = time.monotonic() + READY_S
        while True:
            seen = (await self.inventory())[server]
            if good({v.accelerator: v for v in seen.variants}):
                return seen
            assert time.monotonic() < deadline_s, seen
            await asyncio.sleep(0.05)

    async def settled(self, server: str, **ready: int) -> InventoryObserved:
        """The inventory as soon as just so many replicas are asked for and ready, and none of others."""

        def good(variants: dict[str, Any]) -> bool:
            found = {name: (v.desired, v.ready) for name, v in variants.items() if v.desired or v.ready}
            return found == {name: (n, n) for name, n in ready.items()}

        return await self.until(server, good)

    async def plan(
        self,
        max_batch: int = 64,
        seen: dict[str, InventoryObserved] | None = None,
        **targets: dict[str, int] | None,
    ) -> list[Contract]:
        """One cycle with a target for each server by accelerator, None for no opinion; what was published.

        Parameters: seen, an inventory from before, instead of what there is now.
        """
        self.generation += 1
        inventory = await self.inventory() if seen is None else seen
        now_s = time.time()
        figures = {"generation": self.generation, "issued_at_s": now_s, "expires_at_s": now_s + 90}
        messages: list[Contract] = [self.fleet, *inventory.values()]
        for server, target in targets.items():
            allocations = None if target is None else _allocations(target, max_batch)
            status = ServerStatus.INFEASIBLE if target is None else ServerStatus.PLANNED
            plan = PlanProposed(
                server=server,
                status=status,
                allocations=allocations,
                inputs=Inputs(fleet_revision="r"),
                **figures,
            )
            messages.append(plan)
        manifest = PlanIssued(
            servers=len(targets),
            status=SolveStatus.FEASIBLE,
            cost_per_hour=0,
            solver="none",
            performance_model="none",
            solve_s=0,
            **figures,
        )
        before = len(self.host.published)
        self._hand_over([*messages, manifest])
        await self.actuator._decide()
        return self.host.published[before:]

    def outcomes(self) -> dict[str, float]:
        """The metric of what came of decisions, by outcome."""
        samples = (sample for metric in self.host.metrics.actuations.collect() for sample in metric.samples)
        return {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total")}

    def _hand_over(self, messages: Sequence[Contract]) -> None:
        events = [Event(TOPIC_BY_PAYLOAD[type(m)], "", m, "", "", time.time(), time.time()) for m in messages]
        outcome = self.actuator.handle(events)
        assert outcome.accept is not None
        outcome.accept()


def only(kind: type[F], facts: Sequence[Contract]) -> F:
    """The one fact of a kind."""
    (found,) = [fact for fact in facts if isinstance(fact, kind)]
    return found


def none(kind: type[Contract], facts: Sequence[Contract]) -> bool:
    return not any(isinstance(fact, kind) for fact in facts)


def is_ok(inventory: InventoryObserved) -> bool:
    return inventory.quality is Quality.OK


def _allocations(target: dict[str, int], max_batch: int) -> tuple[Allocation, ...]:
    return tuple(Allocation(accelerator=a, replicas=n, max_batch=max_batch) for a, n in target.items())


def _fleet(servers: Sequence[str]) -> FleetDeclared:
    kinds = ("H100", "L4")
    return FleetDeclared(
        declared_at_s=0,
        revision="r",
        accelerators=tuple(Accelerator(name=kind, type=kind, cost_per_hour=1) for kind in kinds),
        models=(
            Model(name="m", profiles=tuple(ModelProfile(accelerator=k, startup_s=STARTUP_S) for k in kinds)),
        ),
        service_classes=(ServiceClass(name="gold", priority=1),),
        servers=tuple(Server(name=name, model="m", service_class="gold", min_replicas=0) for name in servers),
    )
