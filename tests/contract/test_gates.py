"""The built-in rules keep the contract of rules."""

import pytest
from gate_cases import BUILT_IN
from gate_suite import RuleContract

from services.actuator.gate import Rule
from services.actuator.settings import ActuatorSettings
from services.runtime import plugins


@pytest.mark.parametrize("name", ActuatorSettings().rules)
class TestBuiltInRules(RuleContract):
    @pytest.fixture
    def rule(self, name: str) -> Rule:
        built: Rule = plugins.build("stoker.gates", name, None)
        return built


def test_the_built_in_rules_are_those_of_the_default_order() -> None:
    assert tuple(rule.name for rule in BUILT_IN) == ActuatorSettings().rules
