"""Percentiles against numpy on samples, and sums of histograms."""

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.histograms import add, latency, quantile, subtract
from services.collector.source import HistogramReading

EDGES_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)


def histogram(samples_s: np.ndarray, edges_s: tuple[float, ...] = EDGES_S) -> HistogramReading:
    counts = tuple(float((samples_s <= edge).sum()) for edge in edges_s)
    return HistogramReading(edges_s, (*counts, float(len(samples_s))), float(samples_s.sum()))


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_lie_within_a_bucket_of_the_true_ones(seed: int) -> None:
    samples_s = np.random.default_rng(seed).lognormal(np.log(0.12), 0.8, 5_000)
    samples_s = samples_s[samples_s <= EDGES_S[-1]]
    found = latency(histogram(samples_s))
    assert found is not None
    assert found.mean_s == pytest.approx(samples_s.mean(), rel=1e-12)
    for value, share in ((found.p50_s, 50), (found.p90_s, 90), (found.p95_s, 95), (found.p99_s, 99)):
        true_s = float(np.percentile(samples_s, share, method="inverted_cdf"))
        upper = bisect_left(EDGES_S, true_s)
        lower_s = EDGES_S[upper - 1] if upper else 0.0
        assert value is not None and lower_s <= value <= EDGES_S[upper]


def test_a_percentile_above_every_edge_is_absent_and_the_mean_is_not() -> None:
    found = latency(HistogramReading((0.1, 1.0), (10.0, 80.0, 100.0), 500.0))
    assert found is not None and found.mean_s == 5.0
    assert found.p50_s == pytest.approx(0.1 + 0.9 * 40 / 70)
    assert found.p90_s is None and found.p99_s is None


def test_no_observations_have_no_latency() -> None:
    assert latency(HistogramReading((0.1,), (0.0, 0.0), 0.0)) is None
    assert latency(None) is None
    assert quantile(HistogramReading((0.1,), (0.0, 0.0), 0.0), 0.5) is None


def test_histograms_of_other_edges_or_fallen_counts_have_no_difference() -> None:
    one = HistogramReading((0.1, 1.0), (1.0, 2.0, 3.0), 1.0)
    assert subtract(one, HistogramReading((0.1, 2.0), (0.0, 0.0, 0.0), 0.0)) is None
    assert subtract(one, HistogramReading((0.1, 1.0), (2.0, 2.0, 2.0), 0.0)) is None
    assert subtract(one, None) == one


def test_histograms_with_different_edges_add_up_with_their_counts_at_common_edges_kept() -> None:
    coarse = HistogramReading((1.0, 2.0), (10.0, 20.0, 21.0), 30.0)
    fine = HistogramReading((0.5, 1.0, 2.0), (1.0, 2.0, 5.0, 5.0), 6.0)
    total = add([coarse, fine])
    assert total == HistogramReading((0.5, 1.0, 2.0), (6.0, 12.0, 25.0, 26.0), 36.0)
    assert add([]) is None


@given(st.lists(st.floats(0, 20), max_size=60), st.lists(st.floats(0, 20), max_size=60))
def test_a_difference_holds_exactly_what_came_in_between(early: list[float], late: list[float]) -> None:
    before, after = histogram(np.array(early)), histogram(np.array(early + late))
    between = subtract(after, before)
    expected = histogram(np.array(late))
    assert between is not None and between.counts == expected.counts
    assert between.sum_s == pytest.approx(expected.sum_s, abs=1e-9)
