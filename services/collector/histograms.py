"""Differences, sums and percentiles of cumulative histograms."""

from collections.abc import Sequence

import numpy as np

from schemas.telemetry import Latency
from services.collector.source import HistogramReading

LONGEST_S = 86_400.0
PERCENTILES = {"p50_s": 0.50, "p90_s": 0.90, "p95_s": 0.95, "p99_s": 0.99}


def subtract(later: HistogramReading, earlier: HistogramReading | None) -> HistogramReading | None:
    """What was observed between two readings; all of `later` when there is no earlier one.

    None when they are not of one histogram: other edges, or a count that fell.
    """
    if earlier is None:
        return later
    if later.edges_s != earlier.edges_s:
        return None
    counts = tuple(after - before for after, before in zip(later.counts, earlier.counts, strict=True))
    if min(counts) < 0:
        return None
    return HistogramReading(later.edges_s, counts, max(0.0, later.sum_s - earlier.sum_s))


def add(histograms: Sequence[HistogramReading]) -> HistogramReading | None:
    """The sum of histograms; where edges differ, observations are taken as evenly spread in their bucket."""
    if not histograms:
        return None
    edges = np.unique(np.concatenate([np.asarray(h.edges_s, dtype=float) for h in histograms]))
    total = np.zeros(len(edges) + 1)
    for histogram in histograms:
        if len(histogram.edges_s) == len(edges):
            total += histogram.counts
            continue
        own = np.concatenate(([0.0], histogram.edges_s))
        total[:-1] += np.interp(edges, own, np.concatenate(([0.0], histogram.counts[:-1])))
        total[-1] += histogram.count
    return HistogramReading(tuple(edges.tolist()), tuple(total.tolist()), sum(h.sum_s for h in histograms))


def quantile(histogram: HistogramReading, share: float) -> float | None:
    """The value below which a share of the observations lies, linear within its bucket, in seconds.

    None when there are no observations or when it lies above the last finite edge. This is PromQL's
    `histogram_quantile`, except that PromQL answers with the last edge where nothing is known.
    """
    rank = share * histogram.count
    if rank <= 0:
        return None
    bucket = int(np.searchsorted(histogram.counts, rank, side="left"))
    if bucket >= len(histogram.edges_s):
        return None
    lower_s = histogram.edges_s[bucket - 1] if bucket else 0.0
    below = histogram.counts[bucket - 1] if bucket else 0.0
    inside = histogram.counts[bucket] - below
    return lower_s + (histogram.edges_s[bucket] - lower_s) * (rank - below) / inside


def latency(histogram: HistogramReading | None) -> Latency | None:
    """Mean and percentiles of a window's observations; None without any, or beyond what a latency can be."""
    if histogram is None or histogram.count <= 0:
        return None
    mean_s = histogram.sum_s / histogram.count
    if not mean_s <= LONGEST_S:
        return None
    percentiles = {name: quantile(histogram, share) for name, share in PERCENTILES.items()}
    sane = {name: p if p is not None and 0 <= p <= LONGEST_S else None for name, p in percentiles.items()}
    return Latency(count=histogram.count, mean_s=mean_s, **sane)
