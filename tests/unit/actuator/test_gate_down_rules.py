"""The rules about fewer replicas, branch by branch."""

from typing import Any

from gate_cases import NOW_S, ask, predict, propose, watch
from gate_table import Row, check, table

from schemas.fleet import Objective
from schemas.plan import Inputs, ServerStatus
from services.actuator.gate import Memory
from services.actuator.rules.down import Down, DownSettings, Flap, FlapSettings


def _watched(replicas: int, for_s: float = 400.0) -> dict[str, Any]:
    return {"memory": Memory(recommended=watch(replicas, for_s))}


def _fell(before: int, after: int, for_s: float, before_s: float = 400.0) -> dict[str, Any]:
    """A recommendation that fell some seconds ago, watched long before."""
    fell_at_s = NOW_S - for_s
    return {"memory": Memory(recommended=(*watch(before, before_s, fell_at_s), *watch(after, for_s)))}


TIGHT = predict(0.95, ttft_s=0.9)
NOTHING_COMES = Inputs(fleet_revision="r", rate_rps=0.0)


@table(
    Row("one step down passes after a whole window", ask(A=8), ask(A=6), None, _watched(6)),
    Row("more goes by steps", ask(A=8), ask(A=2), ask(A=4), _watched(2)),
    Row("a small server goes by one", ask(A=3), ask(A=1), ask(A=2), _watched(1)),
    Row("a steep fall passes once it was seen twice", ask(A=8), ask(A=5), None, _fell(8, 5, for_s=30)),
    Row(
        "a steep fall that was seen once holds",
        ask(A=8),
        ask(A=5),
        ask(A=8),
        {"memory": Memory(recommended=watch(8))},
        until_s=NOW_S + 150,
    ),
    Row("a steep fall goes by steps", ask(A=8), ask(A=1), ask(A=4), _fell(8, 1, for_s=30)),
    Row(
        "a steep fall stops at what was recommended meanwhile",
        ask(A=8),
        ask(A=4),
        ask(A=5),
        _fell(8, 5, for_s=30),
    ),
    Row(
        "a fall of less than the share waits for the window",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        _fell(8, 6, for_s=120),
        until_s=NOW_S + 30,
    ),
    Row(
        "a steep fall waits longer where a start takes long",
        ask(A=8),
        ask(A=5),
        ask(A=8),
        _fell(8, 5, for_s=180) | {"startup_s": 900.0},
        until_s=NOW_S + 690,
    ),
    Row(
        "then it passes before the whole of it",
        ask(A=8),
        ask(A=5),
        None,
        _fell(8, 5, for_s=240, before_s=600) | {"startup_s": 900.0},
    ),
    Row(
        "a steep fall without a margin leaves one more",
        ask(A=8),
        propose(ask(A=4), predicted=TIGHT),
        ask(A=5),
        _fell(8, 4, for_s=60),
    ),
    Row(
        "a higher recommendation within the window holds",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        {"memory": Memory(recommended=(*watch(6), (NOW_S - 10, 9)))},
        until_s=NOW_S + 170,
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
        until_s=NOW_S + 210,
    ),
    Row("before anything was watched it holds", ask(A=8), ask(A=6), ask(A=8), until_s=NOW_S + 120),
    Row(
        "before a whole window was watched it holds",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        _watched(6, for_s=90.0),
        until_s=NOW_S + 30,
    ),
    Row(
        "after a gap in the recommendations a whole window is watched anew",
        ask(A=8),
        ask(A=6),
        ask(A=8),
        {"memory": Memory(recommended=(*watch(6, until_s=NOW_S - 3600), (NOW_S - 30, 6)))},
        until_s=NOW_S + 90,
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
        ask(A=4),
    ),
    Row(
        "a last step for a lack of capacity passes",
        ask(A=8),
        propose(ask(A=6), status=ServerStatus.DEGRADED),
        None,
    ),
    Row("going to nothing goes by steps", ask(A=8), (), ask(A=4), _watched(0)),
    Row(
        "going to nothing for a lack of capacity goes by steps",
        ask(A=8),
        propose((), status=ServerStatus.DEGRADED),
        ask(A=4),
    ),
    Row(
        "going to nothing goes by steps whatever accelerator it names",
        ask(A=8),
        ask(B=0),
        ask(A=4),
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
    Row("a steep fall stays free", ask(A=4), ask(A=2), None, _turned(1000, 100)),
    Row("a steep fall of a small server stays free", ask(A=3), ask(A=2), None, _turned(1000, 100)),
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
    Row("going to nothing is as steep as can be", ask(A=4), (), None, _turned(1000, 100)),
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
