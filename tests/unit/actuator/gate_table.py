"""Tables of cases for one rule, each a sentence."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from gate_cases import case

from schemas.plan import PlanProposed
from services.actuator.gate import Case, Rule, Target, same


@dataclass(frozen=True)
class Row:
    """A case in words: what is held, what is planned, what the rule makes of it (None: no objection)."""

    sentence: str
    current: Target
    plan: PlanProposed | Target | None
    expected: Target | None
    changes: dict[str, Any] = field(default_factory=dict)
    advice_only: bool = False
    until_s: float | None = None

    @property
    def case(self) -> Case:
        return case(self.current, self.plan, **self.changes)


def table(*rows: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.sentence.replace(" ", "_"))


def check(rule: Rule, row: Row) -> None:
    target = row.current if row.case.plan.allocations is None else row.case.plan.allocations
    ruling = rule.judge(row.case, target)
    if row.expected is None:
        assert ruling is None or same(ruling.target, target)
        return
    assert ruling is not None
    assert same(ruling.target, row.expected), ruling
    assert ruling.advice_only == row.advice_only
    assert ruling.until_s == row.until_s
    assert ruling.reason
