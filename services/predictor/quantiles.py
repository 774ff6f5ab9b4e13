"""The distribution of the largest rate within the horizon, from how earlier forecasts turned out. Pure.

Each forecast that has come due gives a ratio (largest rate that came + e) / (point forecast + e), where e is one
request per window and keeps small rates harmless. The quantiles of the ratios, taken as in split conformal
prediction (Lei et al., JASA 113, 2018: the ⌈(n+1)q⌉-th smallest), scale the next point forecast. While few have
come due, the largest of several Poisson counts is a floor.

A ratio out of idleness (from none to many) says nothing about a busy server, so no quantile goes further beyond
the point forecast than twice the furthest rise of late. As that halves over the forecasts kept, twice it is at
least the largest rise kept, and coverage falls by at most 1/(n+1).
"""

from statistics import NormalDist

import numpy as np

from services.predictor.history import Floats

LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
LEVEL = np.array(LEVELS)
_NORMAL = NormalDist()
# The largest level below 1 in floating point; that of very many windows rounds to 1.
_SURE = 1.0 - 2.0**-53


def largest_rates(
    points_rps: Floats,
    ratios: Floats,
    width_s: float,
    steps: int,
    trusted: int,
    rises_rps: Floats,
) -> Floats:
    """The rate at each of LEVELS for each forecaster, rising; shape (forecasters, levels).

    Parameters: points_rps, point forecasts, shape (forecasters,); ratios, shape (forecasters, n); width_s and
    steps, a window and how many the horizon has; trusted, number of ratios from which they need no floor;
    rises_rps, how far rates went beyond their point forecasts of late, shape (forecasters,).
    """
    count, points = ratios.shape[1], points_rps[:, None]
    found = np.repeat(points, len(LEVELS), axis=1)
    if count:
        ranks = np.clip(np.ceil((count + 1) * LEVEL).astype(int), 1, count) - 1
        found = (points + 1.0 / width_s) * np.sort(ratios, axis=1)[:, ranks] - 1.0 / width_s
    found = np.minimum(found, points + 2.0 * rises_rps[:, None])
    if count < trusted:
        found = np.maximum(found, poisson_largest(points_rps, width_s, steps))
    return np.asarray(np.maximum.accumulate(np.maximum(found, 0.0), axis=1))


def poisson_largest(rates_rps: Floats, width_s: float, steps: int) -> Floats:
    """LEVELS of the largest of the Poisson counts of `steps` windows, as rates; shape (forecasters, levels).

    The largest of m counts is below x with probability F(x)^m; F by the Cornish–Fisher expansion to first order.
    """
    mean = rates_rps[:, None] * width_s
    z = np.array([_NORMAL.inv_cdf(level) for level in np.minimum(LEVEL ** (1.0 / steps), _SURE)])
    largest = mean + z * np.sqrt(mean) + (z * z - 1.0) / 6.0
    return np.where(mean > 0, np.maximum(largest, 0.0) / width_s, 0.0)


def pinball(actual: float, forecasts: Floats) -> Floats:
    """Pinball loss of quantile forecasts at LEVELS, the last axis."""
    short = actual - forecasts
    return np.where(short >= 0, LEVEL * short, (LEVEL - 1.0) * short)
