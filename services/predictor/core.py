"""The predictor's core: windows in, forecasts of the largest rate within the lead time out. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from schemas.base import Contract, Quality
from schemas.fleet import FleetDeclared, startup_assumed_s
from schemas.forecast import BacktestScore, ForecastIssued, RateQuantile
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.predictor.forecaster import Forecaster
from services.predictor.quantiles import LEVELS
from services.predictor.series import Measured, Series, Spoken, advance, due_for_fit, fitted, speak
from services.predictor.settings import PredictorSettings
from services.predictor.tokens import TokenMean, token_quantiles

_USABLE = (Quality.OK, Quality.PARTIAL)
UNKNOWN_STARTUP_S = 120.0
_HIGHEST_RPS = 1e7
_LONGEST_S = 1e9
_MOST_TOKENS = 1e9
# Below a millisecond a rate is a rounding error of two clock readings.
_NARROWEST_S = 1e-3
_ALONE = "narrow window before a silence"
_NEW = Series()


@dataclass(frozen=True)
class State:
    """The newest fleet and inventory, and a series for each server.

    narrow: by server what narrow windows have come to that are not yet wide enough to be one of its series.
    """

    fleet: FleetDeclared | None = None
    inventory: Mapping[str, InventoryObserved] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    narrow: Mapping[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """One server's part of a step: its windows, oldest first, the lead time, and whether it is fitted anew.

    With the series before it is all that the series after depends on, so a journal of these can be played back.
    """

    windows: tuple[Measured, ...]
    horizon_s: float
    fit: bool


@dataclass(frozen=True)
class Outputs:
    """Forecasts to publish, what every server's series took in, and windows left out, counted by reason."""

    issued: tuple[ForecastIssued, ...] = ()
    taken: Mapping[str, Taken] = field(default_factory=dict)
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
    forecasters: Sequence[Forecaster],
    settings: PredictorSettings,
) -> tuple[State, Outputs]:
    """Take in windows, oldest first, and forecast every server whose series one was added to.

    A window that does not end after the last one of its server is a duplicate; one without a measured rate is a
    gap, never a zero.
    """
    used: dict[str, list[Measured]] = {}
    newest: dict[str, TelemetryObserved] = {}
    narrow: dict[str, Measured | None] = {}
    skipped: dict[str, int] = {}
    for window in windows:
        name = window.server
        held = narrow[name] if name in narrow else state.narrow.get(name)
        if held is not None:
            end_s = held.end_s
        else:
            end_s = used[name][-1].end_s if name in used else state.series.get(name, _NEW).end_s
        if reason := _why_not(window, end_s):
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        part = _measured(window, end_s)
        if held is not None and part.start_s - held.end_s > settings.narrowest_s:
            # A moment of load, and nothing known after it: no window of a series.
            skipped[_ALONE] = skipped.get(_ALONE, 0) + 1
            held = None
        part = part if held is None else _joined(held, part)
        if part.end_s - part.start_s < settings.narrowest_s:
            narrow[name] = part
            continue
        narrow[name] = None
        used.setdefault(name, []).append(part)
        newest[name] = window
    series = {name: _advanced(state.series.get(name, _NEW), taken, settings) for name, taken in used.items()}
    horizons_s = {name: _horizon_s(state, window) for name, window in newest.items()}
    overdue = [
        name
        for name, one in series.items()
        if due_for_fit(one, one.history.windows(horizons_s[name]), settings)
    ]
    # The longest unfitted first; who has to wait has the fit from before, or the last value.
    overdue.sort(key=lambda name: (series[name].fitted_s, name))
    fitting = set(overdue[: settings.fits_per_step])
    taken = {
        name: Taken(tuple(measured), horizons_s[name], name in fitting) for name, measured in used.items()
    }
    issued = []
    for name, one in taken.items():
        series[name], spoken = _spoken(series[name], one, forecasters, settings)
        issued.append(_forecast(series[name], newest[name], one.horizon_s, spoken, settings))
    state = replace(
        state,
        series={**state.series, **series},
        narrow={n: w for n, w in {**state.narrow, **narrow}.items() if w is not None},
    )
    return state, Outputs(tuple(issued), taken, skipped)


def played_back(
    series: Series, taken: Taken, forecasters: Sequence[Forecaster], settings: PredictorSettings
) -> Series:
    """The series after a step that it took before and that was journaled; nothing new where it has seen it."""
    if taken.windows[-1].end_s <= series.end_s:
        return series
    return _spoken(_advanced(series, taken.windows, settings), taken, forecasters, settings)[0]


