"""When to plan: as soon as a control cycle is complete, or when waiting longer would be worse. Pure."""

from dataclasses import dataclass, replace

from schemas.base import Contract, Quality
from schemas.fleet import FleetDeclared
from schemas.forecast import ForecastIssued
from schemas.telemetry import CapacityUnavailable, TelemetryObserved


@dataclass(frozen=True)
class Trigger:
    """What has arrived of the newest control cycle.

    cycle: its correlation id. measured, forecast: servers heard of. silent: servers whose window promises no
    forecast. since_s: when the first came, wall seconds. urgent_since_s: when something came that no cycle
    announces, a new fleet or a type of accelerator that could not be had.
    """

    cycle: str = ""
    measured: frozenset[str] = frozenset()
    forecast: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    since_s: float | None = None
    urgent_since_s: float | None = None

    def note(self, message: Contract, cycle: str, wall_s: float) -> "Trigger":
        """With one more message, which belongs to a cycle, at a moment of wall time."""
        match message:
            case TelemetryObserved(server=server, quality=quality, calibration=False):
                if cycle == self.cycle and self.since_s is None and self.measured:
                    return self
                fresh = self if cycle == self.cycle else Trigger(cycle, urgent_since_s=self.urgent_since_s)
                promises = quality in (Quality.OK, Quality.PARTIAL)
                return replace(
                    fresh,
                    measured=fresh.measured | {server},
                    silent=fresh.silent if promises else fresh.silent | {server},
                    since_s=wall_s if fresh.since_s is None else fresh.since_s,
                )
            case ForecastIssued(server=server) if cycle == self.cycle:
                return replace(self, forecast=self.forecast | {server})
            case FleetDeclared() | CapacityUnavailable():
                return replace(self, urgent_since_s=wall_s)
        return self

    def due_in_s(
        self, servers: frozenset[str], wall_s: float, debounce_s: float, max_wait_s: float
    ) -> float | None:
        """Wall seconds until planning is due, 0 for now, None while nothing asks for it.

        A cycle is complete once every server has a window and, where one was promised, a forecast of it.
        """
        due = []
        if self.since_s is not None:
            complete = servers <= self.measured and servers - self.silent <= self.forecast
            due.append(wall_s if complete else self.since_s + max_wait_s)
        if self.urgent_since_s is not None:
            due.append(self.urgent_since_s + debounce_s)
        return max(0.0, min(due) - wall_s) if due else None

    def planned(self) -> "Trigger":
        """After planning: what comes late of the same cycle does not ask for another plan."""
        return replace(self, since_s=None, urgent_since_s=None)
