"""The rules about demand as it is measured and about supply that is not there, branch by branch."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from gate_cases import NOW_S, ask, built_in_rules, case, hold, measure, plan_for, propose
from gate_table import Row, check, table
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.base import Quality
from schemas.decision import Verdict
from schemas.plan import Inputs
from schemas.telemetry import InventoryObserved, VariantInventory
from services.actuator.gate import Memory, pass_gate, remember, total
from services.actuator.rules.demand import Panic, PanicSettings, Zero, ZeroSettings
from services.actuator.rules.supply import Emergency, EmergencySettings, Supply, SupplySettings
from services.actuator.rules.trust import Blackout, BlackoutHours, BlackoutSettings, Day


def _arrives(rate_rps: float, **changes: Any) -> dict[str, Any]:
    return {"telemetry": measure(rate_rps=rate_rps, **changes)}


FOUR = plan_for(3.5, ask(A=4))
PANICKED = {"memory": Memory(panicked_at_s=NOW_S - 90)}


@table(
    Row("demand under twice the plan is no panic", ask(A=4), FOUR, None, _arrives(6.9)),
    Row("twice the plan is answered at once", ask(A=4), FOUR, ask(A=7), _arrives(7.0)),
    Row("more than the largest step is answered by that", ask(A=4), FOUR, ask(A=12), _arrives(100.0)),
    Row("from nothing it is answered too", (), FOUR, ask(A=8), _arrives(8.0)),
    Row("a plan for less does not lower what is there", ask(A=9), FOUR, ask(A=9), _arrives(7.0)),
    Row("an old window is no word on now", ask(A=4), FOUR, None, _arrives(70.0, window_end_s=NOW_S - 61)),
    Row("a stale one neither", ask(A=4), FOUR, None, _arrives(70.0, quality=Quality.STALE)),
    Row("part of the replicas is enough", ask(A=4), FOUR, ask(A=7), _arrives(7, quality=Quality.PARTIAL)),
    Row("without a measured rate there is none", ask(A=4), FOUR, None),
    Row(
        "a plan for no load has no twice",
        ask(A=1),
        propose(ask(A=1), inputs=Inputs(fleet_revision="r", rate_rps=0.0)),
        None,
        _arrives(9.0),
    ),
    Row("after a panic nothing goes", ask(A=4), ask(A=3), ask(A=4), PANICKED, until_s=NOW_S + 30),
    Row("nor does a move to less", ask(A=4), ask(B=3), ask(A=4), PANICKED, until_s=NOW_S + 30),
    Row("but more comes", ask(A=4), ask(A=5), None, PANICKED),
    Row(
        "where a start takes long it is longer",
        ask(A=4),
        ask(A=3),
        ask(A=4),
        PANICKED | {"startup_s": 900.0},
        until_s=NOW_S + 810,
    ),
    Row("then it is over", ask(A=4), ask(A=3), None, PANICKED | {"startup_s": 10.0}),
)
def test_panic(row: Row) -> None:
    check(Panic(PanicSettings()), row)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.floats(0.1, 40), st.lists(st.floats(0, 200), min_size=2, max_size=2))
def test_more_measured_demand_never_yields_fewer_replicas(needed: float, rates: list[float]) -> None:
    plan = plan_for(needed, ask(A=int(needed) + 1))
    fewer, more = (
        pass_gate(case(ask(A=4), plan, telemetry=measure(rate_rps=rate)), built_in_rules())
        for rate in sorted(rates)
    )
    assert total(fewer.target) <= total(more.target)


def test_a_panic_is_remembered_and_named_in_the_decision() -> None:
    looked_at = case(ask(A=4), FOUR, telemetry=measure(rate_rps=10.5))
    gated = pass_gate(looked_at, built_in_rules())
    assert (gated.rule, gated.verdict, gated.target) == ("panic", Verdict.CLAMP, ask(A=11))
    assert gated.evidence["measured_rate_rps"] == 10.5
    memory = remember(looked_at, gated, 7200)
    assert memory.panicked_at_s == NOW_S
    later = replace(looked_at, memory=memory, now_s=NOW_S + 100, telemetry=measure(NOW_S + 90, rate_rps=1.0))
    assert remember(later, pass_gate(later, built_in_rules()), 7200).panicked_at_s == NOW_S


def _lonely(idle_for_s: float | None = None, least: int = 0, **changes: Any) -> dict[str, Any]:
    since_s = None if idle_for_s is None else NOW_S - idle_for_s
    return {"server": {"min_replicas": least}, "memory": Memory(idle_since_s=since_s), **changes}


VARIANT_OF_OLD = InventoryObserved(
    server="s",
    model="m",
    observed_at_s=NOW_S,
    quality=Quality.OK,
    variants=(VariantInventory(accelerator="A", desired=0, ready=0, pending=0, max_batch=64),),
)


@table(
    Row("after the idle time the last one goes", ask(A=1), (), None, _lonely(300)),
    Row("before that it stays", ask(A=1), (), ask(A=1), _lonely(299), until_s=NOW_S + 1),
    Row("where nobody knows it to be idle it stays", ask(A=1), (), ask(A=1), _lonely()),
    Row("where the minimum forbids it it stays", ask(A=1), (), ask(A=1), _lonely(900, least=1)),
    Row(
        "while a replica loads it stays",
        ask(A=1),
        (),
        ask(A=1),
        _lonely(900, inventory=hold(ask(A=1), A=0)),
    ),
    Row("all but the last are not its matter", ask(A=3), ask(A=1), None, _lonely(900)),
    Row("nothing stays nothing while nothing arrives", (), (), None, _lonely(900) | _arrives(0.0)),
    Row("an arrival wakes what is planned", (), ask(B=0), ask(B=1), _lonely(900) | _arrives(0.1)),
    Row(
        "or else what served it last",
        (),
        (),
        ask(A=1),
        _lonely(900, inventory=VARIANT_OF_OLD) | _arrives(0.1),
    ),
    Row(
        "also without an opinion",
        (),
        None,
        ask(A=1),
        _lonely(900, inventory=VARIANT_OF_OLD) | _arrives(0.1),
    ),
    Row("where nothing names an accelerator it cannot", (), (), None, _lonely(900) | _arrives(0.1)),
)
def test_zero(row: Row) -> None:
    check(Zero(ZeroSettings(allowed=True)), row)


def test_the_last_replica_stays_unless_zero_is_allowed() -> None:
    check(Zero(ZeroSettings()), Row("", ask(A=3), (), ask(A=1), _lonely(9999)))


@pytest.mark.parametrize(
    ("window", "since_s"),
    [
        (measure(rate_rps=0.0), NOW_S - 30),
        (measure(rate_rps=0.1), None),
        (measure(rate_rps=0.0, quality=Quality.PARTIAL), None),
        (measure(), None),
        (measure(rate_rps=0.0).model_copy(update={"running": 1.0}), None),
        (None, None),
    ],
    ids=["nothing arrives", "something does", "in part unseen", "not measured", "one runs on", "no window"],
)
def test_idleness_begins_with_a_window_without_any_request(window: Any, since_s: float | None) -> None:
    looked_at = case(ask(A=1), ask(A=1), telemetry=window)
    assert remember(looked_at, pass_gate(looked_at, []), 7200).idle_since_s == since_s


def test_idleness_goes_on_from_where_it_began() -> None:
    began = Memory(idle_since_s=NOW_S - 200)
    looked_at = case(ask(A=1), ask(A=1), telemetry=measure(rate_rps=0.0), memory=began)
    assert remember(looked_at, pass_gate(looked_at, []), 7200).idle_since_s == NOW_S - 200


def test_idleness_is_not_counted_over_a_time_that_nobody_measured() -> None:
    began = Memory(idle_since_s=NOW_S - 200)
    unseen = case(ask(A=1), ask(A=1), telemetry=measure(NOW_S - 150, rate_rps=0.0), memory=began)
    memory = remember(unseen, pass_gate(unseen, []), 7200)
    assert memory.idle_since_s is None
    # Requests may have come meanwhile, so it begins anew with the next window.
    seen = replace(unseen, memory=memory, telemetry=measure(rate_rps=0.0))
    assert remember(seen, pass_gate(seen, []), 7200).idle_since_s == NOW_S - 30


RELEASED = {"memory": Memory(released={"A": NOW_S + 200})}


@table(
    Row(
        "while what is starting covers the demand more waits",
        ask(A=4),
        plan_for(3.8, ask(A=5)),
        ask(A=4),
        {"inventory": hold(ask(A=4), A=2)},
    ),
    Row("more than that passes", ask(A=4), plan_for(4.2, ask(A=5)), None, {"inventory": hold(ask(A=4), A=2)}),
    Row("when all are ready more passes", ask(A=4), plan_for(3.8, ask(A=5)), None),
    Row(
        "less is not its matter", ask(A=4), plan_for(2.0, ask(A=3)), None, {"inventory": hold(ask(A=4), A=2)}
    ),
    Row(
        "a move is not its matter",
        ask(A=4),
        plan_for(3.8, ask(B=5)),
        None,
        {"inventory": hold(ask(A=4), A=2)},
    ),
    Row(
        "what did not come in time is released",
        ask(A=4),
        ask(A=4),
        ask(A=3),
        RELEASED | {"inventory": hold(ask(A=4), A=3)},
        until_s=NOW_S + 200,
    ),
    Row(
        "and not asked for again yet",
        ask(A=3),
        ask(A=6),
        ask(A=3),
        RELEASED | {"inventory": hold(ask(A=3))},
        until_s=NOW_S + 200,
    ),
    Row(
        "another accelerator takes its place",
        ask(A=4),
        ask(A=4, B=2),
        ask(A=1, B=2),
        RELEASED | {"inventory": hold(ask(A=4), A=1)},
        until_s=NOW_S + 200,
    ),
    Row(
        "with nothing to serve from one goes on waiting",
        ask(A=4),
        ask(A=4),
        ask(A=1),
        RELEASED | {"inventory": hold(ask(A=4), A=0)},
        until_s=NOW_S + 200,
    ),
    Row(
        "later it is asked for again",
        ask(A=3),
        ask(A=6),
        None,
        {"memory": Memory(released={"A": NOW_S - 1}), "inventory": hold(ask(A=3))},
    ),
)
def test_supply(row: Row) -> None:
    check(Supply(SupplySettings()), row)


def _lost(ready: int, pending: int = 0, **memory: Any) -> dict[str, Any]:
    variant = VariantInventory(accelerator="A", desired=4, ready=ready, pending=pending, max_batch=64)
    seen = VARIANT_OF_OLD.model_copy(update={"variants": (variant,)})
    return {"inventory": seen, "memory": Memory(**memory)}


@pytest.mark.parametrize(
    ("row", "passes"),
    [
        (Row("lost capacity is replaced elsewhere", ask(A=4), ask(B=9), None, _lost(1)), True),
        (Row("or where it was", ask(A=4), ask(A=7), None, _lost(1)), True),
        (Row("more than was lost has to agree", ask(A=4), ask(A=9), None, _lost(1)), True),
        (Row("overdue is lost", ask(A=4), ask(B=9), None, _lost(1, 3, released={"A": NOW_S + 9})), True),
        (Row("starting is not", ask(A=4), ask(B=9), None, _lost(1, 3)), False),
        (
            Row(
                "right after our own write nobody knows",
                ask(A=4),
                ask(A=9),
                None,
                _lost(1, written_at_s=NOW_S),
            ),
            False,
        ),
        (Row("less replaces nothing", ask(A=4), ask(A=2), None, _lost(1)), False),
        (Row("nothing is lost", ask(A=4), ask(A=9), None, _lost(4)), False),
    ],
    ids=lambda value: value.sentence.replace(" ", "_") if isinstance(value, Row) else "",
)
def test_emergency(row: Row, passes: bool) -> None:
    ruling = Emergency(EmergencySettings()).judge(row.case, row.case.plan.allocations or ())
    assert (ruling is not None) == passes
    if ruling is not None:
        more_than_lost = total(ruling.target) > 4 + ruling.evidence["lost_replicas"]
        assert ruling.excuses == {"move", "deadband"} | (set() if more_than_lost else {"up"})
        assert ruling.target == row.case.plan.allocations


def test_lost_capacity_passes_the_gate_and_the_decision_says_so() -> None:
    moved_lately = _lost(1, moved_at_s=NOW_S - 60)
    looked_at = case(ask(A=4), ask(B=9), **moved_lately)
    gated = pass_gate(looked_at, built_in_rules())
    assert (gated.rule, gated.verdict, gated.target) == ("emergency", Verdict.ALLOW, ask(B=9))
    assert gated.evidence["lost_replicas"] == 3
    unharmed = replace(looked_at, inventory=hold(ask(A=4)))
    assert pass_gate(unharmed, built_in_rules()).rule == "move"


def _at(day: int, hour: int, minute: int = 0) -> float:
    """A moment of the week of Monday, 5 January 2026, in UTC."""
    return datetime(2026, 1, 5 + day, hour, minute, tzinfo=UTC).timestamp()


NIGHT = BlackoutHours.model_validate({"begins": "22:00", "ends": "06:00", "days": ["fri"]})
NOON = BlackoutHours.model_validate({"begins": "12:00", "ends": "13:00", "servers": ["s"]})
OTHERS = BlackoutHours.model_validate({"begins": "00:00", "ends": "00:00", "servers": ["t"]})


@pytest.mark.parametrize(
    ("now_s", "until_s"),
    [
        (_at(4, 21, 59), None),
        (_at(4, 22), _at(5, 6)),
        (_at(5, 5, 59), _at(5, 6)),
        (_at(5, 6), None),
        (_at(5, 22), None),
        (_at(2, 12, 30), _at(2, 13)),
    ],
)
def test_blackout(now_s: float, until_s: float | None) -> None:
    rule = Blackout(BlackoutSettings(hours=(NIGHT, NOON, OTHERS)))
    ruling = rule.judge(case(ask(A=4), ask(A=5), now_s=now_s), ask(A=5))
    assert (ruling is not None) == (until_s is not None)
    if ruling is not None:
        assert (ruling.until_s, ruling.verdict, ruling.advice_only) == (until_s, Verdict.REJECT, True)
        assert ruling.target == ask(A=4)


def test_a_blackout_from_midnight_to_midnight_is_the_whole_day() -> None:
    whole = BlackoutHours.model_validate({"begins": "00:00", "ends": "00:00", "days": [Day.SUNDAY.value]})
    assert whole.ends_s(_at(6, 13)) == _at(7, 0)
    assert whole.ends_s(_at(5, 13)) is None


def test_a_mark_on_the_server_pauses_it() -> None:
    marked = hold(ask(A=4)).model_copy(update={"paused": True})
    gated = pass_gate(case(ask(A=4), ask(A=8), inventory=marked), built_in_rules())
    assert (gated.rule, gated.advice_only, gated.target) == ("pause", True, ask(A=4))
