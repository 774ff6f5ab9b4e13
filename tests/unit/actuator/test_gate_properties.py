"""What the whole gate keeps whatever the case."""

from dataclasses import replace
from math import ceil

import pytest
from gate_cases import (
    NOW_S,
    ask,
    built_in_rules,
    case,
    cases,
    hold,
    measure,
    memories,
    plan_for,
    predict,
    propose,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.base import Quality
from schemas.plan import ServerStatus
from services.actuator.gate import Case, Memory, pass_gate, remember, same, total
from services.actuator.settings import ActuatorSettings

RULES = built_in_rules()
KEEP_S = ActuatorSettings().remember_s
MANY = settings(max_examples=60, derandomize=True, deadline=None)

DOUBTS = {
    "stale telemetry": {"telemetry": measure(quality=Quality.STALE)},
    "missing telemetry": {"telemetry": measure(quality=Quality.MISSING)},
    "old telemetry": {"telemetry": measure(NOW_S - 500)},
    "no telemetry": {"telemetry": None},
    "half of the replicas silent": {
        "telemetry": measure(quality=Quality.PARTIAL).model_copy(update={"reporting_share": 0.5})
    },
    "missing inventory": {"inventory": hold((), quality=Quality.MISSING)},
    "partial inventory": {"inventory": hold((), quality=Quality.PARTIAL)},
    "old inventory": {"inventory": hold((), NOW_S - 500)},
}


@settings(MANY, max_examples=25)
@given(cases())
def test_the_same_case_has_the_same_outcome(looked_at: Case) -> None:
    assert pass_gate(looked_at, RULES) == pass_gate(looked_at, RULES)


@MANY
@given(cases())
def test_planning_what_was_decided_changes_nothing(looked_at: Case) -> None:
    gated = pass_gate(looked_at, RULES)
    # A plan that knows what is measured: one that demand has overtaken is answered in every cycle.
    known = looked_at.plan.inputs
    if looked_at.telemetry is not None and looked_at.telemetry.offered_rate_rps is not None:
        known = known.model_copy(update={"rate_rps": looked_at.telemetry.offered_rate_rps})
    again = replace(
        looked_at,
        current=gated.target,
        plan=looked_at.plan.model_copy(
            update={
                "allocations": gated.target,
                "status": ServerStatus.PLANNED,
                "needed_share": 1.0,
                "inputs": known,
            }
        ),
        inventory=hold(gated.target, looked_at.inventory.observed_at_s, looked_at.inventory.quality),
        memory=replace(remember(looked_at, gated, KEEP_S), written_at_s=None),
    )
    assert same(pass_gate(again, RULES).target, gated.target)


@MANY
@given(cases())
def test_the_declared_limits_are_kept_by_all_that_may_be_written(looked_at: Case) -> None:
    looked_at = _writable(looked_at)
    gated = pass_gate(looked_at, RULES)
    assert not gated.advice_only
    # Where neither what is held nor the plan names an accelerator, there is nothing to count on.
    assume(gated.target or looked_at.current)
    server, replicas = looked_at.server, total(gated.target)
    assert replicas >= server.min_replicas
    assert server.max_replicas is None or replicas <= server.max_replicas
    assert replicas >= 1 or not total(looked_at.current)


def _writable(looked_at: Case) -> Case:
    """The case with nothing in it that forbids to write at all."""
    seen = {"quality": Quality.OK, "observed_at_s": looked_at.now_s}
    return replace(
        looked_at,
        paused=False,
        server=looked_at.server.model_copy(update={"paused": False}),
        inventory=looked_at.inventory.model_copy(update=seen),
        memory=replace(looked_at.memory, written_at_s=None),
    )


@MANY
@given(st.data())
def test_a_larger_recommendation_never_yields_fewer_replicas(data: st.DataObject) -> None:
    looked_at = data.draw(cases("A"))
    needs = sorted(data.draw(st.tuples(st.floats(0.01, 20), st.floats(0.01, 20))))
    status = data.draw(st.sampled_from((ServerStatus.PLANNED, ServerStatus.DEGRADED)))
    # Out of capacity, every need is given the same share.
    given_share = 1.0 if status is ServerStatus.PLANNED else data.draw(st.floats(0.3, 1.0))
    # Demand is what is planned for and what is measured, which a panic compares.
    measured_over_planned = data.draw(st.floats(0, 4))
    fewer, more = (
        pass_gate(
            replace(
                looked_at,
                telemetry=looked_at.telemetry
                and looked_at.telemetry.model_copy(
                    update={"offered_rate_rps": measured_over_planned * needed}
                ),
                plan=plan_for(
                    needed,
                    ask(A=max(1, ceil(needed * given_share))),
                    status=status,
                    predicted_current=looked_at.plan.predicted_current,
                    expires_at_s=looked_at.plan.expires_at_s,
                ),
            ),
            RULES,
        )
        for needed in needs
    )
    assert total(fewer.target) <= total(more.target)


@MANY
@given(st.data(), st.sampled_from(sorted(DOUBTS)))
def test_doubt_takes_nothing_away(data: st.DataObject, doubt: str) -> None:
    looked_at = replace(data.draw(cases()), **DOUBTS[doubt])
    _takes_nothing_away(replace(looked_at, memory=replace(looked_at.memory, written_at_s=None)))


@MANY
@given(cases(), st.booleans())
def test_an_expired_plan_and_one_without_an_opinion_take_nothing_away(looked_at: Case, expired: bool) -> None:
    plan = (
        looked_at.plan.model_copy(update={"expires_at_s": looked_at.now_s - 1}) if expired else propose(None)
    )
    _takes_nothing_away(replace(looked_at, plan=plan))


def _takes_nothing_away(looked_at: Case) -> None:
    # A declared maximum is the owner's word, which no doubt about measurements touches.
    looked_at = replace(looked_at, server=looked_at.server.model_copy(update={"max_replicas": None}))
    gated = pass_gate(looked_at, RULES)
    after = {a.accelerator: a.replicas for a in gated.target}
    ready = {v.accelerator: v.ready for v in looked_at.inventory.variants}
    # A replica that did not come in time serves nobody, so to release it takes nothing away.
    kept = {
        a.accelerator: min(a.replicas, ready.get(a.accelerator, 0))
        if a.accelerator in looked_at.memory.released
        else a.replicas
        for a in looked_at.current
    }
    assert gated.advice_only or all(after.get(name, 0) >= n for name, n in kept.items())


@MANY
@given(cases(), st.sampled_from(("on request", "by declaration", "foreign")))
def test_what_is_paused_or_anothers_is_never_written(looked_at: Case, why: str) -> None:
    if why == "on request":
        looked_at = replace(looked_at, paused=True)
    elif why == "by declaration":
        looked_at = replace(looked_at, server=looked_at.server.model_copy(update={"paused": True}))
    else:
        ours = {a.accelerator: a.replicas + 1 for a in (*ask(A=0), *looked_at.current)}
        looked_at = replace(
            looked_at,
            inventory=hold(looked_at.current),
            memory=replace(looked_at.memory, written=ours, intended=ours, written_at_s=NOW_S - 60),
        )
    gated = pass_gate(looked_at, RULES)
    assert gated.advice_only
    assert gated.rule in ("pause", "ownership")
    assert same(gated.target, looked_at.current)


@MANY
@given(st.data())
def test_one_cycle_never_steps_further_than_it_may(data: st.DataObject) -> None:
    current, wanted = data.draw(st.tuples(st.integers(1, 40), st.integers(0, 80)))
    memory = replace(data.draw(memories(ask(A=current))), written_at_s=None)
    plan = propose(ask(A=wanted), predicted=predict(0.5))
    after = total(pass_gate(case(ask(A=current), plan, memory=memory), RULES).target)
    assert current - max(1, current // 2) <= after <= current + min(8, max(4, current))


@pytest.mark.parametrize("demand", [1, 3, 7, 20])
def test_a_steady_demand_is_reached_and_kept(demand: int) -> None:
    current, memory = ask(A=6), Memory()
    for cycle in range(60):
        now_s = NOW_S + 30 * cycle
        looked_at = case(
            current,
            plan_for(0.7 * demand, ask(A=demand), expires_at_s=now_s + 90),
            memory=memory,
            inventory=hold(current, now_s),
            telemetry=measure(now_s),
            now_s=now_s,
        )
        gated = pass_gate(looked_at, RULES)
        current, memory = gated.target, remember(looked_at, gated, KEEP_S)
    assert total(current) == demand
