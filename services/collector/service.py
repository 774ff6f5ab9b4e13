"""The collector on the bus: reads every source once per control cycle and publishes what it saw."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from schemas.alert import AlertKind, AlertRaised
from schemas.fleet import FleetDeclared
from schemas.parameters import CalibrationProposed
from schemas.telemetry import TelemetryObserved
from services.collector.core import State, dump, load, step
from services.collector.fleet_files import FleetRefused, fingerprint, read_fleet
from services.collector.settings import Settings
from services.collector.source import Calibrator, Problem, Readings, Source
from services.runtime import plugins
from services.runtime.envelope import Emit, Event, encode
from services.runtime.errors import Fatal, Retry, TooLarge
from services.runtime.service import Outcome, Service, Task
from services.runtime.settings import clock_of


class CollectorService(Service):
    """Owns the fleet from files, the windows, the inventory and the start-up times that it learns."""

    name: ClassVar[str] = "collector"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.collector
        if unknown := sorted(set(self._settings.source_settings) - set(self._settings.sources)):
            raise plugins.PluginRefused(
                f"collector.source_settings: {', '.join(unknown)} not among the sources"
            )
        to_clock_s = clock_of(settings.clock).to_clock_s
        self._sources: list[Source] = [
            plugins.build(
                "stoker.sources", name, self._settings.source_settings.get(name), to_clock_s=to_clock_s
            )
            for name in self._settings.sources
        ]
        self._calibrators = [s for s in self._sources if isinstance(s, Calibrator) and s.calibrates]
        self._proposed: dict[tuple[str, str], CalibrationProposed] = {}
        self._state = State()
        self._unsaid: Sequence[Emit] | None = None
        self._fleet: FleetDeclared | None = None
        self._fingerprint: object = None
        self._refused = ""

    async def open(self) -> None:
        path = self._settings.fleet
        if path is None:
            return
        try:
            self._fingerprint = fingerprint([path])
            self._fleet = self._declarable(path)
        except (FleetRefused, TooLarge, OSError) as error:
            raise Fatal(str(error)) from error

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        for key, raw in snapshots.items():
            try:
                self._state = load(self._state, key, raw)
            except ValueError as error:
                self.host.log.warning("snapshot left out", key=key, error=str(error))

    def tasks(self) -> Mapping[str, Task]:
        return {"cycle": self._collect_each_cycle}

    def trouble(self) -> Sequence[str]:
        if self._fleet is None:
            return ("no fleet is declared yet: neither by collector.fleet nor by another authority",)
        return (f"the fleet was changed and is refused: {self._refused}",) if self._refused else ()

    async def close(self) -> None:
        await asyncio.gather(*(source.close() for source in self._sources))

    def hydrate(self, events: Sequence[Event]) -> None:
        self._take(events)

    def handle(self, events: Sequence[Event]) -> Outcome:
        return Outcome(accept=lambda: self._take(events))

    def _take(self, events: Sequence[Event]) -> None:
        """The fleet as another authority declares it, unless there are files, and sweeps that somebody can do."""
        for event in events:
            match event.payload:
                case FleetDeclared() if self._settings.fleet is None:
                    self._fleet = event.payload
                case CalibrationProposed(model=model, accelerator=accelerator) if self._calibrators:
                    self._proposed[model, accelerator] = event.payload

    async def _collect_each_cycle(self) -> None:
        clock, cycle_s = self.host.clock, self._settings.cycle_s
        if self._settings.fleet is not None:
            await self._declare()
        while True:
            at_s = (math.floor(clock.now_s() / cycle_s) + 1) * cycle_s
            await clock.sleep_until(at_s)
            if not self.host.active:
                continue
            began = time.perf_counter()
            try:
                if self._settings.fleet is not None:
                    await self._reload_fleet(self._settings.fleet)
                if self._fleet is None:
                    continue
                await self._say_windows()
                await self._collect(f"cycle-{at_s:.0f}")
                await self._say_windows()
                await self._hand_over()
            except Retry as error:
                self.host.log.warning("cycle not published; the next window covers it", error=str(error))
            self.host.metrics.stage.labels(self.name, "cycle").observe(time.perf_counter() - began)

    async def _collect(self, cycle: str) -> None:
        fleet = self._fleet
        assert fleet is not None
        readings: list[Readings] = await asyncio.gather(*(self._poll(source) for source in self._sources))

        def take() -> Outcome:
            state, out = step(self._state, readings, fleet, self.host.clock.now_s(), self._settings)

            def accept() -> None:
                self._state = state
                self._unsaid = [Emit(window, "", cycle) for window in out.telemetry]

            facts = [*out.alerts, *out.inventory, *([out.capacity] if out.capacity else []), *out.swept]
            snapshots: dict[str, bytes | None] = {key: dump(state, key) for key in out.changed}
            return Outcome(
                emits=[Emit(fact, "", cycle) for fact in facts],
                snapshots=snapshots | dict.fromkeys(out.dropped),
                skipped=out.skipped,
                accept=accept,
            )

        await self.host.transact(take)

    async def _say_windows(self) -> None:
        """Publish the windows whose records are saved; none is cut anew until these are there.

        A window that went out before its record was saved would be cut again, longer, by whoever goes on from
        the record before.
        """
        if self._unsaid is None:
            said = {one.server: one.window_end_s for one in await self.host.newest(TelemetryObserved)}
            last = [one.window for one in self._state.servers.values() if one.window is not None]
            self._unsaid = [Emit(one) for one in last if one.window_end_s > said.get(one.server, 0.0)]
        if not (unsaid := self._unsaid):
            return

        def accept() -> None:
            self._unsaid = ()

        await self.host.transact(lambda: Outcome(emits=unsaid, accept=accept))

    async def _hand_over(self) -> None:
        """Have proposed sweeps carried out; one that is refused is proposed again if it still matters."""
        for pair, proposed in list(self._proposed.items()):
            where = f"{proposed.model} on {proposed.accelerator}"
            try:
                refusals = [await calibrator.calibrate(proposed) for calibrator in self._calibrators]
            except Retry as error:
                self.host.log.warning("calibration not asked for yet", pair=where, error=str(error))
                continue
            for refusal in filter(None, refusals):
                self.host.log.warning("calibration refused", pair=where, reason=refusal)
            if self._proposed[pair] is proposed:
                del self._proposed[pair]

    async def _poll(self, source: Source) -> Readings:
        """One source's readings; one that raises, which it should not, counts as failed."""
        try:
            return await source.poll(self.host.clock.now_s())
        except Exception as error:
            self.host.log.exception("source raised", source=source.name)
            problem = Problem(AlertKind.SOURCE_FAILED, source.name, f"{type(error).__name__}: {error}"[:4000])
            return Readings(source.name, source.provides, problems=(problem,))

    async def _declare(self) -> None:
        """Say what the fleet is; whoever starts later reads it from the bus."""
        assert self._fleet is not None
        while True:
            try:
                await self.host.publish([Emit(self._fleet)])
                return
            except Retry as error:
                self.host.log.warning("fleet not published yet", error=str(error))

    async def _reload_fleet(self, path: Path) -> None:
        """Take up a changed declaration; a bad one is refused loudly and the old one stays in force."""
        now_s = self.host.clock.now_s()
        try:
            seen = fingerprint([path])
            if seen == self._fingerprint:
                return
            fleet = self._declarable(path)
        except (FleetRefused, TooLarge, OSError) as error:
            if str(error) != self._refused:
                await self._alert(f"{error}"[:4000], resolved=False, now_s=now_s)
                self._refused = str(error)
            return
        if self._refused:
            await self._alert("the fleet is declared well again", resolved=True, now_s=now_s)
            self._refused = ""
        if self._fleet is None or fleet.revision != self._fleet.revision:
            self._fleet = fleet
            await self._declare()
        # Last, so that what the bus did not take is done again.
        self._fingerprint = seen

    def _declarable(self, path: Path) -> FleetDeclared:
        """The fleet of a file or directory as it can be sent; raises FleetRefused, TooLarge or OSError."""
        now_s = self.host.clock.now_s()
        fleet = read_fleet([path], now_s)
        encode(Emit(fleet), self.name, now_s)
        return fleet

    async def _alert(self, message: str, resolved: bool, now_s: float) -> None:
        alert = AlertRaised(
            kind=AlertKind.FLEET_REFUSED,
            subject="fleet",
            resolved=resolved,
            message=message,
            raised_at_s=now_s,
        )
        await self.host.publish([Emit(alert)])
