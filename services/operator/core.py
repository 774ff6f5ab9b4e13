"""What the operator knows from the bus, and when it has what an Optimizer asked for. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from schemas.actuation import ActuationApplied, ActuationFailed
from schemas.base import Contract
from schemas.decision import DecisionMade
from schemas.plan import PlanIssued, PlanProposed
from services.operator.declaration import Declaration, period_s, wants_once


@dataclass(frozen=True)
class Generation:
    """A manifest and every plan of it, by server."""

    manifest: PlanIssued
    plans: Mapping[str, PlanProposed]


@dataclass(frozen=True)
class State:
    """The newest of everything.

    complete: the newest generation that was seen whole. shown: the one in the statuses. asked_at_s: when a plan was
    last asked for, by declaring the fleet; asked_for: the object and generation of the Optimizer that asked.
    """

    manifest: PlanIssued | None = None
    plans: Mapping[str, PlanProposed] = field(default_factory=dict)
    complete: Generation | None = None
    shown: Generation | None = None
    decisions: Mapping[str, DecisionMade] = field(default_factory=dict)
    actuations: Mapping[str, ActuationApplied | ActuationFailed] = field(default_factory=dict)
    revision: str = ""
    asked_at_s: float = 0.0
    asked_for: tuple[str, int] | None = None


def observe(state: State, payload: Contract) -> State:
    """With one more message."""
    match payload:
        case PlanProposed():
            return _completed(replace(state, plans={**state.plans, payload.server: payload}))
        case PlanIssued():
            return _completed(replace(state, manifest=payload))
        case DecisionMade():
            return replace(state, decisions={**state.decisions, payload.server: payload})
        case ActuationApplied() | ActuationFailed():
            known = state.actuations.get(payload.server)
            if known is not None and known.generation > payload.generation:
                return state
            return replace(state, actuations={**state.actuations, payload.server: payload})
    return state


def _completed(state: State) -> State:
    if state.manifest is None:
        return state
    number = state.manifest.generation
    plans = {name: plan for name, plan in state.plans.items() if plan.generation == number}
    if len(plans) != state.manifest.servers:
        return state
    return replace(state, complete=Generation(state.manifest, plans))


def must_declare(state: State, declaration: Declaration, now_s: float, ask_again_s: float) -> bool:
    """Whether the fleet is to be published: it changed, an Optimizer asks for a plan, or one is overdue."""
    if declaration.fleet.revision != state.revision:
        return True
    optimizer = declaration.optimizer
    if wants_once(optimizer):
        assert optimizer is not None
        waited_s = now_s - state.asked_at_s
        return state.asked_for != (optimizer.uid, optimizer.generation) or waited_s >= ask_again_s
    every_s = period_s(optimizer)
    if every_s is None:
        return False
    # Where a collector measures, plans come by themselves and this never happens.
    planned_at_s = state.complete.manifest.issued_at_s if state.complete else 0.0
    return now_s - max(planned_at_s, state.asked_at_s) >= every_s


def declared(state: State, declaration: Declaration) -> State:
    """After the fleet was published."""
    optimizer = declaration.optimizer
    asked_for = (optimizer.uid, optimizer.generation) if wants_once(optimizer) and optimizer else None
    return replace(
        state,
        revision=declaration.fleet.revision,
        asked_at_s=declaration.fleet.declared_at_s,
        asked_for=asked_for,
    )


def to_show(state: State, declaration: Declaration) -> Generation | None:
    """The generation that belongs into the statuses now, or nothing while none does.

    One plan that was asked for must be of the fleet as declared then, or later; with a period the newest is shown
    unless that shown last is younger than the period and of the same fleet.
    """
    found, optimizer = state.complete, declaration.optimizer
    if found is None or not _is_of(found, state.revision):
        return None
    if wants_once(optimizer):
        assert optimizer is not None
        asked = state.asked_for == (optimizer.uid, optimizer.generation)
        return found if asked and found.manifest.issued_at_s >= state.asked_at_s else None
    every_s = period_s(optimizer)
    if every_s is None:
        return None
    last = state.shown
    if last is not None and _is_of(last, state.revision):
        return found if found.manifest.issued_at_s - last.manifest.issued_at_s >= every_s else last
    return found


def _is_of(generation: Generation, revision: str) -> bool:
    return all(plan.inputs.fleet_revision == revision for plan in generation.plans.values())
