"""The predictor's core: windows in, forecasts of the largest rate within the lead time out. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from schemas.base import Contract, Quality
from schemas.fleet import FleetDeclared, startup_assumed_s
from schemas.forecast import BacktestScore, ForecastIssued, RateQuantile
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.predictor.forecaster import Forecaster
from services.predictor.quantiles import LEVELS
from services.predictor.series import Open, Record, Series, Spoken, advance, discounted, speak
from services.predictor.settings import PredictorSettings

_USABLE = (Quality.OK, Quality.PARTIAL)
_UNKNOWN_STARTUP_S = 120.0
_HIGHEST_RPS = 1e7
_LONGEST_S = 1e9
_MOST_TOKENS = 1e9
# Below a millisecond a rate is a rounding error of two clock readings.
_NARROWEST_S = 1e-3


@dataclass(frozen=True)
class State:
    """The newest fleet and inventory, a series for each server, and what was issued last."""

    fleet: FleetDeclared | None = None
    inventory: Mapping[str, InventoryObserved] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    issued: Mapping[str, ForecastIssued] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """Forecasts to publish, servers whose series changed, and windows left out, counted by reason."""

    issued: tuple[ForecastIssued, ...] = ()
    changed: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def observe(state: State, message: Contract) -> State:
    """The state with a new fleet or inventory."""
    match message:
        case FleetDeclared():
            newer = state.fleet is None or message.declared_at_s >= state.fleet.declared_at_s
            return replace(state, fleet=message) if newer else state
        case InventoryObserved(server=name) if message.quality is not Quality.MISSING:
            return replace(state, inventory={**state.inventory, name: message})
    return state


def step(
    state: State,
    windows: Sequence[TelemetryObserved],
    forecasters: Sequence[Forecaster[Any]],
    settings: PredictorSettings,
) -> tuple[State, Outputs]:
    """Take in windows, oldest first, and forecast every server that one came of.

    A window that does not end after the last one of its server is a duplicate; one without a measured rate is a
    gap, never a zero.
    """
    series = dict(state.series)
    newest: dict[str, TelemetryObserved] = {}
    skipped: dict[str, int] = {}
    for window in windows:
        before = series.get(window.server, Series())
        if reason := _why_not(window, before):
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        assert window.offered_rate_rps is not None
        start_s = max(window.window_start_s, before.end_s)
        after = advance(before, start_s, window.window_end_s, window.offered_rate_rps, forecasters, settings)
        series[window.server] = _with_tokens(after, window, settings)
        newest[window.server] = window
    issued = []
    for name, window in newest.items():
        width_s = window.window_end_s - window.window_start_s
        horizon_s = min(lead_time_s(state, name, window.model) + width_s, _LONGEST_S)
        series[name], spoken = speak(series[name], width_s, horizon_s, forecasters, settings)
        if spoken is not None:
            issued.append(_forecast(series[name], window, horizon_s, spoken))
    state = replace(state, series=series, issued={**state.issued, **{f.server: f for f in issued}})
    return state, Outputs(tuple(issued), tuple(newest), skipped)


def lead_time_s(state: State, server: str, model: str) -> float:
    """Start-up time of the server's model where it runs: learned, else declared, else two minutes; in seconds."""
    inventory = state.inventory.get(server)
    learned = {s.accelerator: s.p95_s for s in inventory.startup} if inventory else {}
    models = state.fleet.models if state.fleet else ()
    declared = {p.accelerator: startup_assumed_s(p) for m in models if m.name == model for p in m.profiles}
    held = {v.accelerator for v in inventory.variants if v.desired} if inventory else set()
    known = declared | learned
    return max((known[name] for name in held or known if name in known), default=_UNKNOWN_STARTUP_S)


def _why_not(window: TelemetryObserved, series: Series) -> str:
    if window.window_end_s <= series.end_s:
        return "duplicate window"
    if window.quality not in _USABLE:
        return f"{window.quality.value} window"
    if window.offered_rate_rps is None:
        return "window without a rate"
    if window.window_end_s - max(window.window_start_s, series.end_s) < _NARROWEST_S:
        return "window too short"
    return ""


def _with_tokens(series: Series, window: TelemetryObserved, settings: PredictorSettings) -> Series:
    width_s = window.window_end_s - window.window_start_s
    keep = 0.5 ** (width_s / settings.token_half_life_s)
    finished_rps = window.completed_rate_rps
    weight = (finished_rps if finished_rps is not None else window.offered_rate_rps or 0.0) * width_s
    inputs = window.input_tokens if weight else None
    outputs = window.output_tokens if weight else None
    return replace(
        series,
        input_tokens=discounted(series.input_tokens, inputs, weight, keep),
        output_tokens=discounted(series.output_tokens, outputs, weight, keep),
    )


def _forecast(series: Series, window: TelemetryObserved, horizon_s: float, spoken: Spoken) -> ForecastIssued:
    score = None
    if spoken.scored:
        score = BacktestScore(
            windows=min(spoken.scored, 1_000_000),
            pinball_p90=spoken.loss,
            pinball_p90_last=spoken.loss_last,
        )
    return ForecastIssued(
        server=window.server,
        issued_at_s=window.window_end_s,
        horizon_s=horizon_s,
        quality=window.quality,
        rate=tuple(
            RateQuantile(quantile=level, rate_rps=min(rate, _HIGHEST_RPS))
            for level, rate in zip(LEVELS, spoken.rates_rps, strict=True)
        ),
        input_tokens=_mean(series.input_tokens),
        output_tokens=_mean(series.output_tokens),
        forecaster=spoken.forecaster,
        reason=spoken.reason,
        score=score,
    )


def _mean(discounted_mean: tuple[float, float]) -> float | None:
    total, weight = discounted_mean
    return min(total / weight, _MOST_TOKENS) if weight > 1e-9 else None


def dump(state: State, server: str, forecasters: Sequence[Forecaster[Any]]) -> bytes:
    """One server's series as JSON; floats keep every bit."""
    series = state.series[server]
    kept = {f.name: f.dump(series.states[f.name]) for f in forecasters if f.name in series.states}
    records = {name: vars(replace(record, rising=())) for name, record in series.records.items()}
    opened = [vars(one) for one in series.open]
    return json.dumps(vars(series) | {"states": kept, "records": records, "open": opened}).encode()


def load(state: State, server: str, raw: bytes, forecasters: Sequence[Forecaster[Any]]) -> State:
    """The state with one server's series restored; raises ValueError for what cannot be read."""
    try:
        kept = json.loads(raw)
        series = Series(
            end_s=float(kept["end_s"]),
            states={f.name: f.load(kept["states"][f.name]) for f in forecasters if f.name in kept["states"]},
            open=tuple(Open(**one) for one in kept["open"]),
            records={
                name: Record(
                    ratios=tuple(map(float, r["ratios"])),
                    loss=float(r["loss"]),
                    weight=float(r["weight"]),
                    scored=int(r["scored"]),
                    rise_rps=float(r["rise_rps"]),
                    rising=tuple(sorted(map(float, r["ratios"]))),
                )
                for name, r in kept["records"].items()
            },
            input_tokens=_pair(kept["input_tokens"]),
            output_tokens=_pair(kept["output_tokens"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"snapshot of {server!r} cannot be read: {error!r}") from None
    return replace(state, series={**state.series, server: series})


def _pair(raw: Sequence[float]) -> tuple[float, float]:
    total, weight = raw
    return float(total), float(weight)
