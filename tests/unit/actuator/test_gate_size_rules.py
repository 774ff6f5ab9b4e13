"""The rules about how many replicas, branch by branch."""

from typing import Any

from gate_cases import NOW_S, ask, predict, propose, watch
from gate_table import Row, check, table

from schemas.fleet import Objective
from schemas.plan import Inputs, PlanProposed, ServerStatus
from services.actuator.gate import (
    Memory,
    Target,
    total,
)
from services.actuator.rules.size import (
    Deadband,
    DeadbandSettings,
    Down,
    DownSettings,
    Flap,
    FlapSettings,
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


def _watched(replicas: int, for_s: float = 400.0) -> dict[str, Any]:
    return {"memory": Memory(recommended=watch(replicas, for_s))}


TIGHT = predict(0.95, ttft_s=0.9)
NOTHING_COMES = Inputs(fleet_revision="r", rate_rps=0.0)


@table(
    Row("one step down passes after a whole window", ask(A=8), ask(A=6), None, _watched(6)),
    Row("more goes by steps", ask(A=8), ask(A=2), ask(A=6), _watched(2)),
    Row("a small server goes by one", ask(A=3), ask(A=1), ask(A=2), _watched(1)),
    Row(
        "a higher recommendation within the window holds",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        {"memory": Memory(recommended=(*watch(6), (NOW_S - 10, 9)))},
        until_s=NOW_S + 290,
    ),
    Row(
        "a recommendation between the two stops it there",
        ask(A=8),
        ask(A=6),
        ask(A=7),
        {"memory": Memory(recommended=(*watch(6), (NOW_S - 10, 7)))},
    ),
    Row(
        "a long start-up time lengthens the window",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        _watched(6) | {"startup_s": 900.0},
        until_s=NOW_S + 510,
    ),
    Row("before anything was watched it holds", ask(A=8), ask(A=6), ask(A=8), until_s=NOW_S + 300),
    Row(
        "before a whole window was watched it holds",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        _watched(6, for_s=150.0),
        until_s=NOW_S + 150,
    ),
    Row(
        "after a gap in the recommendations a whole window is watched anew",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        {"memory": Memory(recommended=(*watch(6, until_s=NOW_S - 3600), (NOW_S - 30, 6)))},
        until_s=NOW_S + 270,
    ),
    Row(
        "without a margin to the objectives one more stays",
        ask(A=4),
        propose(ask(A=3), predicted=TIGHT),
        ask(A=4),
        _watched(3),
    ),
    Row(
        "a margin to the latencies is enough",
        ask(A=4),
        propose(ask(A=3), predicted=predict(0.95)),
        None,
        _watched(3),
    ),
    Row(
        "a margin to the rate is enough",
        ask(A=4),
        propose(ask(A=3), predicted=predict(0.7, ttft_s=0.9)),
        None,
        _watched(3),
    ),
    Row(
        "a server without latency objectives has its margin",
        ask(A=4),
        propose(ask(A=3), predicted=TIGHT),
        None,
        _watched(3) | {"objective": Objective(model="m")},
    ),
    Row(
        "a size that misses the objectives has no margin",
        ask(A=4),
        propose(ask(A=3), predicted=predict(0.5, objectives_met=False)),
        ask(A=4),
        _watched(3),
    ),
    Row("an unpredicted size has none", ask(A=4), propose(ask(A=3), predicted=None), ask(A=4), _watched(3)),
    Row(
        "no load needs no prediction",
        ask(A=4),
        propose(ask(A=3), predicted=None, inputs=NOTHING_COMES),
        None,
        _watched(3),
    ),
    Row(
        "what a lack of capacity takes goes by steps without a window",
        ask(A=8),
        propose(ask(A=2), status=ServerStatus.DEGRADED),
        ask(A=6),
    ),
    Row(
        "a last step for a lack of capacity passes",
        ask(A=8),
        propose(ask(A=6), status=ServerStatus.DEGRADED),
        None,
    ),
    Row("going to nothing goes by steps", ask(A=8), (), ask(A=6), _watched(0)),
    Row(
        "going to nothing for a lack of capacity goes by steps",
        ask(A=8),
        propose((), status=ServerStatus.DEGRADED),
        ask(A=6),
    ),
    Row(
        "going to nothing goes by steps whatever accelerator it names",
        ask(A=8),
        ask(B=0),
        ask(A=6),
        _watched(0),
    ),
    Row("a move is not its matter", ask(A=8), ask(B=2), None),
    Row("up is not its matter", ask(A=8), ask(A=9), None),
)
def test_down(row: Row) -> None:
    check(Down(DownSettings()), row)


def _turned(*ages_s: float) -> dict[str, Any]:
    return {"memory": Memory(reversals=tuple(NOW_S - age for age in ages_s))}


@table(
    Row("one reversal is within the budget", ask(A=4), ask(A=3), None, _turned(100)),
    Row("two freeze down", ask(A=4), ask(A=3), ask(A=4), _turned(1000, 100), until_s=NOW_S + 3500),
    Row(
        "two freeze it for an hour after the second",
        ask(A=4),
        ask(A=3),
        ask(A=4),
        _turned(6000, 3500),
        until_s=NOW_S + 100,
    ),
    Row("two that are far apart do not", ask(A=4), ask(A=3), None, _turned(4000, 100)),
    Row("after an hour down is free again", ask(A=4), ask(A=3), None, _turned(6000, 3600)),
    Row("up stays free", ask(A=4), ask(A=5), None, _turned(1000, 100)),
    Row("a move to fewer and larger replicas stays free", ask(B=8), ask(A=2), None, _turned(1000, 100)),
    Row("going to nothing is frozen", ask(A=4), (), ask(A=4), _turned(1000, 100), until_s=NOW_S + 3500),
    Row(
        "what a lack of capacity takes stays free",
        ask(A=4),
        propose(ask(A=3), status=ServerStatus.DEGRADED),
        None,
        _turned(1000, 100),
    ),
)
def test_flap(row: Row) -> None:
    check(Flap(FlapSettings()), row)


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
    Row("nothing is not allowed by the minimum alone", ask(A=3), (), ask(A=1), ZERO),
    Row("what is nothing already may stay so", (), (), None, ZERO),
)
def test_limits(row: Row) -> None:
    check(Limits(LimitsSettings()), row)


def test_a_server_goes_to_nothing_where_its_minimum_and_the_rule_allow_it() -> None:
    row = Row("", ask(A=1), (), None, ZERO)
    check(Limits(LimitsSettings(zero=True)), row)
