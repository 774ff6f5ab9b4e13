"""Every rule can be the one that a decision names, with its reason and the figures that it looked at."""

from dataclasses import replace

import pytest
from gate_cases import BUILT_IN, NOW_S, ask, case, hold, measure, plan_for, predict, propose, watch

from schemas.decision import Verdict
from services.actuator.gate import Case, Memory, Rule, pass_gate
from services.actuator.rules.trust import Blackout, BlackoutHours, BlackoutSettings

ALL_DAY = BlackoutHours.model_validate({"begins": "00:00", "ends": "00:00", "servers": ["s"]})
RULES: list[Rule] = [rule(rule.Settings()) for rule in BUILT_IN]
RESTING = [
    Blackout(BlackoutSettings(hours=(ALL_DAY,))) if rule.name == "blackout" else rule for rule in RULES
]
CASES: dict[str, tuple[Case, Verdict]] = {
    "plan": (case(ask(A=4), ask(A=5)), Verdict.ALLOW),
    "opinion": (case(ask(A=4), None), Verdict.HOLD),
    "pause": (case(ask(A=4), ask(A=5), paused=True), Verdict.REJECT),
    "blackout": (case(ask(A=4), ask(A=5)), Verdict.REJECT),
    "ownership": (
        case(ask(A=4), ask(A=5), memory=Memory(written={"A": 3}, written_at_s=NOW_S - 60)),
        Verdict.REJECT,
    ),
    "freshness": (case(ask(A=4), ask(A=3), telemetry=None), Verdict.HOLD),
    "emergency": (
        case(ask(A=4), ask(B=9), inventory=hold(ask(A=4), A=1), memory=Memory(released={"A": NOW_S + 9})),
        Verdict.ALLOW,
    ),
    "move": (case(ask(B=4), ask(A=3)), Verdict.HOLD),
    "deadband": (case(ask(A=10), plan_for(9.5, ask(A=9))), Verdict.HOLD),
    "down": (case(ask(A=4), ask(A=3)), Verdict.HOLD),
    "up": (case(ask(A=4), ask(A=16)), Verdict.CLAMP),
    "flap": (
        case(
            ask(A=4),
            ask(A=3),
            memory=Memory(recommended=watch(3), reversals=(NOW_S - 1000, NOW_S - 100)),
        ),
        Verdict.HOLD,
    ),
    "panic": (case(ask(A=4), plan_for(3.5, ask(A=4)), telemetry=measure(rate_rps=9.0)), Verdict.CLAMP),
    "supply": (
        case(ask(A=4), plan_for(3.0, ask(A=5)), inventory=hold(ask(A=4), A=2)),
        Verdict.HOLD,
    ),
    "rollback": (
        replace(
            case(ask(B=4), ask(B=4), inventory=hold(ask(A=4, B=4), A=4, B=0)),
            held=ask(A=4, B=4),
            overdue=frozenset("B"),
        ),
        Verdict.CLAMP,
    ),
    "zero": (
        case(
            ask(A=1),
            propose((), predicted=predict()),
            {"min_replicas": 0},
            memory=Memory(recommended=watch(0)),
        ),
        Verdict.HOLD,
    ),
    "limits": (case(ask(A=4), ask(A=5), {"max_replicas": 4}), Verdict.HOLD),
}


def test_no_rule_is_left_out() -> None:
    assert CASES.keys() == {"plan", *(rule.name for rule in BUILT_IN)}


@pytest.mark.parametrize("name", CASES)
def test_a_decision_names_its_rule_with_the_reason_and_the_figures(name: str) -> None:
    looked_at, verdict = CASES[name]
    gated = pass_gate(looked_at, RESTING if name == "blackout" else RULES)
    assert (gated.rule, gated.verdict) == (name, verdict), gated
    assert gated.reason
    assert gated.evidence["current_replicas"] == sum(a.replicas for a in looked_at.current)
