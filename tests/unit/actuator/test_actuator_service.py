"""The actuator's shell: what it wrote is told, also when the bus takes it late or the service is stopped."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from gate_cases import ask, hold, measure, propose

from schemas.actuation import ActuationApplied, VariantScale
from schemas.base import Contract
from schemas.decision import DecisionMade
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from schemas.plan import PlanIssued, SolveStatus
from schemas.telemetry import InventoryObserved
from schemas.topics import TOPIC_BY_PAYLOAD
from services.actuator.service import ActuatorService
from services.actuator.settings import ActuatorSettings, Settings
from services.actuator.target import Applied
from services.actuator.targets.simulated import SimulatedTarget
from services.runtime.clock import WallClock
from services.runtime.envelope import Event
from services.runtime.errors import Retry
from services.runtime.logs import logger
from services.runtime.metrics import Metrics
from services.runtime.service import Outcome


class Host:
    """A chassis without a bus: it keeps what is published, and refuses the steps whose numbers are named."""

    active = True

    def __init__(self, *refused: int) -> None:
        self.clock, self.metrics, self.log = WallClock(), Metrics(), logger("actuator")
        self.published: list[Contract] = []
        self.steps, self.refused = 0, refused

    async def transact(self, take: Callable[[], Outcome]) -> None:
        self.steps += 1
        outcome = take()
        if self.steps in self.refused:
            raise Retry("no acknowledgement", delay_s=0)
        self.published += [emit.payload for emit in outcome.emits]
        if outcome.accept is not None:
            outcome.accept()

    def told(self, kind: type[Contract]) -> list[int]:
        """Generations of the published facts of a kind."""
        return [vars(fact)["generation"] for fact in self.published if isinstance(fact, kind)]


class Patient(SimulatedTarget):
    """Takes everything once it is let."""

    def __init__(self) -> None:
        self.begun, self.let = asyncio.Event(), asyncio.Event()

    async def apply(
        self, server: str, scales: Sequence[VariantScale], inventory: InventoryObserved
    ) -> Applied:
        self.begun.set()
        await self.let.wait()
        return Applied(changed=True)

    async def close(self) -> None:
        return None


FLEET = FleetDeclared(
    declared_at_s=0,
    revision="r",
    accelerators=(Accelerator(name="A", type="A", cost_per_hour=1),),
    models=(Model(name="m", profiles=(ModelProfile(accelerator="A"),)),),
    service_classes=(ServiceClass(name="c", priority=1),),
    servers=(Server(name="s", model="m", service_class="c"),),
)


def actuator(host: Host) -> tuple[ActuatorService, Patient]:
    settings = ActuatorSettings(target="simulated", target_settings={"url": "http://nobody"})
    service = ActuatorService(Settings(actuator=settings))
    service.host = host  # type: ignore[assignment]
    service._target = target = Patient()
    return service, target


def plan(service: ActuatorService, generation: int) -> None:
    """A complete generation that asks for three replicas where two are."""
    now_s = time.time()
    times = {"generation": generation, "issued_at_s": now_s, "expires_at_s": now_s + 90}
    manifest = PlanIssued(
        servers=1,
        status=SolveStatus.FEASIBLE,
        cost_per_hour=0,
        solver="x",
        performance_model="x",
        solve_s=0,
        **times,
    )
    facts = (FLEET, measure(now_s), hold(ask(A=2), now_s), propose(ask(A=3), **times), manifest)
    outcome = service.handle(
        [Event(TOPIC_BY_PAYLOAD[type(one)], "", one, "", "", now_s, now_s) for one in facts]
    )
    assert outcome.accept is not None
    outcome.accept()


@pytest.mark.parametrize("refused", [(), (2,), (2, 3)])
async def test_what_was_written_is_told_once_however_late_the_bus_takes_it(refused: tuple[int, ...]) -> None:
    service, target = actuator(host := Host(*refused))
    target.let.set()
    plan(service, 1)
    await service._decide()
    assert (host.told(DecisionMade), host.told(ActuationApplied)) == ([1], [1])
    assert service._state.memory["s"].written == {"A": 3}


async def test_a_service_that_settles_finishes_the_generation_in_hand_and_begins_no_other() -> None:
    service, target = actuator(host := Host())
    plan(service, 1)
    deciding = asyncio.create_task(service.tasks()["decide"]())
    await target.begun.wait()
    settling = asyncio.create_task(service.settle())
    plan(service, 2)
    await asyncio.sleep(0)
    assert not settling.done()
    target.let.set()
    await settling
    assert host.told(ActuationApplied) == [1]
    for _ in range(20):
        await asyncio.sleep(0)
    assert host.told(DecisionMade) == [1]
    deciding.cancel()
    await asyncio.gather(deciding, return_exceptions=True)
