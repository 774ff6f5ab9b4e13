"""The built-in forecasters keep the contract of forecasters."""

from typing import Any

import pytest
from forecaster_suite import ForecasterContract

from services.predictor.forecaster import Forecaster
from services.predictor.forecasters.last import LastForecaster, LastSettings
from services.predictor.forecasters.ses import SesForecaster, SesSettings


class TestLast(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster[Any]:
        return LastForecaster(LastSettings())


class TestSes(ForecasterContract):
    @pytest.fixture
    def forecaster(self) -> Forecaster[Any]:
        return SesForecaster(SesSettings())
