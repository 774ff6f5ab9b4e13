"""What is known of servers' load before the first message: from a history file or a Prometheus range. Pure.

The windows of the past are the grid of a series, so they should be as wide as those that will be measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from services.predictor.forecaster import Forecaster
from services.predictor.history import extended
from services.predictor.series import Measured, Series, advance, due_for_fit, fitted, speak
from services.predictor.settings import PredictorSettings
from services.predictor.traces import Trace, TraceRefused

_REHEARSED = 100
"""Last windows that are forecast as if live, so that intervals and the choice of forecaster are there at once."""


def warmed(
    trace: Trace, name: str, horizon_s: float, forecasters: Sequence[Forecaster], settings: PredictorSettings
) -> Series:
    """The series of a server as if it had been followed through the past of a trace."""
    rates = trace.rates_rps[name]
    known = np.flatnonzero(~np.isnan(rates))[-settings.history_windows :].tolist()
    series = Series()
    for place in known[:-_REHEARSED]:
        begin_s = trace.start_s + place * trace.width_s
        end_s = begin_s + trace.width_s
        history = extended(series.history, begin_s, end_s, float(rates[place]), settings.history_windows)
        series = replace(series, end_s=end_s, history=history)
    for place in known[-_REHEARSED:]:
        begin_s = max(trace.start_s + place * trace.width_s, series.end_s)
        end_s = trace.start_s + (place + 1) * trace.width_s
        series = advance(series, Measured(begin_s, end_s, float(rates[place])), settings)
        if due_for_fit(series, series.history.windows(horizon_s), settings):
            series = fitted(series, series.history.windows(horizon_s), forecasters)
        series, _ = speak(series, horizon_s, forecasters, settings)
    return series


def of_prometheus(answer: Any, label: str, step_s: float) -> Trace:
    """The rates by server in the answer to a range query; raises TraceRefused for anything else.

    A sample at a moment is the rate of the window that ends there; samples that are absent or NaN are missing.
    """
    try:
        if answer["status"] != "success" or answer["data"]["resultType"] != "matrix":
            raise TraceRefused(f"Prometheus: {str(answer)[:300]}: expected a matrix of a range query")
        samples: Mapping[str, list[tuple[float, float]]] = {
            str(one["metric"][label]): [(float(at_s), float(rate)) for at_s, rate in one["values"]]
            for one in answer["data"]["result"]
        }
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TraceRefused):
            raise
        raise TraceRefused(f"Prometheus: {error!r}: expected a matrix with the label {label!r}") from None
    ends_s = [at_s for one in samples.values() for at_s, _ in one]
    if not ends_s:
        return Trace(0.0, step_s, {}, {})
    first_s = min(ends_s)
    count = round((max(ends_s) - first_s) / step_s) + 1
    rates = {name: np.full(count, np.nan) for name in samples}
    for name, one in samples.items():
        for at_s, rate in one:
            if 0.0 <= rate < float("inf"):
                rates[name][round((at_s - first_s) / step_s)] = rate
    return Trace(first_s - step_s, step_s, rates, {})
