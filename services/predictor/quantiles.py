"""Quantiles of the largest rate within the horizon, from how earlier forecasts turned out. Pure.

Each forecast that has come due gives a ratio (what came + e) / (point forecast + e), where e is one request per
window (for tokens, one token) and keeps small figures harmless. The quantiles of the ratios, taken as in split
conformal prediction (Lei et al., JASA 113, 2018: the ⌈(n+1)q⌉-th smallest), scale the next point forecast. While
few have come due, the largest of several Poisson counts is a floor.

A ratio out of idleness (from none to many) says nothing about a busy server, so no quantile goes further beyond
the point forecast than twice the furthest rise of late. As that halves over the forecasts kept, twice it is at
least the largest rise kept, and coverage falls by at most 1/(n+1).

All is plain numbers: five levels of a handful of forecasters are done before numpy has made its first array.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import ceil, sqrt
from statistics import NormalDist

LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
_NORMAL = NormalDist()
# The largest level below 1 in floating point; that of very many windows rounds to 1.
_SURE = 1.0 - 2.0**-53


def _none() -> "array[float]":
    return array("d")


@dataclass(frozen=True)
class Ratios:
    """What came over what was forecast, of the newest forecasts due: oldest first, and in rising order."""

    came: "array[float]" = field(default_factory=_none)
    ranked: "array[float]" = field(default_factory=_none)

    def __len__(self) -> int:
        return len(self.came)

    def at_levels(self) -> list[float]:
        """The ratio at each of LEVELS; there is at least one."""
        return [self.ranked[rank] for rank in _ranks(len(self.came))]


@lru_cache(maxsize=1024)
def _ranks(count: int) -> tuple[int, ...]:
    return tuple(min(ceil((count + 1) * level), count) - 1 for level in LEVELS)


def with_ratio(ratios: Ratios, ratio: float, most: int) -> Ratios:
    """The ratios with one more, the oldest dropped beyond `most`."""
    came, ranked = ratios.came[:], ratios.ranked[:]
    if len(came) >= most:
        del ranked[bisect_left(ranked, came[0])]
        del came[0]
    came.append(ratio)
    insort(ranked, ratio)
    return Ratios(came, ranked)


def largest_rates(
    point_rps: float, ratios: Ratios, width_s: float, steps: int, trusted: int, rise_rps: float
) -> tuple[float, ...]:
    """The rate at each of LEVELS for one forecaster, rising.

    Parameters: point_rps, its point forecast; width_s and steps, a window and how many the horizon has; trusted,
    number of ratios from which they need no floor; rise_rps, how far rates went beyond its points of late.
    """
    one_rps, highest_rps = 1.0 / width_s, point_rps + 2.0 * rise_rps
    found = [point_rps] * len(LEVELS)
    if len(ratios):
        found = [min((point_rps + one_rps) * r - one_rps, highest_rps) for r in ratios.at_levels()]
    if len(ratios) < trusted:
        found = [max(pair) for pair in zip(found, poisson_largest(point_rps, width_s, steps), strict=True)]
    return rising(found)


def rising(figures: Sequence[float]) -> tuple[float, ...]:
    """Each figure or the largest before it, and none below 0."""
    return tuple(accumulate(figures, max, initial=0.0))[1:]


@lru_cache(maxsize=1024)
def _scores(steps: int) -> tuple[float, ...]:
    return tuple(_NORMAL.inv_cdf(min(level ** (1.0 / steps), _SURE)) for level in LEVELS)


def poisson_largest(rate_rps: float, width_s: float, steps: int) -> list[float]:
    """LEVELS of the largest of the Poisson counts of `steps` windows, as rates.

    The largest of m counts is below x with probability F(x)^m; F by the Cornish–Fisher expansion to first order.
    """
    mean = rate_rps * width_s
    if not mean:
        return [0.0] * len(LEVELS)
    return [max(mean + z * sqrt(mean) + (z * z - 1.0) / 6.0, 0.0) / width_s for z in _scores(steps)]


def pinball(actual: float, forecasts: Sequence[float]) -> list[float]:
    """Pinball loss of quantile forecasts at LEVELS."""
    return [
        level * (actual - said) if actual >= said else (1.0 - level) * (said - actual)
        for level, said in zip(LEVELS, forecasts, strict=True)
    ]
