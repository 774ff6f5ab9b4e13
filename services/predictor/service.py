"""The predictor on the bus: every window in its order, a forecast for each."""

import asyncio
import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from schemas.base import Contract
from schemas.forecast import ForecastIssued
from schemas.request import ForecastAnswered, ForecastRequested
from schemas.subjects import partition_of
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.predictor.core import UNKNOWN_STARTUP_S, State, Taken, observe, played_back, step
from services.predictor.forecaster import Forecaster
from services.predictor.journal import Journal, number_of, restored, written
from services.predictor.series import Series
from services.predictor.settings import PredictorSettings, Settings
from services.predictor.snapshot import dump, dump_entry, load, load_entry
from services.predictor.traces import Trace, TraceRefused, read
from services.predictor.warm_start import of_prometheus, warmed
from services.runtime import plugins
from services.runtime.envelope import Emit, Event
from services.runtime.service import Outcome, Service, VerbHandler

_PER_ENTRY = 1_000
"""Servers in one entry of the journal, which has to fit into a message."""


def pool_of(settings: PredictorSettings) -> list[Forecaster]:
    """The forecasters that the settings name, the last value first; raises PluginRefused."""
    names = dict.fromkeys(("last", *settings.forecasters))
    if unknown := sorted(set(settings.forecaster_settings) - set(names)):
        raise plugins.PluginRefused(
            f"predictor.forecaster_settings: {', '.join(unknown)} not among the forecasters"
        )
    return [
        plugins.build("stoker.forecasters", name, settings.forecaster_settings.get(name)) for name in names
    ]


class PredictorService(Service):
    """Keeps a series for each server."""

    name: ClassVar[str] = "predictor"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.predictor
        self._forecasters = pool_of(self._settings)
        self._names = [forecaster.name for forecaster in self._forecasters]
        self._state = State()
        self._journal = Journal()
        self._warm: Mapping[str, Series] = {}
        self._partition = ""

    def part(self, partition: str) -> "PredictorService":
        part = copy.copy(self)
        part._partition, part._state, part._journal = partition, State(), Journal()
        return part

    def concerns(self, payload: Contract) -> bool:
        return not isinstance(payload, InventoryObserved) or partition_of(payload.model) == self._partition

    async def open(self) -> None:
        try:
            for trace in await self._past():
                self._warm = {**self._warm, **await asyncio.to_thread(self._followed, trace)}
        except (TraceRefused, OSError, ValueError, TimeoutError) as error:
            # A start without a past is slower to learn and nothing worse.
            self.host.log.warning("no warm start", error=str(error) or type(error).__name__)

    async def _past(self) -> list[Trace]:
        asked, traces = self._settings.warm_start, []
        if asked.file is not None:
            traces.append(await asyncio.to_thread(read, asked.file, asked.step_s))
        if asked.prometheus_url is not None:
            import aiohttp

            now_s = self.host.clock.now_s()
            words: dict[str, str | float] = {
                "query": asked.query,
                "start": now_s - asked.span_s,
                "end": now_s,
                "step": asked.step_s,
            }
            timeout = aiohttp.ClientTimeout(total=asked.timeout_s)
            try:
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.get(f"{asked.prometheus_url}/api/v1/query_range", params=words) as answer,
                ):
                    traces.append(of_prometheus(await answer.json(), asked.label, asked.step_s))
            except aiohttp.ClientError as error:
                raise TraceRefused(f"{asked.prometheus_url}: {error}") from error
        return traces

    def _followed(self, trace: Trace) -> dict[str, Series]:
        horizon_s = UNKNOWN_STARTUP_S + trace.width_s
        return {
            name: warmed(trace, name, horizon_s, self._forecasters, self._settings)
            for name in trace.rates_rps
        }

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        series: dict[str, Series] = dict(self._warm)
        saved: dict[str, float] = {}
        entries: dict[int, dict[str, Taken]] = {}
        for key, raw in snapshots.items():
            try:
                number = number_of(key)
                if number is None:
                    series[key] = load(raw, self._names)
                    saved[key] = series[key].end_s
                else:
                    entries[number] = load_entry(raw)
            except ValueError as error:
                self.host.log.warning("snapshot left out", key=key, error=str(error))
        entries = dict(sorted(entries.items()))
        for entry in entries.values():
            for name, taken in entry.items():
                before = series.get(name, Series())
                series[name] = played_back(before, taken, self._forecasters, self._settings)
        self._state = replace(self._state, series=series)
        ends_s = {n: {s: t.windows[-1].end_s for s, t in entry.items()} for n, entry in entries.items()}
        self._journal = restored(ends_s, saved)

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

        names = list(out.taken)
        chunks = [
            {name: out.taken[name] for name in names[i : i + _PER_ENTRY]}
            for i in range(0, len(names), _PER_ENTRY)
        ]
        journal, due = written(self._journal, chunks) if chunks else (self._journal, None)
        snapshots: dict[str, bytes | None] = {}
        if due is not None:
            snapshots |= dict.fromkeys(due.delete)
            snapshots |= {key: dump_entry(chunk) for key, chunk in zip(due.new, chunks, strict=True)}
            snapshots |= {name: dump(state.series[name], self._names) for name in due.whole}

        def accept() -> None:
            self._state, self._journal = state, journal

        return Outcome(
            emits=[Emit(forecast, "", *cycles[forecast.server]) for forecast in out.issued],
            snapshots=snapshots,
            skipped=out.skipped,
            accept=accept,
        )

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {"forecast": self._answer_forecast}

    async def _answer_forecast(self, request: ForecastRequested) -> ForecastAnswered:
        found = await self.host.newest(ForecastIssued, server=request.server)
        return ForecastAnswered(forecast=found[0] if found else None)
