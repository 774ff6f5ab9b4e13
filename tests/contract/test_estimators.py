"""The built-in estimators keep the contract of estimators."""

from typing import Any

import pytest
from estimator_suite import EstimatorContract

from services.tuner.estimator import Estimator
from services.tuner.estimators.moving_horizon import MovingHorizon, MovingHorizonSettings


class TestMovingHorizon(EstimatorContract):
    @pytest.fixture
    def estimator(self) -> Estimator[Any]:
        return MovingHorizon(MovingHorizonSettings())
