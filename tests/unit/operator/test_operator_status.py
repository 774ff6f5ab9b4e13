"""Statuses, conditions and Events of custom resources, in the units of the resources."""

from dataclasses import replace
from typing import Any

import pytest
from declared_objects import NOW_S, fleet, model, optimizer, resource, server
from gate_cases import ask, predict, propose
from test_operator_core import after, declaring, generation, manifest

from schemas.actuation import ActuationApplied, ActuationFailed, FailureReason
from schemas.base import Contract
from schemas.decision import DecisionMade, Verdict
from schemas.plan import Allocation, Inputs, ServerStatus
from services.operator.core import State, declared, to_show
from services.operator.declaration import Declaration, declare
from services.operator.resources import Resource
from services.operator.status import Status, changes, events_of, status_of

PERIODIC = declaring(periodSeconds=30)
APPLIED = ActuationApplied(
    server="s", generation=1, target="kubernetes", asked=(), scaled=(), changed=True, applied_at_s=NOW_S
)
FAILED = ActuationFailed(
    server="s",
    generation=1,
    target="kubernetes",
    asked=(),
    reason=FailureReason.NOT_READY,
    message="late",
    failed_at_s=NOW_S,
)


def decision(verdict: Verdict = Verdict.ALLOW, **changes: Any) -> DecisionMade:
    said: dict[str, Any] = {
        "server": "s",
        "generation": 1,
        "decided_at_s": NOW_S,
        "current": (),
        "gated": ask(A=2, B=1),
        "verdict": verdict,
        "rule": "up",
        "reason": "",
    }
    return DecisionMade(**said | changes)


def status(one: Resource, *messages: Contract, of: Declaration = PERIODIC, now_s: float = NOW_S) -> Status:
    """The status of an object after some messages, as it would be written whole."""
    state = after(declared(State(), of), *messages)
    return status_of(one, of, state, to_show(state, of), now_s)


def conditions(found: Status) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in found["conditions"]}


def with_status(one: Resource, found: Status) -> Resource:
    """The object as the API server gives it back after a merge patch; a null takes a field away."""
    merged = {**one.status, **found}
    kept = {key: value for key, value in merged.items() if value is not None}
    return replace(one, status={k: _without(v) if isinstance(v, dict) else v for k, v in kept.items()})


def _without(value: dict[str, Any]) -> dict[str, Any]:
    return {key: inner for key, inner in value.items() if inner is not None}


def test_a_plan_is_shown_in_milliseconds_and_cents() -> None:
    target = (Allocation(accelerator="H100", replicas=3, max_batch=32, cost_per_hour=12.345),)
    predicted = predict().model_copy(update={"ttft_s": 0.5123456789, "itl_s": 0.02, "wait_s": 0.25})
    inputs = Inputs(fleet_revision=PERIODIC.fleet.revision, rate_from="telemetry")
    found = status(server("s"), propose(target, predicted=predicted, inputs=inputs), manifest())
    wanted = {
        "accelerator": "H100",
        "numReplicas": 3,
        "maxBatch": 32,
        "cost": 1234.5,
        "itlAverage": 20,
        "ttftAverage": 512.346,
        "waitAverage": 250,
    }
    assert found["desiredAlloc"] == wanted
    assert found["allocations"] == [wanted]
    assert conditions(found) == {
        "Ready": ("True", "Declared"),
        "Degraded": ("False", "AsDeclared"),
        "Feasible": ("True", "Planned"),
        "MetricsAvailable": ("True", "Measured"),
    }


def test_without_an_opinion_nothing_is_desired_and_the_condition_says_why() -> None:
    inputs = Inputs(fleet_revision=PERIODIC.fleet.revision)
    none = propose(None, inputs=inputs, status=ServerStatus.NO_LOAD, explanation="nobody says the load")
    found = status(server("s"), none, manifest())
    assert (found["desiredAlloc"], found["allocations"]) == (None, [])
    assert conditions(found)["Feasible"] == ("False", "NoLoad")
    assert conditions(found)["Degraded"] == ("True", "NoLoad")
    assert conditions(found)["MetricsAvailable"] == ("False", "NotMeasured")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((decision(), APPLIED), {"Stabilizing": ("False", "up"), "Actuated": ("True", "Applied")}),
        ((decision(Verdict.CLAMP),), {"Stabilizing": ("True", "up")}),
        (
            (decision(Verdict.HOLD), FAILED),
            {
                "Stabilizing": ("True", "up"),
                "Actuated": ("False", "NotReady"),
                "Degraded": ("True", "NotReady"),
            },
        ),
        ((decision(dry_run=True), APPLIED), {"Actuated": ("False", "DryRun")}),
    ],
    ids=["done", "clamped", "failed", "a dry run"],
)
def test_a_decision_and_what_came_of_it_are_conditions(
    messages: tuple[Contract, ...], expected: dict[str, tuple[str, str]]
) -> None:
    found = status(server("s"), *generation(PERIODIC, 1, NOW_S), *messages)
    assert expected.items() <= conditions(found).items()
    assert found["decision"]["numReplicas"] == 3


