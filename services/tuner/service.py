"""The tuner on the bus: every window in its order, new parameters for the pairs that learned from it."""

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

from schemas.fleet import FleetDeclared
from schemas.parameters import ParametersEstimated
from schemas.request import ParametersAnswered, ParametersRequested
from schemas.subjects import partition_of
from schemas.telemetry import TelemetryObserved
from services.runtime import plugins
from services.runtime.envelope import Emit, Event
from services.runtime.service import Outcome, Service, VerbHandler
from services.tuner.core import Setup, State, dump, load, step
from services.tuner.settings import Settings


class TunerService(Service):
    """Keeps the parameters of every model on every accelerator."""

    name: ClassVar[str] = "tuner"
    heavy: ClassVar[bool] = True
    linger_s: ClassVar[float] = 0.05

    def __init__(self, settings: Settings) -> None:
        chosen = settings.tuner
        self._setup = Setup(
            estimator=plugins.build("stoker.estimators", chosen.estimator, chosen.estimator_settings),
            laws={name: plugins.build("stoker.laws", name) for name in plugins.names("stoker.laws")},
            settings=chosen,
        )
        self._state = State()
        self._fleet: FleetDeclared | None = None
        self._partition = ""

    def part(self, partition: str) -> "TunerService":
        part = copy.copy(self)
        part._partition, part._state, part._fleet = partition, State(), None
        return part

    def _own(self, fleet: FleetDeclared) -> FleetDeclared:
        """A fleet with the models of this part alone."""
        models = tuple(m for m in fleet.models if partition_of(m.name) == self._partition)
        return fleet.model_copy(update={"models": models})

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        for key, raw in snapshots.items():
            try:
                self._state = load(self._state, key, raw, self._setup)
            except ValueError as error:
                self.host.log.warning("snapshot left out", error=str(error))

    def hydrate(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event.payload, FleetDeclared):
                self._fleet = self._own(event.payload) if self._partition else event.payload

    def handle(self, events: Sequence[Event]) -> Outcome:
        windows: list[TelemetryObserved] = []
        fleet = self._fleet
        cycle = ""
        for event in events:
            if isinstance(event.payload, TelemetryObserved):
                windows.append(event.payload)
                cycle = event.correlation_id
            elif isinstance(event.payload, FleetDeclared):
                fleet = self._own(event.payload)
        state, out = step(self._state, windows, fleet, self.host.clock.now_s(), self._setup)
        for refusal in out.refused:
            self.host.log.warning("declared parameters left out", reason=refusal)
        snapshots: dict[str, bytes | None] = {key: dump(state, key, self._setup) for key in out.changed}

        def accept() -> None:
            self._state, self._fleet = state, fleet

        return Outcome(
            emits=[Emit(payload, "", cycle) for payload in (*out.parameters, *out.proposals)],
            snapshots=snapshots | dict.fromkeys(out.dropped),
            skipped={str(reason): count for reason, count in (*out.skipped.items(), *out.excluded.items())},
            accept=accept,
        )

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {"parameters": self._answer_parameters}

    async def _answer_parameters(self, request: ParametersRequested) -> ParametersAnswered:
        asked = {"model": request.model, "accelerator": request.accelerator}
        found = await self.host.newest(ParametersEstimated, **{k: v for k, v in asked.items() if v})
        models = self._fleet.models if self._fleet is not None else ()
        declared = {(model.name, profile.accelerator) for model in models for profile in model.profiles}
        return ParametersAnswered(parameters=tuple(p for p in found if (p.model, p.accelerator) in declared))
