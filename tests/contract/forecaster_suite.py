"""What every forecaster must keep. Subclass `ForecasterContract` and override its `forecaster` fixture."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.predictor.forecaster import Forecaster, Said
from services.predictor.history import History, extended
from services.predictor.quantiles import LEVELS

WINDOW_S = 600.0
STEPS = 3
DAY = 144
MOST = 2016


def history_of(rates: list[float] | np.ndarray, start_s: float = 0.0) -> History:
    """The history of windows of equal width; NaN is a window that never came."""
    history = History()
    for place, rate in enumerate(rates):
        if not math.isnan(rate):
            begin_s = start_s + place * WINDOW_S
            history = extended(history, begin_s, begin_s + WINDOW_S, float(rate), MOST)
    return history


def said(forecaster: Forecaster, history: History, steps: int = STEPS) -> Said | None:
    """What a forecaster that is fitted to a history says of its end; nothing while it cannot be fitted."""
    fit = forecaster.fit(history, steps)
    return None if fit is None else forecaster.forecast(fit, history, steps)


def every_rate(one: Said) -> list[float]:
    return [one.point_rps, *one.quantiles_rps]


class ForecasterContract:
    """A forecaster says nothing while it has too little, then always something finite and not negative."""

    @pytest.fixture
    def forecaster(self) -> Forecaster:
        raise NotImplementedError

    @pytest.mark.parametrize("level", [0.0, 2.5, 1e6])
    def test_a_constant_series_is_forecast_to_go_on(self, forecaster: Forecaster, level: float) -> None:
        one = said(forecaster, history_of([level] * (2 * DAY)))
        assert one is not None
        assert every_rate(one) == pytest.approx([level] * len(every_rate(one)), rel=1e-3, abs=1e-6)

    def test_a_step_is_reached_in_the_end(self, forecaster: Forecaster) -> None:
        one = said(forecaster, history_of([1.0] * DAY + [10.0] * 6 * DAY))
        assert one is not None
        assert one.point_rps == pytest.approx(10.0, rel=0.1)

    def test_an_outage_is_followed_by_no_explosion(self, forecaster: Forecaster) -> None:
        wave = 50.0 + 30.0 * np.sin(2 * np.pi * np.arange(4 * DAY) / DAY)
        wave[300:312] = 0.0
        for end in range(299, 330, 6):
            one = said(forecaster, history_of(wave[:end]))
            assert one is not None
            # Twice the highest that ever came: a doubling within half an hour was never seen.
            assert max(every_rate(one)) <= 160.0

    def test_a_fit_does_not_change_the_history(self, forecaster: Forecaster) -> None:
        history = history_of(np.linspace(1.0, 5.0, 2 * DAY))
        before = history.rates.copy(), history.logs.copy(), history.usable.copy()
        said(forecaster, history)
        for kept, now in zip(before, (history.rates, history.logs, history.usable), strict=True):
            assert np.array_equal(kept, now)

    def test_a_fit_that_went_through_json_says_the_same_to_the_last_bit(self, forecaster: Forecaster) -> None:
        history = history_of(np.random.default_rng(1).gamma(4.0, 5.0, 2 * DAY))
        fit = forecaster.fit(history, STEPS)
        assert fit is not None
        restored = json.loads(json.dumps(fit))
        assert forecaster.forecast(restored, history, STEPS) == forecaster.forecast(fit, history, STEPS)

    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        head=st.lists(st.just(math.nan) | st.floats(0, 1e7), min_size=1, max_size=12),
        tile=st.integers(1, 40),
        start_s=st.sampled_from([0.0, 1.7e9]),
        steps=st.sampled_from([1, 6, 200]),
    )
    def test_forecasts_are_finite_not_negative_and_rise(
        self, forecaster: Forecaster, head: list[float], tile: int, start_s: float, steps: int
    ) -> None:
        history = history_of([1.0, *head * tile], start_s)
        one = said(forecaster, history, steps)
        if one is None:
            return
        assert all(math.isfinite(rate) and rate >= 0 for rate in every_rate(one))
        assert list(one.quantiles_rps) == sorted(one.quantiles_rps)
        assert len(one.quantiles_rps) in (0, len(LEVELS))