def test_a_decision_is_shown_with_its_plan_and_not_where_a_plan_is_advice() -> None:
    plan = generation(PERIODIC, 1, NOW_S)
    assert "decision" not in status(server("s"), *plan, decision(generation=2))
    once = declaring()
    found = status(server("s"), *generation(once, 1, NOW_S), decision(), of=once)
    assert "desiredAlloc" in found and "decision" not in found
    assert "Stabilizing" not in conditions(found)


def test_an_optimizer_is_done_with_what_the_generation_came_to() -> None:
    once, asking = declaring(), optimizer()
    assert status(asking, of=once)["done"] is False
    found = status(asking, *generation(once, 1, NOW_S), of=once)
    assert (found["done"], found["cost"], found["servers"], found["result"]) == (True, 800, 1, "optimal")


def test_what_is_left_out_is_not_active_and_says_why() -> None:
    lost = server("s", model="absent")
    found = status(lost, of=declare(fleet(lost), NOW_S))
    assert found["active"] is False
    assert conditions(found)["Ready"] == ("False", "ReferenceMissing")
    (told,) = events_of(lost, found)
    assert (told.type, told.reason) == ("Warning", "ReferenceMissing")
    assert "spec.model is 'absent'" in told.message


def test_the_printer_columns_have_their_words() -> None:
    cards = resource(
        "Capacity", "cards", {"count": [{"type": "H100", "count": 2}, {"type": "L4", "count": 1}]}
    )
    assert status(cards, of=declare([cards], NOW_S))["cards"] == "2 H100, 1 L4"
    assert status(model())["accelerators"] == "H100"


def test_a_condition_keeps_the_time_of_its_last_change_and_follows_each_spec() -> None:
    one, plan = server("s"), generation(PERIODIC, 1, NOW_S)
    first = status(one, *plan, decision())
    one = replace(with_status(one, first), generation=2)
    then = status(one, *plan, decision(Verdict.HOLD), now_s=NOW_S + 60)
    times = {c["type"]: c["lastTransitionTime"] for c in first["conditions"]}
    later = {c["type"]: c["lastTransitionTime"] for c in then["conditions"]}
    assert {kind for kind in times if later[kind] != times[kind]} == {"Stabilizing"}
    assert {c["observedGeneration"] for c in then["conditions"]} == {2}
    assert then["observedGeneration"] == 2


def test_conditions_of_which_nothing_new_is_known_stay() -> None:
    one = server("s")
    one = with_status(one, status(one, *generation(PERIODIC, 1, NOW_S), decision(), APPLIED))
    assert conditions(status(one))["Actuated"] == ("True", "Applied")


@pytest.mark.parametrize("messages", [(), (decision(),), (decision(Verdict.HOLD, until_s=NOW_S), FAILED)])
def test_what_was_written_is_not_written_again_nor_told_twice(messages: tuple[Contract, ...]) -> None:
    of = PERIODIC
    for one in (server("s"), optimizer(periodSeconds=30), model()):
        written = status(one, *generation(of, 1, NOW_S), *messages)
        assert changes(one, written) == {key: value for key, value in written.items() if value is not None}
        again = with_status(one, written)
        same = status(again, *generation(of, 1, NOW_S), *messages, now_s=NOW_S + 60)
        assert changes(again, same) == {}
        assert events_of(again, same) == []


def test_what_is_desired_and_what_goes_wrong_are_told_once_for_each_change() -> None:
    one, plan = server("s"), generation(PERIODIC, 1, NOW_S)
    first = status(one, *plan, decision(), APPLIED)
    assert [(t.type, t.reason) for t in events_of(one, first)] == [("Normal", "Planned")]
    one = with_status(one, first)
    failed = status(one, *plan, decision(), FAILED)
    assert [(t.type, t.reason) for t in events_of(one, failed)] == [("Warning", "NotReady")]
    one = with_status(one, failed)
    assert events_of(one, status(one, *plan, decision(), APPLIED)) == []
    dry = status(one, *plan, decision(dry_run=True))
    assert [t.reason for t in events_of(one, dry)] == []
