"""The rules about how many replicas, branch by branch."""

from typing import Any

from gate_cases import NOW_S, ask, propose
from gate_table import Row, check, table

from schemas.plan import PlanProposed, ServerStatus
from services.actuator.gate import (
    Memory,
    Target,
    total,
)
from services.actuator.rules.size import (
    Deadband,
    DeadbandSettings,
    Limits,
    LimitsSettings,
    Up,
    UpSettings,
)


def _needs(needed: float, target: Target, **changes: Any) -> PlanProposed:
    return propose(target, **{"needed_share": needed / max(1, total(target))} | changes)


@table(
    Row("slightly more than there is holds", ask(A=10), _needs(10.1, ask(A=11)), ask(A=10)),
    Row("more than that passes", ask(A=10), _needs(10.3, ask(A=11)), None),
    Row("slightly less than there is holds", ask(A=10), _needs(9.1, ask(A=9)), ask(A=10)),
    Row("less than that passes", ask(A=10), _needs(8.9, ask(A=9)), None),
    Row("what is planned already is no matter", ask(A=10), _needs(9.5, ask(A=10)), None),
    Row("a plan that does not say what is needed passes", ask(A=10), ask(A=9), None),
    Row("another accelerator passes", ask(A=10), _needs(10.0, ask(B=9)), None),
    Row("what starts from nothing passes", (), _needs(0.01, ask(A=1)), None),
    Row(
        "what a lack of capacity takes passes",
        ask(A=4),
        _needs(4.0, ask(A=2), status=ServerStatus.DEGRADED),
        None,
    ),
)
def test_deadband(row: Row) -> None:
    check(Deadband(DeadbandSettings()), row)


def _agreed(replicas: int, age_s: float = 30.0) -> dict[str, Any]:
    return {"memory": Memory(recommended=((NOW_S - age_s, replicas),))}


@table(
    Row("a step within the share passes at once", ask(A=4), ask(A=8), None),
    Row("one replica may always double", ask(A=1), ask(A=2), None),
    Row("a leap waits for a second recommendation", ask(A=2), ask(A=6), ask(A=4)),
    Row("a leap that was recommended twice passes", ask(A=2), ask(A=6), None, _agreed(6)),
    Row("the smaller of two leaps counts", ask(A=2), ask(A=6), ask(A=5), _agreed(5)),
    Row("an old recommendation does not agree", ask(A=2), ask(A=6), ask(A=4), _agreed(6, age_s=120.0)),
    Row("a lower recommendation does not agree", ask(A=2), ask(A=6), ask(A=4), _agreed(3)),
    Row("a small server grows by four in one cycle", ask(A=1), ask(A=9), ask(A=5), _agreed(9)),
    Row("a large server grows by eight in one cycle", ask(A=20), ask(A=40), ask(A=28), _agreed(40)),
    Row("down is not its matter", ask(A=4), ask(A=1), None),
    Row("waking from nothing passes", (), ask(A=9), None),
    Row("a move brings all that it needs", ask(A=1), ask(B=12), None),
)
def test_up(row: Row) -> None:
    check(Up(UpSettings()), row)


LIMITED = {"server": {"min_replicas": 2, "max_replicas": 4}}
ZERO = {"server": {"min_replicas": 0}}


@table(
    Row("what is within the limits passes", ask(A=3), ask(A=4), None, LIMITED),
    Row("the minimum is kept", ask(A=3), ask(A=1), ask(A=2), LIMITED),
    Row("the minimum is kept of what is held when nothing is asked for", ask(A=3), (), ask(A=2), LIMITED),
    Row("the minimum is kept of what is planned when nothing is held", (), ask(B=0), ask(B=2), LIMITED),
    Row("nothing held and nothing planned names no accelerator", (), (), None, LIMITED),
    Row("the maximum is kept", ask(A=3), ask(A=5), ask(A=4), LIMITED),
    Row("a server without a maximum has none", ask(A=3), ask(A=500), None),
    Row("nothing is within a minimum of nothing", ask(A=3), (), None, ZERO),
    Row("what is nothing already may stay so", (), (), None, ZERO),
)
def test_limits(row: Row) -> None:
    check(Limits(LimitsSettings()), row)
