"""One server's load on a grid of equal windows, cleaned as it comes. Pure.

A window that was not measured is NaN in `rates`, never zero. One below a tenth of the median of the last 144
windows is an outage: measured, but no ground to forecast from. Through both, `logs` carries the level from before,
so that what follows an outage is compared with what went before it. A load that stays away becomes the median in
the end and is believed.
"""

from dataclasses import dataclass, field, replace
from math import exp, log
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

OUTAGE_SHARE = 0.1
"""Share of the rolling median below which a window is an outage (the spec's facts, §1)."""
_MEDIAN_WINDOWS = 144
DAY_S = 86_400.0
WEEK_S = 7 * DAY_S


def _no_floats() -> Floats:
    return np.empty(0)


def _no_flags() -> Flags:
    return np.empty(0, dtype=bool)


# By identity: arrays have no equality, and what is derived of a history may be kept beside it.
@dataclass(frozen=True, eq=False)
class History:
    """Rates in requests per second, oldest first, of windows of `width_s` that end at `end_s`.

    filled_s: seconds of measurement in the newest window, which narrower ones are merged into.
    rates: shape (n,), NaN where nothing was measured; logs: shape (n,), log(rate + one request per window),
    carried through gaps and outages; usable: shape (n,), whether the window was measured and no outage;
    highest_rps: the highest of `rates`.
    """

    end_s: float = 0.0
    width_s: float = 0.0
    filled_s: float = 0.0
    rates: Floats = field(default_factory=_no_floats)
    logs: Floats = field(default_factory=_no_floats)
    usable: Flags = field(default_factory=_no_flags)
    highest_rps: float = 0.0

    def __len__(self) -> int:
        return len(self.rates)

    @property
    def one_rps(self) -> float:
        """One request per window: keeps logarithms and ratios of small rates harmless."""
        return 1.0 / self.width_s

    @property
    def newest_rps(self) -> float:
        """The last rate that was measured; windows always end in one."""
        return float(self.rates[-1])

    def windows(self, span_s: float) -> int:
        """How many windows a span holds, at least one."""
        return max(1, round(min(span_s / self.width_s, 1e9)))

    def rate_of(self, log_rate: float) -> float:
        """The rate behind a logarithm, at least 0 and finite."""
        return max(0.0, exp(min(log_rate, 50.0)) - self.one_rps)


def extended(history: History, start_s: float, end_s: float, rate_rps: float, most: int) -> History:
    """The history with one more measured window, of at most `most` windows.

    The grid is that of the first window. Silence becomes missing windows, a wider window several of its rate,
    a narrower one is averaged into the newest.
    """
    span_s = end_s - start_s
    if not len(history):
        history = replace(history, end_s=start_s, width_s=span_s)
    width_s = history.width_s
    # Half a window of jitter is none; clocks of two readings never agree to the millisecond.
    ahead = round(min((end_s - history.end_s) / width_s, float(most)))
    if ahead < 1 and len(history):
        return _merged(history, span_s, rate_rps)
    ahead = max(ahead, 1)
    covered = min(ahead, max(1, round(min(span_s / width_s, float(most)))))
    end_s = history.end_s + ahead * width_s if ahead < most else end_s
    rates = np.empty(min(len(history) + ahead, most))
    kept = len(rates) - ahead
    rates[:kept], rates[kept:-covered], rates[-covered:] = (
        history.rates[len(history) - kept :],
        np.nan,
        rate_rps,
    )
    logs, usable = np.empty(len(rates)), np.zeros(len(rates), dtype=bool)
    logs[:kept], usable[:kept] = history.logs[len(history) - kept :], history.usable[len(history) - kept :]
    logs[kept:] = history.logs[-1] if len(history) else log(rate_rps + 1.0 / width_s)
    if _is_usable(rates, rate_rps):
        logs[-covered:], usable[-covered:] = log(rate_rps + 1.0 / width_s), True
    dropped, highest_rps = history.rates[: len(history) - kept], max(history.highest_rps, rate_rps)
    if len(dropped) and np.fmax.reduce(dropped) >= highest_rps:
        highest_rps = float(np.fmax.reduce(rates))
    return History(end_s, width_s, min(span_s, width_s), rates, logs, usable, highest_rps)


def _merged(history: History, span_s: float, rate_rps: float) -> History:
    filled_s = history.filled_s + span_s
    rates, logs, usable = history.rates.copy(), history.logs.copy(), history.usable.copy()
    rates[-1] += (rate_rps - rates[-1]) * span_s / filled_s
    usable[-1] = _is_usable(rates, float(rates[-1]))
    if usable[-1]:
        logs[-1] = log(rates[-1] + history.one_rps)
    elif len(logs) > 1:
        logs[-1] = logs[-2]
    highest_rps = float(np.fmax.reduce(rates))
    return History(history.end_s, history.width_s, filled_s, rates, logs, usable, highest_rps)


def _is_usable(rates: Floats, rate_rps: float) -> bool:
    recent = rates[-_MEDIAN_WINDOWS:]
    # No median is above the highest, which is found in a tenth of the time; it is NaN where one is missing.
    if rate_rps >= OUTAGE_SHARE * recent.max():
        return True
    return bool(rate_rps >= OUTAGE_SHARE * np.median(recent[~np.isnan(recent)]))


def largest_ahead(values: Floats, steps: int) -> Floats:
    """The largest of the next `steps` values at each place that has as many, ignoring NaN; shape (n − steps,)."""
    if len(values) <= steps:
        return np.empty(0)
    known = np.where(np.isnan(values), -np.inf, values)
    found = np.lib.stride_tricks.sliding_window_view(known[1:], steps).max(axis=1)
    return np.where(np.isinf(found), np.nan, found)
