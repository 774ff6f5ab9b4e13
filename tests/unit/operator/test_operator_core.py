"""When the operator declares the fleet, and which generation belongs into the statuses."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from declared_objects import NOW_S, fleet, optimizer, server
from gate_cases import ask, propose

from schemas.actuation import ActuationApplied
from schemas.base import Contract
from schemas.plan import Inputs, PlanIssued, PlanProposed, SolveStatus
from services.operator.core import State, declared, must_declare, observe, to_show
from services.operator.declaration import Declaration, declare

AGAIN_S = 60.0


def declaring(now_s: float = NOW_S, about: Any = None, **spec: Any) -> Declaration:
    return declare(fleet(server("s"), optimizer(about=about, **spec)), now_s)


def plan(of: Declaration, generation: int = 1, name: str = "s", at_s: float = NOW_S) -> PlanProposed:
    inputs = Inputs(fleet_revision=of.fleet.revision)
    return propose(
        ask(A=2), server=name, generation=generation, inputs=inputs, issued_at_s=at_s, expires_at_s=at_s + 90
    )


def manifest(generation: int = 1, servers: int = 1, at_s: float = NOW_S) -> PlanIssued:
    return PlanIssued(
        generation=generation,
        servers=servers,
        status=SolveStatus.OPTIMAL,
        cost_per_hour=8.0,
        solver="greedy",
        performance_model="corrected",
        solve_s=0.1,
        issued_at_s=at_s,
        expires_at_s=at_s + 90,
    )


def after(state: State, *messages: Contract) -> State:
    for message in messages:
        state = observe(state, message)
    return state


def generation(of: Declaration, number: int, at_s: float) -> tuple[Contract, ...]:
    return plan(of, number, at_s=at_s), manifest(number, at_s=at_s)


def shown(state: State, of: Declaration) -> int | None:
    found = to_show(state, of)
    return None if found is None else found.manifest.generation


def test_a_generation_is_complete_with_all_its_plans_in_whatever_order_they_come() -> None:
    of = declaring()
    for messages in permutations([plan(of), plan(of, name="t"), manifest(servers=2)]):
        state = State()
        for message in messages[:-1]:
            state = observe(state, message)
            assert state.complete is None
        found = observe(state, messages[-1]).complete
        assert found is not None and set(found.plans) == {"s", "t"}


def test_plans_of_a_generation_before_do_not_complete_one() -> None:
    of = declaring()
    state = after(State(), plan(of, 1), plan(of, 1, "t"), manifest(1, 2), plan(of, 2), manifest(2, 2))
    assert state.complete is not None and state.complete.manifest.generation == 1
    assert observe(state, plan(of, 2, "t")).complete != state.complete


def test_an_older_actuation_does_not_replace_a_newer_one() -> None:
    applied = ActuationApplied(
        server="s", generation=5, target="t", asked=(), scaled=(), changed=False, applied_at_s=NOW_S
    )
    late = applied.model_copy(update={"generation": 4})
    assert after(State(), applied, late).actuations["s"].generation == 5
    assert after(State(), late, applied).actuations["s"].generation == 5


def test_the_fleet_is_declared_when_it_changes_and_not_otherwise() -> None:
    idle = declaring(optimize=False)
    state = State()
    assert must_declare(state, idle, NOW_S, AGAIN_S)
    state = declared(state, idle)
    assert not must_declare(state, idle, NOW_S + 1e6, AGAIN_S)
    other = declare(fleet(server("s", minReplicas=2), optimizer(optimize=False)), NOW_S)
    assert must_declare(state, other, NOW_S, AGAIN_S)


def test_one_plan_is_asked_for_once_and_again_when_it_does_not_come() -> None:
    once = declaring()
    state = declared(State(), once)
    assert not must_declare(state, once, NOW_S + AGAIN_S - 1, AGAIN_S)
    assert must_declare(state, once, NOW_S + AGAIN_S, AGAIN_S)
    # Another spec of the Optimizer is another question, though the fleet is the same.
    assert must_declare(state, declaring(about={"generation": 2}), NOW_S + 1, AGAIN_S)
    done = {"done": True, "observedGeneration": 1}
    assert not must_declare(state, declaring(about={"status": done}), NOW_S + 1e6, AGAIN_S)


def test_with_a_period_a_plan_is_asked_for_when_none_came_for_that_long() -> None:
    periodic = declaring(periodSeconds=30)
    state = declared(State(), periodic)
    assert not must_declare(state, periodic, NOW_S + 29, AGAIN_S)
    assert must_declare(state, periodic, NOW_S + 30, AGAIN_S)
    planned = after(state, *generation(periodic, 1, NOW_S + 20))
    assert not must_declare(planned, periodic, NOW_S + 49, AGAIN_S)
    assert must_declare(planned, periodic, NOW_S + 50, AGAIN_S)


@pytest.mark.parametrize(("at_s", "expected"), [(NOW_S - 1, None), (NOW_S, 1), (NOW_S + 5, 1)])
def test_one_plan_is_shown_when_it_was_made_after_it_was_asked_for(at_s: float, expected: int | None) -> None:
    once = declaring()
    state = after(declared(State(), once), *generation(once, 1, at_s))
    assert shown(state, once) == expected


def test_nothing_is_shown_that_is_of_another_fleet_or_that_nobody_asked_for() -> None:
    once, idle = declaring(), declaring(optimize=False)
    other = declare(fleet(server("s", minReplicas=2), optimizer()), NOW_S)
    state = declared(State(), once)
    assert shown(state, once) is None
    assert shown(after(state, *generation(other, 1, NOW_S)), once) is None
    assert shown(after(declared(State(), idle), *generation(idle, 1, NOW_S)), idle) is None
    # One that was asked for by another spec of the Optimizer is not this one's.
    asked = after(state, *generation(once, 1, NOW_S))
    assert shown(asked, declaring(about={"generation": 2})) is None


def test_with_a_period_the_newest_is_shown_at_most_so_often_unless_the_fleet_changes() -> None:
    periodic = declaring(periodSeconds=30)
    state = after(declared(State(), periodic), *generation(periodic, 1, NOW_S))
    assert shown(state, periodic) == 1
    state = replace(state, shown=to_show(state, periodic))
    state = after(state, *generation(periodic, 2, NOW_S + 10))
    assert shown(state, periodic) == 1
    assert shown(after(state, *generation(periodic, 3, NOW_S + 30)), periodic) == 3
    changed = declare(fleet(server("s", minReplicas=2), optimizer(periodSeconds=30)), NOW_S + 12)
    state = after(declared(state, changed), *generation(changed, 4, NOW_S + 12))
    assert shown(state, changed) == 4
