"""The built-in forecasters keep the contract of forecasters, and agree with statsmodels where it has them."""

import numpy as np
import pytest
from forecaster_suite import STEPS, ForecasterContract, history_of

from services.predictor.design import training
from services.predictor.forecaster import Forecaster
from services.predictor.forecasters.ar_fourier import ArFourierForecaster, ArFourierSettings
from services.predictor.forecasters.damped_holt import (
    DampedHoltForecaster,
    DampedHoltSettings,
    level_and_trend,
)
from services.predictor.forecasters.last import LastForecaster, LastSettings
from services.predictor.forecasters.quantile_regression import (
    QuantileRegressionForecaster,
    QuantileRegressionSettings,
    minimized,
)
from services.predictor.forecasters.seasonal_last import SeasonalLastForecaster, SeasonalLastSettings
from services.predictor.forecasters.ses import SesForecaster, SesSettings
from services.predictor.forecasters.theta import ThetaForecaster, ThetaSettings
from services.predictor.forecasters.unobserved_components import (
    UnobservedComponentsForecaster,
    UnobservedComponentsSettings,
)


class TestLast(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return LastForecaster(LastSettings())


class TestSeasonalLast(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return SeasonalLastForecaster(SeasonalLastSettings())


class TestSes(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return SesForecaster(SesSettings())


class TestDampedHolt(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return DampedHoltForecaster(DampedHoltSettings())


class TestTheta(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return ThetaForecaster(ThetaSettings())


class TestArFourier(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return ArFourierForecaster(ArFourierSettings())


class TestUnobservedComponents(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return UnobservedComponentsForecaster(UnobservedComponentsSettings())


class TestQuantileRegression(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster:
        return QuantileRegressionForecaster(QuantileRegressionSettings())


def test_quantile_regression_reaches_the_loss_of_statsmodels() -> None:
    from statsmodels.regression.quantile_regression import QuantReg

    rates = np.random.default_rng(4).gamma(3.0, 10.0, 700)
    rows, targets = training(history_of(rates), STEPS, 1)
    for level in (0.5, 0.9, 0.99):

        def loss(found: np.ndarray, level: float = level) -> float:
            short = targets - rows @ found
            return float(np.where(short >= 0, level * short, (level - 1) * short).mean())

        oracle = loss(np.asarray(QuantReg(targets, rows).fit(q=level, max_iter=5000).params))
        # Residuals below 0.01 are softened; their share of the loss is of that order, here at most a tenth of it.
        assert loss(minimized(rows, targets, level, 1e-6, 200)) <= oracle + 0.001


def test_the_recursion_of_damped_holt_is_that_of_statsmodels() -> None:
    from statsmodels.tsa.holtwinters import Holt

    logs = np.cumsum(np.random.default_rng(5).normal(0.0, 0.1, 100)) + 3.0
    model = Holt(
        logs, damped_trend=True, initialization_method="known", initial_level=logs[0], initial_trend=0.0
    )
    oracle = model.fit(smoothing_level=0.4, smoothing_trend=0.2, damping_trend=0.9, optimized=False)
    # statsmodels updates with the first value too: from its own level nothing is moved but by its zero trend.
    level, trend = level_and_trend(logs.tolist(), 0.4, 0.2, 0.9)
    expected = oracle.forecast(2)
    assert level + 0.9 * trend == pytest.approx(expected[0], abs=1e-9)
    assert level + (0.9 + 0.81) * trend == pytest.approx(expected[1], abs=1e-9)
