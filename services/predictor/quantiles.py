"""The distribution of the largest rate within the horizon, from how earlier forecasts turned out. Pure.

Each forecast that has come due gives a ratio (largest rate that came + e) / (point forecast + e), where e is one
request per window and keeps small rates harmless. The quantiles of the ratios, taken as in split conformal
prediction (Lei et al., JASA 113, 2018: the ⌈(n+1)q⌉-th smallest), scale the next point forecast. While few have
come due, the largest of several Poisson counts is a floor.

A ratio out of idleness (from none to many) says nothing about a busy server, so no quantile goes further beyond
the point forecast than twice the furthest rise of late. As that halves over the forecasts kept, twice it is at
least the largest rise kept, and coverage falls by at most 1/(n+1).
"""

from collections.abc import Sequence
from math import ceil, sqrt
from statistics import NormalDist

LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
_NORMAL = NormalDist()
# The largest level below 1 in floating point; that of very many windows rounds to 1.
_SURE = 1.0 - 2.0**-53


def largest_rates(
    point_rps: float,
    ratios: Sequence[float],
    width_s: float,
    horizon_s: float,
    trusted: int,
    rise_rps: float,
) -> tuple[float, ...]:
    """The rate at each of LEVELS, rising.

    Parameters: point_rps, point forecast; ratios, in rising order; width_s, a window; horizon_s; trusted, number
    of ratios from which they need no floor; rise_rps, how far rates went beyond their point forecasts of late.
    """
    one = 1.0 / width_s
    found: list[float] = []
    for level in LEVELS:
        value = (point_rps + one) * quantile(ratios, level) - one if ratios else point_rps
        value = min(value, point_rps + 2.0 * rise_rps)
        if len(ratios) < trusted:
            value = max(value, poisson_largest(point_rps, width_s, horizon_s, level))
        found.append(max(value, found[-1] if found else 0.0))
    return tuple(found)


def quantile(rising: Sequence[float], level: float) -> float:
    """The ⌈(n+1)·level⌉-th smallest, the largest where there are too few."""
    return rising[min(len(rising), max(1, ceil((len(rising) + 1) * level))) - 1]


def poisson_largest(rate_rps: float, width_s: float, horizon_s: float, level: float) -> float:
    """A quantile of the largest of the Poisson counts of all windows in the horizon, as a rate.

    The largest of m counts is below x with probability F(x)^m; F by the Cornish–Fisher expansion to first order.
    """
    mean = rate_rps * width_s
    if mean <= 0:
        return 0.0
    windows = max(1.0, horizon_s / width_s)
    z = _NORMAL.inv_cdf(min(level ** (1.0 / windows), _SURE))
    return max(0.0, mean + z * sqrt(mean) + (z * z - 1.0) / 6.0) / width_s


def pinball(actual: float, forecast: float, level: float) -> float:
    """Pinball loss of a quantile forecast."""
    return (actual - forecast) * (level if actual >= forecast else level - 1.0)
