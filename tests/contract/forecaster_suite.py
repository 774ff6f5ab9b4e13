"""What every forecaster must keep. Subclass `ForecasterContract` and override its `forecaster` fixture."""

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.predictor.forecaster import Forecaster

WINDOW_S = 30.0
HORIZON_S = 150.0


def followed(forecaster: Forecaster[Any], values: list[float], state: Any = None) -> Any:
    """The state after windows of equal width, from the start or from a state."""
    state = forecaster.start() if state is None else state
    for value in values:
        state = forecaster.update(state, WINDOW_S, value)
    return state


class ForecasterContract:
    """A forecaster says nothing about nothing, then always something finite and not negative."""

    @pytest.fixture
    def forecaster(self) -> Forecaster[Any]:
        raise NotImplementedError

    def test_nothing_is_forecast_before_anything_is_observed(self, forecaster: Forecaster[Any]) -> None:
        assert forecaster.forecast(forecaster.start(), HORIZON_S) is None

    def test_one_sample_is_enough_for_a_forecast(self, forecaster: Forecaster[Any]) -> None:
        assert forecaster.forecast(followed(forecaster, [3.0]), HORIZON_S) == pytest.approx(3.0)

    @pytest.mark.parametrize("level", [0.0, 2.5, 1e6])
    def test_a_constant_series_is_forecast_to_go_on(self, forecaster: Forecaster[Any], level: float) -> None:
        state = followed(forecaster, [level] * 200)
        assert forecaster.forecast(state, HORIZON_S) == pytest.approx(level, rel=1e-6)

    def test_a_step_is_reached_in_the_end(self, forecaster: Forecaster[Any]) -> None:
        state = followed(forecaster, [1.0] * 100 + [10.0] * 100)
        assert forecaster.forecast(state, HORIZON_S) == pytest.approx(10.0, rel=0.01)

    def test_a_state_is_not_changed_by_an_update(self, forecaster: Forecaster[Any]) -> None:
        state = followed(forecaster, [1.0, 2.0])
        before = json.dumps(forecaster.dump(state))
        forecaster.update(state, WINDOW_S, 9.0)
        assert json.dumps(forecaster.dump(state)) == before

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        windows=st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(0, 1e7)), min_size=1, max_size=30),
        horizon_s=st.floats(1e-3, 1e9),
    )
    def test_forecasts_are_finite_and_not_negative_and_a_snapshot_continues_bit_by_bit(
        self, forecaster: Forecaster[Any], windows: list[tuple[float, float]], horizon_s: float
    ) -> None:
        state = restored = forecaster.start()
        for width_s, value in windows:
            state = forecaster.update(state, width_s, value)
            restored = forecaster.load(json.loads(json.dumps(forecaster.dump(restored))))
            restored = forecaster.update(restored, width_s, value)
            point = forecaster.forecast(state, horizon_s)
            assert point is not None and math.isfinite(point) and point >= 0
            assert forecaster.forecast(restored, horizon_s) == point
        assert forecaster.dump(restored) == forecaster.dump(state)

    @pytest.mark.parametrize("raw", ["x", {"a": 1}, [[1], [2], [3], [4]]])
    def test_an_unreadable_snapshot_is_an_error(self, forecaster: Forecaster[Any], raw: Any) -> None:
        with pytest.raises((ValueError, KeyError, TypeError)):
            forecaster.load(raw)
