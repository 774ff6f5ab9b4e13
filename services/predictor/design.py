"""The regressors of the direct forecasters: where a load stands against its own past and its days and weeks. Pure.

At window t with cleaned log rate y(t), and for the target z(t) = log(largest rate of the next h windows) − y(t):
smoothed levels and lags against y(t); how the load moved over the same span a day and a week ago, and where it
was then against now; daily and weekly Fourier terms of the time that is forecast. All but the constant vanish on
a constant load. Terms of a season enter once a season and a half was seen.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import cos, sin
from operator import mul
from typing import Any

import numpy as np

from services.predictor.history import DAY_S, WEEK_S, Floats, History, largest_ahead

_MEMORY = 120
"""Windows that a smoothed level looks back; what is older weighs below 0.3 % at the slowest constant."""
_SMOOTHING = (0.05, 0.2, 0.5)
_LAGS = (1, 2, 5)
_SEASONS = ((DAY_S, 4), (WEEK_S, 2))
"""Period in seconds, and pairs of Fourier terms."""
_FURTHEST = 3.0
"""Targets are clipped to a factor of e³: beyond lie outages and births, which no regression should lean to."""


@lru_cache(maxsize=256)
def _weights(alphas: tuple[float, ...], memory: int) -> Floats:
    """The weights α(1 − α)^k of the last `memory` windows, oldest first, each row of sum one."""
    rates = np.array(alphas)[:, None]
    found = rates * (1.0 - rates) ** np.arange(memory)[::-1]
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def smoothed(logs: Floats, alpha: float) -> Floats:
    """The exponentially smoothed level at every place, looking back _MEMORY windows; shape (n,)."""
    memory = min(_MEMORY, len(logs))
    padded = np.concatenate((np.full(memory - 1, logs[0]), logs))
    return np.convolve(padded, _weights((alpha,), memory)[0, ::-1], mode="valid")


def levels(logs: Floats, alphas: tuple[float, ...]) -> Floats:
    """The newest of `smoothed` for several constants; shape (constants,)."""
    memory = min(_MEMORY, len(logs))
    return np.asarray(_weights(alphas, memory) @ logs[-memory:])


def seasons_of(history: History) -> list[int]:
    """The periods, in windows, of the seasons that the history has seen one and a half of."""
    periods = (round(period_s / history.width_s) for period_s, _ in _SEASONS)
    return [period for period in periods if period >= 4 and len(history) >= 1.5 * period]


def regressors(history: History, steps: int, seasons: int) -> Floats:
    """The regressors at every place of a history; shape (n, columns)."""
    logs, count = history.logs, len(history)
    places = np.arange(count)
    columns = [np.ones(count)]
    columns += [smoothed(logs, alpha) - logs for alpha in _SMOOTHING]
    columns += [logs[np.maximum(places - lag, 0)] - logs for lag in _LAGS]
    for period_s, pairs in _SEASONS[:seasons]:
        period = round(period_s / history.width_s)
        before = places - period
        ahead = logs[np.clip(before + min(steps, period), 0, count - 1)]
        columns.append(np.where(before >= 0, ahead - logs[np.maximum(before, 0)], 0.0))
        columns.append(np.where(before >= 0, ahead - logs, 0.0))
        angle = _angle(history.end_s + (places - (count - 1) + steps) * history.width_s, period_s)
        for pair in range(1, pairs + 1):
            columns += [np.sin(pair * angle), np.cos(pair * angle)]
    return np.stack(columns, axis=1)


@lru_cache(maxsize=16)
def newest(history: History, steps: int, seasons: int) -> tuple[float, ...]:
    """The last row of `regressors`, but for rounding, which is all that a forecast needs.

    It is kept for the next forecaster, and numbers, as so few are multiplied in less time than an array is made.
    """
    logs, count = history.logs, len(history)
    now = float(logs[-1])
    row = [1.0, *(levels(logs, _SMOOTHING) - now).tolist()]
    row += [float(logs[max(count - 1 - lag, 0)]) - now for lag in _LAGS]
    for period_s, pairs in _SEASONS[:seasons]:
        period = round(period_s / history.width_s)
        # Seasons are regressed on only where more than one was seen, so that there is a place before.
        before = count - 1 - period
        ahead = float(logs[before + min(steps, period)])
        row += [ahead - float(logs[before]), ahead - now]
        angle = float(_angle(history.end_s + steps * history.width_s, period_s))
        for pair in range(1, pairs + 1):
            row += [sin(pair * angle), cos(pair * angle)]
    return tuple(row)


def product(row: Sequence[float], coefficients: Sequence[float]) -> float:
    """The sum of the products of a row and as many coefficients."""
    return float(sum(map(mul, row, coefficients)))


def _angle(at_s: Any, period_s: float) -> Any:
    return 2.0 * np.pi * (at_s % period_s) / period_s


def training(history: History, steps: int, seasons: int) -> tuple[Floats, Floats]:
    """Regressors and targets of every place that is usable and has a usable future; shapes (m, columns), (m,)."""
    rates = np.where(history.usable, history.rates, np.nan)
    targets = np.log(largest_ahead(rates, steps) + history.one_rps)
    places = np.flatnonzero(~np.isnan(targets) & history.usable[: len(targets)])
    if not len(places):
        return np.empty((0, 1)), np.empty(0)
    rows = regressors(history, steps, seasons)[places]
    return rows, np.clip(targets[places] - history.logs[places], -_FURTHEST, _FURTHEST)
