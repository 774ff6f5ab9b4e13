"""Rolling-origin backtest: the live series, window by window, scored against what came. Pure.

At every window the series is what it would be live at that moment: fits, weights, intervals and the choice between
the ensemble and the last value all come from `series.advance`, `fitted` and `speak`, which see only the past.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.predictor.forecaster import Forecaster
from services.predictor.history import DAY_S, Flags, Floats, largest_ahead
from services.predictor.quantiles import LEVELS, pinball
from services.predictor.series import Measured, Series, advance, due_for_fit, fitted, speak
from services.predictor.settings import PredictorSettings
from services.predictor.tokens import token_quantiles

_P50, _P90, _P95 = (LEVELS.index(level) for level in (0.5, 0.9, 0.95))


@dataclass(frozen=True)
class Run:
    """A series forecast from every window at one horizon.

    rates_rps, last_rps: issued, and what the last value with its own intervals would have been, shape (n, levels),
    NaN where nothing was issued; came_rps: the largest rate that came, NaN where it is not known; ensemble: where
    the ensemble spoke at 0.9; fits, fit_s: how many and how long in all; input_tokens, output_tokens: as issued,
    shape (n, levels), NaN before any was measured.
    """

    rates_rps: Floats
    last_rps: Floats
    came_rps: Floats
    ensemble: Flags
    reason: str
    fits: int
    fit_s: float
    input_tokens: Floats
    output_tokens: Floats


@dataclass(frozen=True)
class Score:
    """How forecasts of the largest rate within the horizon did; rates in requests per second.

    mase: mean absolute error of the median over that of the plain last value; wape, bias: of the median, in shares
    of what came; headroom: forecasts at 0.9 over what came, in the sums; coverage: share at or below 0.9.
    """

    windows: int
    mase: float | None
    wape: float | None
    bias: float | None
    pinball_p50: float | None
    pinball_p90: float | None
    pinball_p95: float | None
    coverage: float | None
    headroom: float | None


def run(
    rates_rps: Floats,
    start_s: float,
    width_s: float,
    horizon_s: float,
    forecasters: Sequence[Forecaster],
    settings: PredictorSettings,
    timer: Callable[[], float],
    tokens: tuple[Floats, Floats] | None = None,
) -> Run:
    """Forecast from every measured window of a series; NaN is a window that was not measured.

    Parameters: rates_rps, shape (n,); start_s, Unix seconds; timer, seconds of any origin, for the cost of fits;
    tokens, mean input and output tokens of a request in each window, shape (n,), NaN where there was none.
    """
    count, steps = len(rates_rps), max(1, round(horizon_s / width_s))
    said, last = np.full((count, len(LEVELS)), np.nan), np.full((count, len(LEVELS)), np.nan)
    inputs, outputs = np.full((count, len(LEVELS)), np.nan), np.full((count, len(LEVELS)), np.nan)
    ensemble = np.zeros(count, dtype=bool)
    series, reason, fits, fit_s = Series(), "", 0, 0.0
    for place, rate_rps in enumerate(rates_rps.tolist()):
        if rate_rps != rate_rps:
            continue
        begin_s = start_s + place * width_s
        lengths = (None, None) if tokens is None else (_known(tokens[0][place]), _known(tokens[1][place]))
        series = advance(series, Measured(begin_s, begin_s + width_s, rate_rps, None, *lengths), settings)
        if due_for_fit(series, steps, settings):
            began_s = timer()
            series = fitted(series, steps, forecasters)
            fits, fit_s = fits + 1, fit_s + timer() - began_s
        series, spoken = speak(series, steps * width_s, forecasters, settings)
        said[place], last[place], reason = spoken.rates_rps, spoken.last_rps, spoken.reason
        ensemble[place] = spoken.forecaster != "last"
        for said_tokens, mean in ((inputs, series.input_tokens), (outputs, series.output_tokens)):
            if quantiles := token_quantiles(mean, settings.trusted):
                said_tokens[place] = quantiles
    came = np.full(count, np.nan)
    ahead = largest_ahead(rates_rps, steps)
    came[: len(ahead)] = ahead
    return Run(said, last, came, ensemble, reason, fits, fit_s, inputs, outputs)


def _known(figure: float) -> float | None:
    return None if figure != figure else float(figure)


def warm_up(count: int, width_s: float) -> int:
    """Windows that are not scored: two days, or a quarter of a series that is shorter than eight."""
    return min(round(2.0 * DAY_S / width_s), count // 4)


def score(rates_rps: Floats, run: Run, forecasts: Floats, first: int) -> Score:
    """The score of `forecasts`, shape (n, levels), from the window `first` on; None where nothing can be said."""
    known = ~np.isnan(run.came_rps) & ~np.isnan(forecasts[:, 0])
    known[:first] = False
    if not known.any():
        return Score(0, None, None, None, None, None, None, None, None)
    came, said, last = run.came_rps[known], forecasts[known], rates_rps[known]
    loss = np.array([pinball(a, f) for a, f in zip(came.tolist(), said, strict=True)]).mean(axis=0)
    error, naive, total = said[:, _P50] - came, float(np.abs(last - came).mean()), float(came.sum())
    return Score(
        windows=len(came),
        mase=float(np.abs(error).mean()) / naive if naive > 0 else None,
        wape=float(np.abs(error).sum()) / total if total > 0 else None,
        bias=float(error.sum()) / total if total > 0 else None,
        pinball_p50=float(loss[_P50]),
        pinball_p90=float(loss[_P90]),
        pinball_p95=float(loss[_P95]),
        coverage=float((came <= said[:, _P90] + 1e-12).mean()),
        headroom=float(said[:, _P90].sum()) / total if total > 0 else None,
    )
