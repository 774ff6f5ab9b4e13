"""One server's series: its history, what was fitted to it, forecasts not yet due, how earlier ones did. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from services.predictor.choice import Levels, Rates, Record, ensemble_of, mixed, no_record, reasoned, scored
from services.predictor.forecaster import Fit, Forecaster, Said
from services.predictor.history import History, extended
from services.predictor.quantiles import LEVELS, largest_rates, rising
from services.predictor.settings import PredictorSettings
from services.predictor.tokens import TokenMean, TokensSaid, told, with_due, with_window

_P90 = LEVELS.index(0.9)


@dataclass(frozen=True)
class Measured:
    """What is used of a window; times in Unix seconds, rates in requests per second."""

    start_s: float
    end_s: float
    rate_rps: float
    completed_rps: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None

    @property
    def requests(self) -> float:
        """Requests that its token means are of: those completed, else those offered."""
        rate_rps = self.rate_rps if self.completed_rps is None else self.completed_rps
        return rate_rps * (self.end_s - self.start_s)


@dataclass(frozen=True)
class Open:
    """A forecast that is not due yet: the end of the history it was made of, when it is due, and what was said."""

    issued_at_s: float
    due_at_s: float
    newest_rps: float
    points_rps: Levels
    rates_rps: Rates
    input_tokens: TokensSaid
    output_tokens: TokensSaid


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
    input_tokens: TokenMean = field(default_factory=TokenMean)
    output_tokens: TokenMean = field(default_factory=TokenMean)


@dataclass(frozen=True)
class Spoken:
    """A forecast: rates at LEVELS, those of the last value alone, the choice and why, and the losses behind it."""

    forecaster: str
    reason: str
    rates_rps: Levels
    last_rps: Levels
    scored: int
    loss: float
    loss_last: float


def advance(series: Series, window: Measured, settings: PredictorSettings) -> Series:
    """The series after one more window; what came due is scored, unless within a gap or after a long one."""
    width_s = window.end_s - window.start_s
    history = extended(
        series.history, window.start_s, window.end_s, window.rate_rps, settings.history_windows
    )
    fits, fitted_steps = series.fits, series.fitted_steps
    if len(history) < len(series.history):
        # The settings keep less than they did: what was fitted looks back further than there is.
        fits, fitted_steps = {}, 0
    keep = 0.5 ** (width_s / settings.token_half_life_s)
    inputs = with_window(series.input_tokens, window.input_tokens, window.requests, keep)
    outputs = with_window(series.output_tokens, window.output_tokens, window.requests, keep)
    record, waiting, edge_s = series.record, series.open, window.end_s + 0.5 * width_s
    if window.start_s - series.end_s > settings.gap_windows * width_s:
        waiting = ()
    due = [one for one in waiting if one.due_at_s <= edge_s]
    if due:
        waiting = tuple([one for one in waiting if one.due_at_s > edge_s])
    for one in due:
        since = round((history.end_s - one.issued_at_s) / history.width_s)
        # Due within a gap, or made of windows that are long forgotten: nobody knows what came.
        if one.due_at_s <= window.start_s or not 1 <= since <= len(history):
            continue
        came_rps = float(np.fmax.reduce(history.rates[-since:]))
        record = scored(
            record or no_record(len(one.points_rps)),
            one.newest_rps,
            one.points_rps,
            one.rates_rps,
            came_rps,
            history.one_rps,
            settings,
        )
        inputs = with_due(inputs, one.input_tokens, settings.ratios)
        outputs = with_due(outputs, one.output_tokens, settings.ratios)
    return Series(
        window.end_s,
        history,
        fits,
        series.fitted_s,
        fitted_steps,
        waiting,
        record,
        inputs,
        outputs,
    )


def due_for_fit(series: Series, steps: int, settings: PredictorSettings) -> bool:
    """Whether the forecasters should be fitted anew; never to a load that is nothing but zeros."""
    history = series.history
    if not history.highest_rps:
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
    are kept, however long the horizon. A series without any traffic has nothing to say and nothing to remember.
    """
    history = series.history
    if not history.highest_rps:
        none = (0.0,) * len(LEVELS)
        return series, Spoken(
            "last", "the last value: no request in all that is remembered", none, none, 0, 0.0, 0.0
        )
    steps, newest_rps = history.windows(horizon_s), history.newest_rps
    record = series.record or no_record(len(forecasters))
    points: list[float] = []
    pool: list[Levels] = []
    for forecaster, ratios, rise_rps in zip(forecasters, record.ratios, record.rises_rps, strict=True):
        fit = series.fits.get(forecaster.name)
        said = Said(newest_rps) if fit is None else forecaster.forecast(fit, history, steps)
        points.append(said.point_rps)
        if fit is None and pool:
            pool.append(pool[0])
        else:
            pool.append(
                said.quantiles_rps
                or largest_rates(said.point_rps, ratios, history.width_s, steps, settings.trusted, rise_rps)
            )
    last = pool[0]
    # A factor learned in busy or idle times must not carry a forecast beyond all that was seen.
    most_rps = max(history.highest_rps, last[-1])
    ensemble = rising([min(rate, most_rps) for rate in ensemble_of(tuple(pool), record, history.one_rps)])
    rates, shares = mixed(last, ensemble, newest_rps, record, steps, settings)
    issued = rising(rates)
    name, reason = reasoned(shares, record, settings)
    weight = record.weight or 1.0
    spoken = Spoken(
        name, reason, issued, last, record.scored, record.issued[_P90] / weight, record.last[_P90] / weight
    )
    if len(series.open) < settings.ratios:
        opened = Open(
            history.end_s,
            series.end_s + horizon_s,
            newest_rps,
            tuple(points),
            Rates(tuple(pool), ensemble, issued),
            told(series.input_tokens),
            told(series.output_tokens),
        )
        series = replace(series, open=(*series.open, opened))
    return series, spoken
