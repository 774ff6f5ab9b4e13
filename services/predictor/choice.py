"""How earlier forecasts turned out, and how much of the ensemble and of the last value the next is. Pure.

The ensemble is the mean of the pool's quantiles in logarithms, each weighted at each level by the inverse square of
its recent pinball loss, moved by a shift per level that follows what was covered. What is issued is a mean of the
ensemble and the last value with its own intervals: at every level the odds of the ensemble are the ratio of both
losses, less a margin, to a power. The margin is wide while few horizons have passed, so that a lead by chance counts
for nothing. Losses are convex: a mean of two forecasts loses no more than their mean, while a choice of one of them
loses each time that it comes too late. At the median the last value as it was is a third in the mean.
"""

from dataclasses import dataclass
from math import exp, log

from services.predictor.quantiles import LEVELS, Ratios, with_ratio
from services.predictor.settings import PredictorSettings

ENSEMBLE = "ensemble"
_P50, _P90 = LEVELS.index(0.5), LEVELS.index(0.9)
_FURTHEST_SHIFT = 1.0
"""The shift corrects coverage by a factor of e at most; what is further off is not a matter of coverage."""
_SCALE_FORGET = 0.995
_TINY = 1e-12
_SURE_ODDS = 40.0
"""Logarithm of odds beyond which the other has no part in a mean of floating-point numbers."""

Levels = tuple[float, ...]
"""A figure at each of LEVELS."""


@dataclass(frozen=True)
class Rates:
    """The rates at LEVELS of each forecaster of the pool, the last value first, of the ensemble, and as issued."""

    pool: tuple[Levels, ...]
    ensemble: Levels
    issued: Levels


@dataclass(frozen=True)
class Record:
    """How forecasts turned out.

    ratios: by forecaster of the pool; rises_rps: the furthest that a rate went beyond each point forecast, halved
    over as many forecasts as there are ratios kept; pool: by forecaster the discounted sums of pinball losses, of
    total `pool_weight`; last, ensemble, issued, plain: the same sums, forgotten more slowly, of what the choice is
    between, of what it came to, and of the last value as it was, in its place at the median, of total `weight`;
    shift: of the ensemble's log rates; scale: discounted mean size of the ensemble's log errors.
    """

    ratios: tuple[Ratios, ...]
    rises_rps: Levels
    pool: tuple[Levels, ...]
    pool_weight: float
    last: Levels
    ensemble: Levels
    issued: Levels
    plain: float
    weight: float
    shift: Levels
    scale: float
    scored: int


def no_record(forecasters: int) -> Record:
    """The record before anything came due."""
    none = (0.0,) * len(LEVELS)
    rows = range(forecasters)
    ratios, rises_rps, pool = tuple(Ratios() for _ in rows), (0.0,) * forecasters, tuple(none for _ in rows)
    return Record(ratios, rises_rps, pool, 0.0, none, none, none, 0.0, 0.0, none, 0.0, 0)


def scored(
    record: Record,
    newest_rps: float,
    points_rps: Levels,
    said: Rates,
    came_rps: float,
    one_rps: float,
    settings: PredictorSettings,
) -> Record:
    """The record after a forecast came due.

    Parameters: newest_rps, the rate when it was made; points_rps, by forecaster; came_rps, the largest rate since.
    """
    fade, forget = settings.pool_forget, settings.forget
    error = abs(log((came_rps + one_rps) / (said.ensemble[_P50] + one_rps)))
    scale = error if not record.scored else _SCALE_FORGET * record.scale + (1.0 - _SCALE_FORGET) * error
    pace, most, kept = settings.shift * scale, settings.ratios, 0.5 ** (1.0 / settings.ratios)
    shift = tuple(
        min(max(at + pace * ((came_rps > rate) - (1.0 - level)), -_FURTHEST_SHIFT), _FURTHEST_SHIFT)
        for at, rate, level in zip(record.shift, said.ensemble, LEVELS, strict=True)
    )
    pool = tuple(
        [_faded(held, fade, came_rps, rates) for held, rates in zip(record.pool, said.pool, strict=True)]
    )
    ratios = zip(record.ratios, points_rps, strict=True)
    return Record(
        tuple(with_ratio(held, (came_rps + one_rps) / (point + one_rps), most) for held, point in ratios),
        tuple(max(came_rps - p, r * kept) for p, r in zip(points_rps, record.rises_rps, strict=True)),
        pool,
        fade * record.pool_weight + 1.0,
        _faded(record.last, forget, came_rps, said.pool[0]),
        _faded(record.ensemble, forget, came_rps, said.ensemble),
        _faded(record.issued, forget, came_rps, said.issued),
        forget * record.plain + 0.5 * abs(came_rps - newest_rps),
        forget * record.weight + 1.0,
        shift,
        scale,
        record.scored + 1,
    )


