"""What the loop is doing, for people: a board kept from the messages on the bus, drawn in the terminal."""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schemas.actuation import ActuationFailed
from schemas.alert import AlertRaised
from schemas.base import Quality
from schemas.decision import DecisionMade, Verdict
from schemas.fleet import FleetDeclared, objective_of
from schemas.forecast import ForecastIssued, rate_at
from schemas.parameters import ParametersEstimated
from schemas.plan import Allocation, PlanIssued
from schemas.telemetry import CapacityObserved, InventoryObserved, TelemetryObserved
from services.runtime.envelope import Event, Raw

_VERDICT_STYLE = {Verdict.ALLOW: "green", Verdict.CLAMP: "yellow", Verdict.HOLD: "dim", Verdict.REJECT: "red"}


@dataclass
class Board:
    """The newest of everything, and the latest news."""

    fleet: FleetDeclared | None = None
    telemetry: dict[str, TelemetryObserved] = field(default_factory=dict)
    inventory: dict[str, InventoryObserved] = field(default_factory=dict)
    forecasts: dict[str, ForecastIssued] = field(default_factory=dict)
    decisions: dict[str, DecisionMade] = field(default_factory=dict)
    parameters: dict[tuple[str, str], ParametersEstimated] = field(default_factory=dict)
    capacity: CapacityObserved | None = None
    manifest: PlanIssued | None = None
    cycles: int = 0
    changes: int = 0
    messages: int = 0
    news: deque[tuple[float, str, str]] = field(default_factory=lambda: deque(maxlen=12))

    def observe(self, event: Event) -> None:
        """Take in one message."""
        self.messages += 1
        match event.payload:
            case FleetDeclared() as fleet:
                self.fleet = fleet
            case TelemetryObserved() as window:
                self.telemetry[window.server] = window
            case InventoryObserved() as inventory:
                self.inventory[inventory.server] = inventory
            case ForecastIssued() as forecast:
                self.forecasts[forecast.server] = forecast
            case ParametersEstimated() as estimated:
                self.parameters[(estimated.model, estimated.accelerator)] = estimated
            case CapacityObserved() as capacity:
                self.capacity = capacity
            case PlanIssued() as manifest:
                self.manifest = manifest
                self.cycles += 1
            case DecisionMade() as decision:
                self._decided(decision)
            case ActuationFailed() as failed:
                self.news.append(
                    (failed.failed_at_s, "red", f"{failed.server}: {failed.reason.value}: {failed.message}")
                )
            case AlertRaised() as alert:
                style = "green" if alert.resolved else "red"
                ended = "over: " if alert.resolved else ""
                self.news.append((alert.raised_at_s, style, f"{alert.subject}: {ended}{alert.message}"))

    def _decided(self, decision: DecisionMade) -> None:
        self.decisions[decision.server] = decision
        if _replicas(decision.gated) != _replicas(decision.current):
            self.changes += 1
            text = f"{decision.server}: {allocated(decision.current)} → {allocated(decision.gated)}"
            self.news.append(
                (decision.decided_at_s, _VERDICT_STYLE[decision.verdict], f"{text}  {_line(decision.reason)}")
            )

    def draw(self, now_s: float, note: str) -> RenderableType:
        """The board at a moment of control time."""
        return Group(self._header(now_s, note), self._servers(), self._latest())

    def _header(self, now_s: float, note: str) -> RenderableType:
        parts = [
            f"[bold]Stoker[/]  {_moment(now_s)}  {note}",
            f"cycles {self.cycles}  changes {self.changes}",
        ]
        if self.manifest is not None:
            parts.append(
                f"plan {self.manifest.generation}: {self.manifest.status.value} by {self.manifest.solver}, "
                f"{self.manifest.cost_per_hour:.2f} per hour"
            )
        if self.capacity is not None:
            used = "  ".join(f"{c.type} {c.total - c.free}/{c.total}" for c in self.capacity.types)
            parts.append(f"in use {used}")
        return Text.from_markup("\n".join(parts))

    def _servers(self) -> RenderableType:
        table = Table(expand=True)
        for title in ("server", "class", "load", "forecast", "TTFT", "ITL", "replicas", "decision"):
            right = title in ("load", "forecast", "TTFT", "ITL")
            table.add_column(title, justify="right" if right else "left", no_wrap=True)
        table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
        for server in self.fleet.servers if self.fleet else ():
            assert self.fleet is not None
            window = self.telemetry.get(server.name)
            forecast = self.forecasts.get(server.name)
            decision = self.decisions.get(server.name)
            objective = objective_of(self.fleet, server)
            table.add_row(
                server.name,
                server.service_class,
                _load(window),
                f"{rate_at(forecast, 0.9):.2f}/s" if forecast else "–",
                _against(window.ttft.mean_s if window and window.ttft else None, objective.ttft_s),
                _against(window.itl.mean_s if window and window.itl else None, objective.itl_s),
                _held(self.inventory.get(server.name)),
                Text(decision.verdict.value, _VERDICT_STYLE[decision.verdict]) if decision else "–",
                Text(f"{decision.rule}: {_line(decision.reason)}", "dim") if decision else "–",
            )
        return table

    def _latest(self) -> RenderableType:
        lines = [Text(f"{_moment(at_s)}  {text}", style, no_wrap=True) for at_s, style, text in self.news]
        return Panel(
            Group(*lines) if lines else Text("nothing yet", "dim"), title="latest", title_align="left"
        )


def as_json(raw: Raw) -> str:
    """One message as one line: its subject, its CloudEvents attributes and its data."""
    attributes = {
        k.lower().removeprefix("ce-"): v for k, v in raw.headers.items() if k.lower().startswith("ce-")
    }
    try:
        data = json.loads(raw.data)
    except ValueError:
        data = {"unreadable": raw.data[:1000].decode("latin-1")}
    return json.dumps({"subject": raw.subject, **attributes, "data": data}, separators=(",", ":"))


def summary(board: Board, seconds: float) -> str:
    """One line for the end of a run."""
    return (
        f"{board.cycles} control cycles, {board.changes} changes of replicas, "
        f"{board.messages} messages in {seconds:.0f} s"
    )


def _replicas(allocations: tuple[Allocation, ...]) -> Mapping[str, int]:
    return {a.accelerator: a.replicas for a in allocations if a.replicas}


def allocated(allocations: tuple[Allocation, ...]) -> str:
    """Allocations for people, such as 2×H100 + 1×A100."""
    return " + ".join(f"{a.replicas}×{a.accelerator}" for a in allocations if a.replicas) or "none"


def _held(inventory: InventoryObserved | None) -> str:
    if inventory is None:
        return "–"
    shown = []
    for v in inventory.variants:
        if v.desired or v.ready or v.pending or v.terminating:
            coming = f" (+{v.pending})" if v.pending else ""
            going = f" (-{v.terminating})" if v.terminating else ""
            shown.append(f"{v.ready}×{v.accelerator}{coming}{going}")
    return " ".join(shown) or "none"


def _load(window: TelemetryObserved | None) -> str:
    if window is None or window.offered_rate_rps is None:
        return "–"
    mark = "" if window.quality is Quality.OK else f" {window.quality.value}"
    return f"{window.offered_rate_rps:.2f}/s{mark}"


def _against(value_s: float | None, objective_s: float | None) -> Text:
    if value_s is None:
        return Text("–")
    text = f"{value_s * 1000:.0f}"
    if objective_s is None:
        return Text(f"{text} ms")
    return Text(f"{text}/{objective_s * 1000:.0f} ms", "red" if value_s > objective_s else "green")


def _line(text: str) -> str:
    return " ".join(text.split())


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S")
