"""The predictor on loads that nothing was chosen by: 50 generated series of 14 days, and what it costs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import Cell, Progress, Table
from schemas.base import Quality
from schemas.telemetry import TelemetryObserved
from services.predictor import backtest
from services.predictor.core import State, step
from services.predictor.service import pool_of
from services.predictor.settings import PredictorSettings

Floats = npt.NDArray[np.float64]

_WIDTH_S = 600.0
_DAY = 144
_COUNT = 14 * _DAY
_HORIZONS_S = (600.0, 1800.0, 3600.0)
_SEEDS = range(5)
_SERVERS = 200
_CYCLE_S = 30.0


def run(progress: Progress) -> list[Table]:
    """Scores by character of load and horizon, and processor time by fit and by window."""
    settings = PredictorSettings()
    pool = pool_of(settings)
    rows: list[tuple[Cell, ...]] = []
    began_s, fits, fit_s = time.process_time(), 0, 0.0
    for name, made in CHARACTERS.items():
        series = [made(np.random.default_rng([seed, len(name)])) for seed in _SEEDS]
        for horizon_s in _HORIZONS_S:
            progress.say(f"forecasts: {name}, {horizon_s:g} s")
            figures = []
            for rates in series:
                one = backtest.run(rates, 0.0, _WIDTH_S, horizon_s, pool, settings, time.process_time)
                fits, fit_s = fits + one.fits, fit_s + one.fit_s
                figures.append(_figures(rates, one))
            rows.append((name, horizon_s, *_cells(np.array(figures))))
    spent_s = time.process_time() - began_s
    columns = ("load", "horizon s", "MASE", ".5", ".9", ".95", "median .9", "coverage from", "to")
    notes = (
        f"{len(_SEEDS)} seeds of each; MASE, .5, .9, .95: the largest of them, pinball loss over the last value's.",
        f"All {len(CHARACTERS) * len(_SEEDS)} series × 14 days × {len(_HORIZONS_S)} horizons: {spent_s:.0f} s of "
        f"processor time; {1000 * fit_s / fits:.1f} ms a fit of one series, {fits} fits.",
    )
    return [
        Table("Largest rate within the horizon, generated loads", columns, tuple(rows), notes),
        _cost(progress),
    ]


def _figures(rates: Floats, one: backtest.Run) -> tuple[float, ...]:
    first = backtest.warm_up(_COUNT, _WIDTH_S)
    own, last = (backtest.score(rates, one, said, first) for said in (one.rates_rps, one.last_rps))
    pairs = (
        (own.pinball_p50, last.pinball_p50),
        (own.pinball_p90, last.pinball_p90),
        (own.pinball_p95, last.pinball_p95),
    )
    return (own.mase or 0.0, *((o or 0.0) / (t or 1.0) for o, t in pairs), own.coverage or 0.0)


def _cells(figures: Floats) -> tuple[float, ...]:
    largest = [round(float(one), 3) for one in figures[:, :4].max(axis=0)]
    spread = (np.median(figures[:, 2]), figures[:, 4].min(), figures[:, 4].max())
    return (*largest, *(round(float(one), 3) for one in spread))


def _cost(progress: Progress) -> Table:
    """Processor time of a step by window, with full histories, and without the fits in between."""
    progress.say("forecasts: cost of a window")
    settings = PredictorSettings()
    pool, state, chance = pool_of(settings), State(), np.random.default_rng(1)
    spent: list[float] = []
    for cycle in range(640):
        windows = [_window(server, cycle, float(chance.gamma(20.0, 0.5))) for server in range(_SERVERS)]
        began_s = time.process_time()
        state, outputs = step(state, windows, pool, settings)
        if cycle >= 600 and not any(taken.fit for taken in outputs.taken.values()):
            spent.append((time.process_time() - began_s) / _SERVERS)
    least_s = min(spent)
    note = f"{_SERVERS} servers with 600 windows behind them and 500 forecasts come due; steps that fit none."
    row = (round(1e6 * least_s, 1), round(60.0 / least_s))
    return Table("Windows between fits", ("least µs a window", "windows a minute and core"), (row,), (note,))


def _window(server: int, cycle: int, rate_rps: float) -> TelemetryObserved:
    return TelemetryObserved(
        server=f"server-{server:04d}",
        model="m",
        window_start_s=1e9 + _CYCLE_S * cycle,
        window_end_s=1e9 + _CYCLE_S * (cycle + 1),
        quality=Quality.OK,
        offered_rate_rps=rate_rps,
        completed_rate_rps=rate_rps,
        input_tokens=500.0,
        output_tokens=200.0,
    )


def _counted(chance: np.random.Generator, rates_rps: Any) -> Floats:
    return np.asarray(chance.poisson(np.asarray(rates_rps) * _WIDTH_S, _COUNT) / _WIDTH_S)


def _day(depth: float = 0.6) -> Floats:
    return 1.0 + depth * np.sin(2.0 * np.pi * np.arange(_COUNT) / _DAY)


def _autoregressive(chance: np.random.Generator, memory: float, size: float) -> Floats:
    logs = np.zeros(_COUNT)
    for place in range(1, _COUNT):
        logs[place] = memory * logs[place - 1] + chance.normal(0.0, size)
    return np.exp(np.clip(logs, -3.0, 3.0))


def _steps(chance: np.random.Generator) -> Floats:
    lengths = chance.exponential(_DAY / 2.0, 200).astype(int) + 1
    return np.repeat(np.exp(chance.normal(1.0, 1.0, 200)), lengths)[:_COUNT]


def _bursts(chance: np.random.Generator) -> Floats:
    rates = np.ones(_COUNT)
    for place in chance.integers(0, _COUNT, 60):
        rates[place : place + chance.integers(1, 6)] += chance.pareto(1.5)
    return rates


def _office(chance: np.random.Generator) -> Floats:
    hours, days = np.arange(_COUNT) % _DAY / 6.0, np.arange(_COUNT) // _DAY % 7
    open_ = (hours >= 8) & (hours < 18) & (days < 5)
    return np.where(open_, 5.0, 0.002)


def _with_outages(chance: np.random.Generator) -> Floats:
    rates = 10.0 * _day() * np.exp(chance.normal(0.0, 0.1, _COUNT))
    for place in chance.integers(0, _COUNT, 8):
        rates[place : place + chance.integers(2, 30)] = 0.0
    return rates


CHARACTERS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "few requests": lambda chance: _counted(chance, 0.005),
    "daily": lambda chance: _counted(chance, 10.0 * _day()),
    "daily, uneven": lambda chance: _counted(chance, 3.0 * _day() * chance.gamma(20.0, 0.05, _COUNT)),
    "reverting": lambda chance: 20.0 * _autoregressive(chance, 0.95, 0.1),
    "random walk": lambda chance: 20.0 * _autoregressive(chance, 1.0, 0.1),
    "steps": lambda chance: _counted(chance, _steps(chance)),
    "bursts": lambda chance: _counted(chance, _bursts(chance)),
    "office hours": lambda chance: _counted(chance, _office(chance)),
    "outages": _with_outages,
    "growth": lambda chance: np.linspace(1.0, 30.0, _COUNT) * chance.gamma(30.0, 1.0 / 30.0, _COUNT),
}
"""Loads of one kind each; none of them was looked at when the predictor's settings were chosen."""