def _advanced(series: Series, windows: Sequence[Measured], settings: PredictorSettings) -> Series:
    for window in windows:
        series = advance(series, window, settings)
    return series


def _spoken(
    series: Series, taken: Taken, forecasters: Sequence[Forecaster], settings: PredictorSettings
) -> tuple[Series, Spoken]:
    if taken.fit:
        series = fitted(series, series.history.windows(taken.horizon_s), forecasters)
    return speak(series, taken.horizon_s, forecasters, settings)


def _horizon_s(state: State, window: TelemetryObserved) -> float:
    width_s = window.window_end_s - window.window_start_s
    return min(lead_time_s(state, window.server, window.model) + width_s, _LONGEST_S)


def _measured(window: TelemetryObserved, end_s: float) -> Measured:
    assert window.offered_rate_rps is not None
    return Measured(
        max(window.window_start_s, end_s),
        window.window_end_s,
        window.offered_rate_rps,
        window.completed_rate_rps,
        window.input_tokens,
        window.output_tokens,
    )


def lead_time_s(state: State, server: str, model: str) -> float:
    """Start-up time of the server's model where it runs: learned, else declared, else two minutes; in seconds."""
    inventory = state.inventory.get(server)
    learned = {s.accelerator: s.p95_s for s in inventory.startup} if inventory else {}
    models = state.fleet.models if state.fleet else ()
    declared = {p.accelerator: startup_assumed_s(p) for m in models if m.name == model for p in m.profiles}
    held = {v.accelerator for v in inventory.variants if v.desired} if inventory else set()
    known = declared | learned
    return max((known[name] for name in held or known if name in known), default=UNKNOWN_STARTUP_S)


def _why_not(window: TelemetryObserved, end_s: float) -> str:
    if window.calibration:
        return "calibration"
    if window.window_end_s <= end_s:
        return "duplicate window"
    if window.quality not in _USABLE:
        return f"{window.quality.value} window"
    if window.offered_rate_rps is None:
        return "window without a rate"
    if window.window_end_s - max(window.window_start_s, end_s) < _NARROWEST_S:
        return "window too short"
    return ""


def _joined(first: Measured, second: Measured) -> Measured:
    """Two windows as one: rates weigh by time, token means by requests."""
    one_s, two_s = first.end_s - first.start_s, second.end_s - second.start_s
    return Measured(
        first.start_s,
        second.end_s,
        _weighted((first.rate_rps, one_s), (second.rate_rps, two_s)) or 0.0,
        _weighted((first.completed_rps, one_s), (second.completed_rps, two_s)),
        _weighted((first.input_tokens, first.requests), (second.input_tokens, second.requests)),
        _weighted((first.output_tokens, first.requests), (second.output_tokens, second.requests)),
    )


def _weighted(*parts: tuple[float | None, float]) -> float | None:
    """The mean of the figures that were measured, by their weights."""
    known = [(figure, weight) for figure, weight in parts if figure is not None and weight > 0]
    total = sum(weight for _, weight in known)
    return sum(figure * weight for figure, weight in known) / total if known else None


def _forecast(
    series: Series,
    window: TelemetryObserved,
    horizon_s: float,
    spoken: Spoken,
    settings: PredictorSettings,
) -> ForecastIssued:
    score = None
    if spoken.scored:
        score = BacktestScore(
            windows=min(spoken.scored, 1_000_000),
            pinball_p90=spoken.loss,
            pinball_p90_last=spoken.loss_last,
        )
    inputs = token_quantiles(series.input_tokens, settings.trusted)
    outputs = token_quantiles(series.output_tokens, settings.trusted)
    return ForecastIssued(
        server=window.server,
        issued_at_s=series.end_s,
        horizon_s=horizon_s,
        quality=window.quality,
        rate=tuple(
            RateQuantile(
                quantile=level,
                rate_rps=min(rate, _HIGHEST_RPS),
                input_tokens=min(inputs[place], _MOST_TOKENS) if inputs else None,
                output_tokens=min(outputs[place], _MOST_TOKENS) if outputs else None,
            )
            for place, (level, rate) in enumerate(zip(LEVELS, spoken.rates_rps, strict=True))
        ),
        input_tokens=_mean(series.input_tokens),
        output_tokens=_mean(series.output_tokens),
        forecaster=spoken.forecaster,
        reason=spoken.reason,
        score=score,
    )


def _mean(tokens: TokenMean) -> float | None:
    return None if tokens.point is None else min(tokens.point, _MOST_TOKENS)
