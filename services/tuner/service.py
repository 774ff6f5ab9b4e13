"""The tuner on the bus: every window in its order, new parameters for the pairs that learned from it."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from schemas.fleet import FleetDeclared
from schemas.request import ParametersAnswered, ParametersRequested
from schemas.telemetry import TelemetryObserved
from services.runtime import plugins
from services.runtime.envelope import Emit, Event
from services.runtime.service import Outcome, Service, VerbHandler
from services.tuner.core import Setup, State, dump, load, parameters_in_force, step
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
            laws={
                point.name: plugins.build("stoker.laws", point.name)
                for point in plugins.listed()
                if point.group == "stoker.laws"
            },
            settings=chosen,
        )
        self._state = State()
        self._fleet: FleetDeclared | None = None

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        for key, raw in snapshots.items():
            try:
                self._state = load(self._state, key, raw, self._setup)
            except ValueError as error:
                self.host.log.warning("snapshot left out", error=str(error))

    def hydrate(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event.payload, FleetDeclared):
                self._fleet = event.payload

    def handle(self, events: Sequence[Event]) -> Outcome:
        windows: list[TelemetryObserved] = []
        fleet = self._fleet
        cycle = ""
        for event in events:
            if isinstance(event.payload, TelemetryObserved):
                windows.append(event.payload)
                cycle = event.correlation_id
            elif isinstance(event.payload, FleetDeclared):
                fleet = event.payload
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
        found = parameters_in_force(self._state, self._setup)
        return ParametersAnswered(
            parameters=tuple(
                p
                for p in found
                if request.model in (None, p.model) and request.accelerator in (None, p.accelerator)
            )
        )
