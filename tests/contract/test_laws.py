"""The built-in iteration laws keep the contract of laws."""

from importlib.metadata import entry_points

import numpy as np
import pytest
from law_suite import LawContract

from services.perfmodel.law import Array, IterationLaw, Workload
from services.perfmodel.laws.seven_parameter import SevenParameterLaw
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.laws.three_parameter_early import EarlyThreeParameterLaw


class TestThreeParameter(LawContract):
    @pytest.fixture
    def law(self) -> IterationLaw:
        return ThreeParameterLaw()

    @pytest.fixture
    def parameters(self) -> Array:
        return np.array([8e-3, 3e-5, 4e-7])


class TestEarlyThreeParameter(LawContract):
    @pytest.fixture
    def law(self) -> IterationLaw:
        return EarlyThreeParameterLaw()

    @pytest.fixture
    def parameters(self) -> Array:
        return np.array([8e-3, 3e-5, 4e-7])

    def test_an_iteration_lasts_as_its_tokens_cost(self, law: IterationLaw, parameters: Array) -> None:
        """It does not: the law counts the work of one request more, which this keeps visible."""
        workload, batch = Workload(200.0, 2000.0), np.array([1.0, 8.0, 64.0])
        modern = ThreeParameterLaw().iteration_time(parameters, batch + 1.0, workload, 1e9)
        # Half a token of context per decoded one counts here and not there.
        np.testing.assert_allclose(law.iteration_time(parameters, batch, workload), modern, rtol=1e-3)


class TestSevenParameter(LawContract):
    @pytest.fixture
    def law(self) -> IterationLaw:
        return SevenParameterLaw()

    @pytest.fixture
    def parameters(self) -> Array:
        return np.array([7e-3, 2e-5, 1e-4, 3e-8, 2e-9, 0.01, 0.8])


def test_every_built_in_law_is_tested_here() -> None:
    built_in = {entry.name for entry in entry_points(group="stoker.laws")}
    assert built_in == {
        ThreeParameterLaw().name,
        EarlyThreeParameterLaw().name,
        SevenParameterLaw().name,
    }
