"""Two optimizers at once: the one whose generation is not new any more ends."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from optimizer_builders import NOW_S, fleet, telemetry

from schemas.plan import PlanIssued
from services.optimizer.core import Generation, State, observe
from services.optimizer.service import OptimizerService
from services.optimizer.settings import Settings
from services.optimizer.solver import Solver
from services.runtime.bus import Conflict
from services.runtime.clock import VirtualClock
from services.runtime.envelope import Emit, Event, Raw, decode, encode
from services.runtime.errors import Fatal
from services.runtime.metrics import Metrics


class Subject:
    """The subject of manifests, which takes one only after the last that its publisher knows."""

    def __init__(self) -> None:
        self.stored: list[Raw] = []

    def store(self, emit: Emit) -> int:
        wire = encode(emit, "optimizer", NOW_S)
        self.stored.append(Raw(wire.subject, wire.data, wire.headers, wire.stream, len(self.stored) + 1))
        return len(self.stored)

    async def publish(self, emits: Sequence[Emit]) -> list[int]:
        (emit,) = emits
        if not isinstance(emit.payload, PlanIssued):
            return [0]
        if emit.expected_last_sequence != len(self.stored):
            conflict = Conflict("wrong last sequence")
            conflict.last = self.stored[-1]
            raise conflict
        return [self.store(emit)]


class Overtaken(OptimizerService):
    """An optimizer that hears of another's manifest of the same generation while it plans."""

    other: Subject

    async def _planned(self, solver: Solver, overrides: Sequence[str] = ()) -> tuple[State, Generation]:
        planned = await super()._planned(solver, overrides)
        manifest = planned[1].manifest.model_copy(update={"solver": "unlimited"})
        self.other.store(Emit(manifest, expires_at_s=manifest.expires_at_s))
        heard: Event = decode(self.other.stored[-1])
        accept = self.handle([heard]).accept
        assert accept is not None
        accept()
        return planned


async def test_a_manifest_that_came_while_planning_is_not_planned_over() -> None:
    service = Overtaken(Settings())
    service.other = subject = Subject()
    service.host = SimpleNamespace(  # type: ignore[assignment]
        clock=VirtualClock(NOW_S), metrics=Metrics(), log=None, active=True, publish=subject.publish
    )
    for message in (fleet(), telemetry()):
        service._state = observe(service._state, message)
    with pytest.raises(Fatal, match="another optimizer has issued generation 1, this one is at 1"):
        await service._plan_and_publish("cycle")
    assert len(subject.stored) == 1
    await service.close()
