"""One server's series: its history, what was fitted to it, forecasts not yet due, how earlier ones did. Pure.

Every forecaster of the pool gives quantiles of the largest rate ahead. The ensemble is their mean in logarithms,
each weighted at each level by its recent pinball loss, moved by a shift per level that follows what was covered.
At each level the ensemble is used where its recent loss is clearly below that of the last value, and else the
last value with its own intervals: never worse, and the reason says so.

Rows of the arrays are the pool in its order, the last value first, then the ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from services.predictor.forecaster import Fit, Forecaster
from services.predictor.history import Flags, Floats, History, extended
from services.predictor.quantiles import LEVEL, LEVELS, largest_rates, pinball
from services.predictor.settings import PredictorSettings

ENSEMBLE = "ensemble"
_P50, _P90 = LEVELS.index(0.5), LEVELS.index(0.9)
_FURTHEST_SHIFT = 1.0
"""The shift corrects coverage by a factor of e at most; what is further off is not a matter of coverage."""
_SCALE_FORGET = 0.995
_TINY = 1e-12


@dataclass(frozen=True)
class Open:
    """A forecast that is not due yet, and the largest rate since.

    points_rps: shape (forecasters,); rates_rps: shape (forecasters + 1, levels).
    """

    issued_at_s: float
    due_at_s: float
    points_rps: Floats
    rates_rps: Floats
    largest_rps: float = 0.0


@dataclass(frozen=True)
class Record:
    """How forecasts turned out.

    ratios: shape (forecasters, n), oldest first; rises_rps: the furthest that a rate went beyond each point
    forecast, halved over as many forecasts as there are ratios kept; losses: discounted sums of pinball losses,
    shape (forecasters + 1, levels), of total `weight`; shift: of the ensemble's log rates, shape (levels,);
    scale: discounted mean size of the ensemble's log errors.
    """

    ratios: Floats
    rises_rps: Floats
    losses: Floats
    shift: Floats
    weight: float = 0.0
    scale: float = 0.0
    scored: int = 0

    @property
    def mean_losses(self) -> Floats:
        return self.losses / max(self.weight, _TINY)


def no_record(forecasters: int) -> Record:
    """The record before anything came due."""
    levels = len(LEVELS)
    return Record(
        np.empty((forecasters, 0)),
        np.zeros(forecasters),
        np.zeros((forecasters + 1, levels)),
        np.zeros(levels),
    )


@dataclass(frozen=True)
class Series:
    """Everything known of one server's load; times are control time in Unix seconds.

    fits: what each forecaster learned, at `fitted_s` for a horizon of `fitted_steps` windows.
    """

    end_s: float = 0.0
    history: History = field(default_factory=History)
    fits: dict[str, Fit] = field(default_factory=dict)
    fitted_s: float = 0.0
    fitted_steps: int = 0
    open: tuple[Open, ...] = ()
    record: Record | None = None
    input_tokens: tuple[float, float] = (0.0, 0.0)
    output_tokens: tuple[float, float] = (0.0, 0.0)
    """Discounted sum and weight of the token means."""


@dataclass(frozen=True)
class Spoken:
    """A forecast: rates at LEVELS, those of the last value alone, the choice and why, and the losses behind it."""

    forecaster: str
    reason: str
    rates_rps: tuple[float, ...]
    last_rps: tuple[float, ...]
    scored: int
    loss: float
    loss_last: float


def advance(
    series: Series,
    start_s: float,
    end_s: float,
    rate_rps: float,
    settings: PredictorSettings,
) -> Series:
    """The series after one more window; what came due is scored, unless within a gap or after a long one."""
    width_s = end_s - start_s
    silent_s = start_s - series.end_s
    still = series.open if silent_s <= settings.gap_windows * width_s else ()
    record, waiting = series.record, []
    for one in still:
        if one.due_at_s <= start_s:
            continue
        seen = one if rate_rps <= one.largest_rps else replace(one, largest_rps=rate_rps)
        if end_s < one.due_at_s - 0.5 * width_s:
            waiting.append(seen)
        else:
            record = _scored(record or no_record(len(seen.points_rps)), seen, width_s, settings)
    history = extended(series.history, start_s, end_s, rate_rps, settings.history_windows)
    return replace(series, end_s=end_s, history=history, open=tuple(waiting), record=record)


def _scored(record: Record, one: Open, width_s: float, settings: PredictorSettings) -> Record:
    one_rps, came_rps, said_rps = 1.0 / width_s, one.largest_rps, one.rates_rps[-1]
    ratios = (came_rps + one_rps) / (one.points_rps + one_rps)
    error = abs(float(np.log((came_rps + one_rps) / (said_rps[_P50] + one_rps))))
    scale = error if not record.scored else _SCALE_FORGET * record.scale + (1.0 - _SCALE_FORGET) * error
    shift = record.shift + settings.shift * scale * ((came_rps > said_rps) - (1.0 - LEVEL))
    kept = 0.5 ** (1.0 / settings.ratios)
    return Record(
        ratios=np.concatenate((record.ratios, ratios[:, None]), axis=1)[:, -settings.ratios :],
        rises_rps=np.maximum(came_rps - one.points_rps, record.rises_rps * kept),
        losses=settings.forget * record.losses + pinball(came_rps, one.rates_rps),
        shift=np.clip(shift, -_FURTHEST_SHIFT, _FURTHEST_SHIFT),
        weight=settings.forget * record.weight + 1.0,
        scale=scale,
        scored=record.scored + 1,
    )


def due_for_fit(series: Series, steps: int, settings: PredictorSettings) -> bool:
    """Whether the forecasters should be fitted anew; never to a load that is nothing but zeros."""
    history = series.history
    if not np.nansum(history.rates):
        return False
    stale_s = series.end_s - series.fitted_s
    if not series.fitted_steps:
        return True
    due_s = 0.0 if steps != series.fitted_steps else settings.refit_windows * history.width_s
    return stale_s >= max(due_s, settings.refit_s)


def fitted(series: Series, steps: int, forecasters: Sequence[Forecaster]) -> Series:
    """The series with every forecaster fitted to its history."""
    found = ((f.name, f.fit(series.history, steps)) for f in forecasters)
    fits = {name: fit for name, fit in found if fit is not None}
    return replace(series, fits=fits, fitted_s=series.end_s, fitted_steps=steps)


def speak(
    series: Series, horizon_s: float, forecasters: Sequence[Forecaster], settings: PredictorSettings
) -> tuple[Series, Spoken]:
    """A forecast over the horizon, remembered until it is due; the series holds at least one window.

    A forecaster that has no fit yet says what the last value says. No more forecasts are remembered than ratios
    are kept, however long the horizon.
    """
    history, steps = series.history, series.history.windows(horizon_s)
    record = series.record or no_record(len(forecasters))
    last_rps = history.newest_rps
    said = [
        f.forecast(series.fits[f.name], history, steps) if f.name in series.fits else None
        for f in forecasters
    ]
    points = np.array([last_rps if one is None else one.point_rps for one in said])
    own = largest_rates(points, record.ratios, history.width_s, steps, settings.trusted, record.rises_rps)
    for row, one in enumerate(said):
        if one is None:
            own[row] = own[0]
        elif one.quantiles_rps:
            own[row] = one.quantiles_rps
    joint = _joint(own, record, history.one_rps)
    # A factor learned in busy or idle times must not carry a forecast beyond all that was seen.
    joint = np.minimum(joint, max(float(np.nanmax(history.rates)), float(own[0, -1])))
    name, reason, better = choose(record, settings)
    rates = np.maximum.accumulate(np.where(better, joint, own[0]))
    mean, row = record.mean_losses, len(forecasters) if name == ENSEMBLE else 0
    spoken = Spoken(
        name,
        reason,
        tuple(rates.tolist()),
        tuple(own[0].tolist()),
        record.scored,
        float(mean[row, _P90]),
        float(mean[0, _P90]),
    )
    if len(series.open) < settings.ratios:
        opened = Open(series.end_s, series.end_s + horizon_s, points, np.vstack((own, joint)))
        series = replace(series, open=(*series.open, opened))
    return series, spoken


def _joint(own: Floats, record: Record, one_rps: float) -> Floats:
    """The ensemble's rates at LEVELS: means of logs, weighted by the inverse square of recent losses, shifted."""
    losses = record.mean_losses[:-1]
    weights = 1.0 / np.square(losses + 0.01 * losses.max(axis=0) + _TINY)
    weights /= weights.sum(axis=0)
    logs = np.sum(weights * np.log(own + one_rps), axis=0) + record.shift
    return np.asarray(np.maximum.accumulate(np.maximum(np.exp(logs) - one_rps, 0.0)))


