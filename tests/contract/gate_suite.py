"""What every rule of the gate must keep. Subclass `RuleContract` and override its `rule` fixture."""

import pytest
from gate_cases import cases
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel

from schemas.plan import Allocation
from services.actuator.gate import Case, Rule, same

_MANY = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    # A rule has no state of its own, so one may serve every example.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class RuleContract:
    """Behaviour that the gate relies on whichever rules are configured."""

    @pytest.fixture
    def rule(self) -> Rule:
        """The rule to test, with its default settings."""
        raise NotImplementedError("override this fixture")

    def test_it_has_a_name_and_settings_that_refuse_what_they_do_not_know(self, rule: Rule) -> None:
        assert rule.name
        settings_class: type[BaseModel] = type(rule).Settings  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="no_such_setting"):
            settings_class.model_validate({"no_such_setting": 1})

    @_MANY
    @given(case=cases())
    def test_the_same_case_has_the_same_ruling(self, rule: Rule, case: Case) -> None:
        target = case.plan.allocations or case.current
        assert rule.judge(case, target) == rule.judge(case, target)

    @_MANY
    @given(case=cases())
    def test_a_ruling_says_why_and_asks_for_what_the_contract_can_carry(self, rule: Rule, case: Case) -> None:
        ruling = rule.judge(case, case.plan.allocations or case.current)
        if ruling is None:
            return
        assert ruling.reason
        assert ruling.until_s is None or ruling.until_s >= case.now_s
        for allocation in ruling.target:
            assert Allocation.model_validate(allocation.model_dump()) == allocation

    @_MANY
    @given(case=cases())
    def test_a_ruling_brings_in_no_accelerator_that_is_neither_held_nor_planned(
        self, rule: Rule, case: Case
    ) -> None:
        ruling = rule.judge(case, case.plan.allocations or case.current)
        known = {a.accelerator for a in (*case.current, *(case.plan.allocations or ()))}
        assert ruling is None or {a.accelerator for a in ruling.target} <= known

    @_MANY
    @given(case=cases())
    def test_advice_leaves_what_is_held(self, rule: Rule, case: Case) -> None:
        ruling = rule.judge(case, case.plan.allocations or case.current)
        assert ruling is None or not ruling.advice_only or same(ruling.target, case.current)
