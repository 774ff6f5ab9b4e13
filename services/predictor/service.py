"""The predictor on the bus: every window in its order, a forecast for each."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from schemas.request import ForecastAnswered, ForecastRequested
from schemas.telemetry import TelemetryObserved
from services.predictor.core import State, dump, load, observe, step
from services.predictor.forecaster import Forecaster
from services.predictor.settings import Settings
from services.runtime import plugins
from services.runtime.envelope import Emit, Event
from services.runtime.service import Outcome, Service, VerbHandler


class PredictorService(Service):
    """Keeps a series for each server."""

    name: ClassVar[str] = "predictor"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.predictor
        names = dict.fromkeys(("last", *self._settings.forecasters))
        if unknown := sorted(set(self._settings.forecaster_settings) - set(names)):
            raise plugins.PluginRefused(
                f"predictor.forecaster_settings: {', '.join(unknown)} not among the forecasters"
            )
        self._forecasters: list[Forecaster[Any]] = [
            plugins.build("stoker.forecasters", name, self._settings.forecaster_settings.get(name))
            for name in names
        ]
        self._state = State()

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        for server, raw in snapshots.items():
            try:
                self._state = load(self._state, server, raw, self._forecasters)
            except ValueError as error:
                self.host.log.warning("snapshot left out", error=str(error))

    def hydrate(self, events: Sequence[Event]) -> None:
        for event in events:
            self._state = observe(self._state, event.payload)

    def handle(self, events: Sequence[Event]) -> Outcome:
        state = self._state
        windows: list[TelemetryObserved] = []
        cycles: dict[str, tuple[str, str]] = {}
        for event in events:
            if isinstance(event.payload, TelemetryObserved):
                windows.append(event.payload)
                cycles[event.payload.server] = (event.correlation_id, event.id)
            else:
                state = observe(state, event.payload)
        state, out = step(state, windows, self._forecasters, self._settings)

        def accept() -> None:
            self._state = state

        return Outcome(
            emits=[Emit(forecast, "", *cycles[forecast.server]) for forecast in out.issued],
            snapshots={server: dump(state, server, self._forecasters) for server in out.changed},
            skipped=out.skipped,
            accept=accept,
        )

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {"forecast": self._answer_forecast}

    async def _answer_forecast(self, request: ForecastRequested) -> ForecastAnswered:
        return ForecastAnswered(forecast=self._state.issued.get(request.server))