def choose(record: Record, settings: PredictorSettings) -> tuple[str, str, Flags]:
    """Whose the forecast is, why, and at which of LEVELS the ensemble is used; shape (levels,)."""
    if record.scored < settings.judged:
        reason = f"the last value: {record.scored} of {settings.judged} forecasts have come due"
        return "last", reason, np.zeros(len(LEVELS), dtype=bool)
    mean = record.mean_losses
    joint, last = mean[-1], mean[0]
    better = joint < (1.0 - settings.margin) * last
    figures = ", ".join(f"pinball at {LEVELS[i]} {joint[i]:.4g}, last {last[i]:.4g}" for i in (_P90, _P50))
    at, other = (
        ", ".join(str(level) for level, one in zip(LEVELS, better.tolist(), strict=True) if one is wanted)
        for wanted in (True, False)
    )
    if not at:
        return "last", f"the last value: nothing does clearly better ({figures})", better
    name = ENSEMBLE if better[_P90] else "last"
    held = f"; the last value at {other}, where nothing does clearly better" if other else ""
    return name, f"the ensemble at {at}, better than the last value{held} ({figures})", better


def discounted(
    mean: tuple[float, float], value: float | None, weight: float, keep: float
) -> tuple[float, float]:
    """A discounted mean with one more value."""
    total, weights = mean[0] * keep, mean[1] * keep
    return (total, weights) if value is None else (total + weight * value, weights + weight)
