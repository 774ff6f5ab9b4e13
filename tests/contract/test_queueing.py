"""The built-in queueing models keep the contract of queueing models."""

from importlib.metadata import entry_points
from typing import ClassVar

import pytest
from queueing_suite import QueueingContract

from services.perfmodel.queueing import QueueingModel
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.perfmodel.queueing_models.fluid import FluidModel
from services.perfmodel.queueing_models.interference import InterferenceModel
from services.perfmodel.queueing_models.simulation import SimulationModel, SimulationSettings

TESTED = (
    FluidModel(),
    BirthDeathModel(),
    BirthDeathCompatModel(),
    CorrectedModel(),
    InterferenceModel(),
    # Few requests: what is promised holds for any run.
    SimulationModel(SimulationSettings(requests=300)),
)


class TestFluid(QueueingContract):
    @pytest.fixture
    def model(self) -> QueueingModel:
        return TESTED[0]


class TestBirthDeath(QueueingContract):
    @pytest.fixture
    def model(self) -> QueueingModel:
        return TESTED[1]


class TestBirthDeathCompat(QueueingContract):
    complete: ClassVar[bool] = False

    @pytest.fixture
    def model(self) -> QueueingModel:
        return TESTED[2]


class TestCorrected(QueueingContract):
    @pytest.fixture
    def model(self) -> QueueingModel:
        return TESTED[3]


class TestInterference(QueueingContract):
    @pytest.fixture
    def model(self) -> QueueingModel:
        return TESTED[4]


class TestSimulation(QueueingContract):
    # Every rate has the same requests, but they meet in other batches; token gaps are counted in bins of 1 %.
    noise: ClassVar[float] = 0.02
    widest: ClassVar[int] = 4

    @pytest.fixture
    def model(self) -> QueueingModel:
        return TESTED[5]


def test_every_built_in_model_is_tested_here() -> None:
    assert {model.name for model in TESTED} == {entry.name for entry in entry_points(group="stoker.queueing")}
