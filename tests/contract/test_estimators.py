"""The built-in estimators keep the contract of estimators."""

from importlib.metadata import entry_points
from typing import Any

import pytest
from estimator_suite import EstimatorContract, SnapshotContract

from services.tuner.estimator import Estimator
from services.tuner.estimators.ekf import Ekf, EkfSettings
from services.tuner.estimators.moving_horizon import MovingHorizon, MovingHorizonSettings


class TestMovingHorizon(EstimatorContract):
    @pytest.fixture
    def estimator(self) -> Estimator[Any]:
        return MovingHorizon(MovingHorizonSettings())


class TestEkf(EstimatorContract):
    @pytest.fixture
    def estimator(self) -> Estimator[Any]:
        return Ekf(EkfSettings())


class TestPublishedFilter(SnapshotContract):
    """What the published filter learns is in its own hands; that it resumes exactly is in ours."""

    @pytest.fixture
    def estimator(self) -> Estimator[Any]:
        return Ekf(EkfSettings(compat=True))


def test_every_built_in_estimator_is_tested_here() -> None:
    built_in = {entry.name for entry in entry_points(group="stoker.estimators")}
    assert built_in == {MovingHorizon.name, Ekf.name}
