"""The built-in iteration laws keep the contract of laws."""

from importlib.metadata import entry_points

import numpy as np
import pytest
from law_suite import LawContract

from services.perfmodel.law import Array, IterationLaw
from services.perfmodel.laws.seven_parameter import SevenParameterLaw
from services.perfmodel.laws.three_parameter import ThreeParameterLaw


class TestThreeParameter(LawContract):
    @pytest.fixture
    def law(self) -> IterationLaw:
        return ThreeParameterLaw()

    @pytest.fixture
    def parameters(self) -> Array:
        return np.array([8e-3, 3e-5, 4e-7])


class TestSevenParameter(LawContract):
    @pytest.fixture
    def law(self) -> IterationLaw:
        return SevenParameterLaw()

    @pytest.fixture
    def parameters(self) -> Array:
        return np.array([7e-3, 2e-5, 1e-4, 3e-8, 2e-9, 0.01, 0.8])


def test_every_built_in_law_is_tested_here() -> None:
    built_in = {entry.name for entry in entry_points(group="stoker.laws")}
    assert built_in == {ThreeParameterLaw().name, SevenParameterLaw().name}