def _faded(losses: Levels, keep: float, came_rps: float, said: Levels) -> Levels:
    """Discounted sums of losses, as `quantiles.pinball` has them, with one more; one pass, as it costs the most."""
    figures = zip(losses, said, LEVELS, strict=True)
    return tuple(
        [
            keep * lost
            + (level * (came_rps - rate) if came_rps >= rate else (1.0 - level) * (rate - came_rps))
            for lost, rate, level in figures
        ]
    )


def ensemble_of(pool: tuple[Levels, ...], record: Record, one_rps: float) -> list[float]:
    """The ensemble's rate at each of LEVELS, not yet in rising order."""
    found, weight = [], max(record.pool_weight, _TINY)
    for place, shift in enumerate(record.shift):
        losses = [rates[place] / weight for rates in record.pool]
        floor = 0.01 * max(losses) + _TINY
        total = logs = 0.0
        for lost, rates in zip(losses, pool, strict=True):
            share = 1.0 / (lost + floor) ** 2
            total += share
            logs += share * log(rates[place] + one_rps)
        found.append(exp(logs / total + shift) - one_rps)
    return found


def mixed(
    last: Levels, ensemble: Levels, newest_rps: float, record: Record, steps: int, settings: PredictorSettings
) -> tuple[list[float], Levels]:
    """The mean of the ensemble and the last value at LEVELS, and the ensemble's share in it."""
    if record.scored < settings.judged:
        return list(last), (0.0,) * len(LEVELS)
    # Forecasts that overlap say the same, so what counts is how many horizons have passed.
    margin = settings.margin + settings.caution * steps / record.weight
    rates, shares = [], []
    for place in range(len(LEVELS)):
        odds = _odds(record.last[place], record.ensemble[place], margin, settings)
        total, rate = 1.0 + odds, last[place] + odds * ensemble[place]
        if place == _P50:
            plain = _odds(record.last[place], record.plain, margin, settings)
            total, rate = total + plain, rate + plain * newest_rps
        rates.append(rate / total)
        shares.append(odds / total)
    return rates, tuple(shares)


def _odds(last: float, other: float, margin: float, settings: PredictorSettings) -> float:
    lead = log(max(last, _TINY)) - log(max(other, _TINY)) - margin
    return exp(min(max(settings.sharpness * lead, -_SURE_ODDS), _SURE_ODDS))


def reasoned(shares: Levels, record: Record, settings: PredictorSettings) -> tuple[str, str]:
    """Whose the forecast is, by its rate at 0.9, and why."""
    if record.scored < settings.judged:
        return "last", f"the last value: {record.scored} of {settings.judged} forecasts have come due"
    figures = ", ".join(
        f"pinball at {LEVELS[i]} {record.ensemble[i] / record.weight:.4g}, last {record.last[i] / record.weight:.4g}"
        for i in (_P90, _P50)
    )
    better = [str(level) for level, share in zip(LEVELS, shares, strict=True) if share > 0.5]
    if not better:
        return "last", f"the last value: nothing does clearly better ({figures})"
    other = ", ".join(str(level) for level, share in zip(LEVELS, shares, strict=True) if share <= 0.5)
    held = f"; the last value at {other}, where nothing does clearly better" if other else ""
    name = ENSEMBLE if shares[_P90] > 0.5 else "last"
    weights = ", ".join(f"{share:.2f}" for share in shares)
    return (
        name,
        f"the ensemble at {', '.join(better)}, better than the last value{held} (shares {weights}; {figures})",
    )
