"""The mean of ensemble and last value, against its parts and against what came."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.predictor.choice import Rates, mixed, no_record, reasoned, scored
from services.predictor.quantiles import LEVELS, Ratios, pinball, rising, with_ratio
from services.predictor.settings import PredictorSettings

SETTINGS = PredictorSettings()
ONE_RPS = 1.0 / 600.0
rates = st.lists(st.floats(0, 1e4), min_size=len(LEVELS), max_size=len(LEVELS)).map(rising)


def after(last: float, ensemble: float, came: float, forecasts: int) -> tuple[list[float], tuple[float, ...]]:
    """What is issued, and shares, after forecasts of one window turned out the same so many times."""
    record = no_record(1)
    one, other = (last,) * len(LEVELS), (ensemble,) * len(LEVELS)
    for _ in range(forecasts):
        record = scored(record, last, (last,), Rates((one,), other, one), came, ONE_RPS, SETTINGS)
    return mixed(one, other, last, record, 1, SETTINGS)


def test_the_ensemble_has_no_part_before_it_is_judged_and_nearly_all_where_it_leads_by_far() -> None:
    said, shares = after(10.0, 20.0, 20.0, SETTINGS.judged - 1)
    assert (said, shares) == ([10.0] * len(LEVELS), (0.0,) * len(LEVELS))
    said, shares = after(10.0, 20.0, 20.0, 200)
    assert min(shares) > 0.99
    assert said == pytest.approx([20.0] * len(LEVELS), rel=1e-3)


def test_a_lead_within_the_margin_leaves_the_last_value_the_larger_part() -> None:
    # Losses of 10 against 9.8: two per cent less, where three are asked for.
    _, shares = after(10.0, 10.2, 20.0, 500)
    assert max(shares) < 0.5


def test_the_same_lead_counts_for_less_while_few_horizons_have_passed() -> None:
    _, early = after(10.0, 11.0, 20.0, 25)
    _, late = after(10.0, 11.0, 20.0, 500)
    assert all(one < other for one, other in zip(early, late, strict=True))


@settings(max_examples=200, deadline=None)
@given(last=rates, ensemble=rates, came=st.floats(0, 1e4), odds=st.floats(0, 50))
def test_a_mean_loses_no_more_than_the_mean_of_what_its_parts_lose(
    last: tuple[float, ...], ensemble: tuple[float, ...], came: float, odds: float
) -> None:
    share = odds / (1.0 + odds)
    said = [share * e + (1.0 - share) * other for e, other in zip(ensemble, last, strict=True)]
    bounds = zip(pinball(came, ensemble), pinball(came, last), strict=True)
    for loss, (high, low) in zip(pinball(came, said), bounds, strict=True):
        # Rounding of sums of rates up to 10 000.
        assert loss <= share * high + (1.0 - share) * low + 1e-8


@settings(max_examples=100, deadline=None)
@given(
    forecasts=st.lists(st.tuples(rates, rates, st.floats(0, 1e7)), min_size=1, max_size=6),
    steps=st.integers(1, 10_000),
)
def test_what_is_issued_lies_between_its_parts_whatever_came(
    forecasts: list[tuple[tuple[float, ...], tuple[float, ...], float]], steps: int
) -> None:
    record = no_record(1)
    # Each comes so often that most are mixed, and not the last value for want of a judgement.
    for last, ensemble, came in [one for one in forecasts for _ in range(SETTINGS.judged // 2)]:
        said, shares = mixed(last, ensemble, last[0], record, steps, SETTINGS)
        for one, low, high in zip(said, last, ensemble, strict=True):
            assert min(low, high, last[0]) * (1 - 1e-12) <= one <= max(low, high) * (1 + 1e-12)
        assert all(math.isfinite(share) and 0.0 <= share <= 1.0 for share in shares)
        assert reasoned(shares, record, SETTINGS)[0] in ("last", "ensemble")
        record = scored(
            record, last[0], (last[0],), Rates((last,), ensemble, rising(said)), came, ONE_RPS, SETTINGS
        )


@given(last=rates, ensemble=rates, came=st.floats(0, 1e4))
def test_what_is_recorded_is_pinball_loss(
    last: tuple[float, ...], ensemble: tuple[float, ...], came: float
) -> None:
    said = Rates((last,), ensemble, last)
    record = scored(no_record(1), last[0], (last[0],), said, came, ONE_RPS, SETTINGS)
    for kept, forecast in ((record.last, last), (record.ensemble, ensemble), (record.pool[0], last)):
        assert kept == pytest.approx(pinball(came, forecast))


@given(ratios=st.lists(st.floats(0, 10), min_size=1, max_size=60), most=st.integers(1, 40))
def test_ranked_ratios_are_the_newest_in_order(ratios: list[float], most: int) -> None:
    held = Ratios()
    for ratio in ratios:
        held = with_ratio(held, ratio, most)
    kept = ratios[-most:]
    assert held.came.tolist() == kept
    assert held.ranked.tolist() == sorted(kept)
    # Split conformal: the ⌈(n+1)q⌉-th smallest, or the largest.
    ranks = [min(math.ceil((len(kept) + 1) * level), len(kept)) for level in LEVELS]
    assert held.at_levels() == [np.partition(kept, rank - 1)[rank - 1] for rank in ranks]
