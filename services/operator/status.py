"""The status of each custom resource and the Events that tell of its changes. Pure.

Figures are in the units of the resources: milliseconds and cents per hour. A status is only written as far as it is
known; what it leaves out stays as it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.actuation import ActuationApplied, ActuationFailed
from schemas.decision import DecisionMade, Verdict
from schemas.plan import Allocation, PlanProposed, Prediction, ServerStatus
from services.legacy.reader import CENTS, MS_PER_S
from services.operator.core import Generation, State
from services.operator.declaration import Declaration, period_s
from services.operator.resources import Resource
from services.runtime.envelope import rfc3339

Status = dict[str, Any]
Wanted = dict[str, tuple[str, str, str]]
"""Status, reason and message of each type of condition."""


@dataclass(frozen=True)
class Told:
    """One Kubernetes Event about an object."""

    type: str
    reason: str
    message: str


def status_of(
    resource: Resource, declaration: Declaration, state: State, shown: Generation | None, now_s: float
) -> Status:
    """The status of an object; `shown` is the generation that belongs into statuses now, if any does."""
    problem = declaration.problems.get(resource.key)
    remarks = declaration.remarks.get(resource.key, ())
    wanted: Wanted = {"Ready": ("True", "Declared", "it is part of the fleet")}
    if problem is not None:
        wanted = {"Ready": ("False", problem.reason, problem.message)}
    wanted["Degraded"] = (
        ("True", "Incomplete", "; ".join(remarks))
        if remarks
        else ("False", "AsDeclared", "all that it says is honoured")
    )
    status: Status = {"active": problem is None, "observedGeneration": resource.generation}
    if resource.kind == "Model":
        status["accelerators"] = ", ".join(row["acc"] for row in resource.spec.get("data") or ()) or None
    if resource.kind == "Capacity":
        status["cards"] = ", ".join(f"{row['count']} {row['type']}" for row in resource.spec["count"]) or None
    if resource.kind == "Server" and problem is None and shown is not None:
        name = str(resource.spec["name"])
        if (plan := shown.plans.get(name)) is not None:
            status |= _planned(plan)
            wanted |= _conditions_of_plan(plan, bool(remarks))
        decision = state.decisions.get(name)
        # Nobody acts on a single plan; and a decision on a newer plan is shown when that plan is.
        followed = period_s(declaration.optimizer) is not None
        if followed and decision is not None and decision.generation == shown.manifest.generation:
            status["decision"] = _decided(decision)
            wanted |= _conditions_of_decision(decision, state.actuations.get(name))
    if resource.kind == "Optimizer" and problem is None:
        status |= _optimized(resource, shown, declaration)
    status["conditions"] = _conditions(resource, wanted, now_s)
    return status


def changes(resource: Resource, status: Status) -> Status:
    """What of a status differs from what the object has; empty when nothing is to be written."""
    return {key: value for key, value in status.items() if resource.status.get(key) != _without_nulls(value)}


def _without_nulls(value: Any) -> Any:
    """A value as the API server gives it back: a null takes a field away."""
    if not isinstance(value, dict):
        return value
    return {key: inner for key, inner in value.items() if inner is not None}


def events_of(resource: Resource, status: Status) -> Sequence[Told]:
    """What is worth an Event in the step from the object's status to a new one."""
    before = {c["type"]: c for c in resource.status.get("conditions") or ()}
    after = {c["type"]: c for c in status["conditions"]}
    told: list[Told] = []
    for kind, bad in (("Ready", "False"), ("Feasible", "False"), ("Actuated", "False"), ("Degraded", "True")):
        now, old = after.get(kind), before.get(kind)
        if now is None or now["status"] != bad or now["reason"] == "DryRun":
            continue
        if old is None or (old["status"], old["reason"], old["message"]) != (
            bad,
            now["reason"],
            now["message"],
        ):
            news = Told("Warning", now["reason"], now["message"])
            # What failed and what is degraded by it is one piece of news.
            if news not in told:
                told.append(news)
    desired = status.get("desiredAlloc")
    if desired is not None and _size(desired) != _size(resource.status.get("desiredAlloc") or {}):
        text = "{numReplicas} replicas on {accelerator}, batch {maxBatch}".format(**desired)
        told.append(Told("Normal", "Planned", text))
    finished = (
        resource.status.get("done") and resource.status.get("observedGeneration") == resource.generation
    )
    if status.get("done") and not finished:
        text = f"generation {status['planGeneration']}: {status['servers']} servers, {status['result']}"
        told.append(Told("Normal", "Optimized", text))
    return told


def _size(alloc: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(alloc.get(key) for key in ("accelerator", "numReplicas", "maxBatch"))


def _planned(plan: PlanProposed) -> Status:
    status: Status = {
        "planStatus": plan.status.value,
        "planGeneration": plan.generation,
        "plannedAt": rfc3339(plan.issued_at_s),
        "explanation": plan.explanation or None,
    }
    if plan.allocations:
        rows = [_allocation(one, plan.predicted) for one in plan.allocations]
        return {**status, "allocations": rows, "desiredAlloc": rows[0]}
    # Without an opinion what was desired before is no longer, and a null takes it away.
    return {**status, "allocations": [], "desiredAlloc": None}


def _allocation(one: Allocation, predicted: Prediction | None) -> Status:
    alloc: Status = {
        "accelerator": one.accelerator,
        "numReplicas": one.replicas,
        "maxBatch": one.max_batch,
        "cost": _rounded(one.cost_per_hour * CENTS),
    }
    if predicted is not None:
        alloc["itlAverage"] = _rounded(predicted.itl_s * MS_PER_S)
        alloc["ttftAverage"] = _rounded(predicted.ttft_s * MS_PER_S)
        alloc["waitAverage"] = _rounded(predicted.wait_s * MS_PER_S)
    return alloc


def _rounded(value: float) -> float | int:
    """Six digits; whole numbers as the API server gives them back."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short


def _conditions_of_plan(plan: PlanProposed, incomplete: bool) -> Wanted:
    measured = plan.inputs.rate_from in ("telemetry", "forecast")
    said = f"the rate planned for is from: {plan.inputs.rate_from or 'nowhere'}"
    words = "".join(part.title() for part in plan.status.value.split("_"))
    wanted: Wanted = {
        "MetricsAvailable": (
            "True" if measured else "False",
            "Measured" if measured else "NotMeasured",
            said,
        ),
        "Feasible": (
            "True" if plan.status is ServerStatus.PLANNED else "False",
            words,
            plan.explanation or f"the plan says {plan.status.value}",
        ),
    }
    if plan.status is not ServerStatus.PLANNED and not incomplete:
        wanted["Degraded"] = ("True", words, wanted["Feasible"][2])
    return wanted


def _decided(decision: DecisionMade) -> Status:
    return {
        "generation": decision.generation,
        "verdict": decision.verdict.value,
        "rule": decision.rule,
        "reason": decision.reason or None,
        "numReplicas": sum(one.replicas for one in decision.gated),
        "until": None if decision.until_s is None else rfc3339(decision.until_s),
    }


def _conditions_of_decision(
    decision: DecisionMade, actuation: ActuationApplied | ActuationFailed | None
) -> Wanted:
    steadied = decision.verdict is not Verdict.ALLOW
    wanted: Wanted = {
        "Stabilizing": (
            "True" if steadied else "False",
            decision.rule,
            decision.reason or f"the gate says {decision.verdict.value}",
        )
    }
    if decision.dry_run:
        wanted["Actuated"] = ("False", "DryRun", "the actuator's target touches nothing")
    elif isinstance(actuation, ActuationFailed):
        reason = "".join(part.title() for part in actuation.reason.value.split("_"))
        message = actuation.message or f"target {actuation.target} failed"
        wanted["Actuated"] = ("False", reason, message)
        wanted["Degraded"] = ("True", reason, message)
    elif actuation is not None:
        wanted["Actuated"] = ("True", "Applied", f"by target {actuation.target}")
    return wanted


def _optimized(optimizer: Resource, shown: Generation | None, declaration: Declaration) -> Status:
    if declaration.optimizer is None or declaration.optimizer.key != optimizer.key:
        return {}
    if shown is None:
        again = optimizer.status.get("observedGeneration") != optimizer.generation
        return {"done": False} if again or "done" not in optimizer.status else {}
    manifest = shown.manifest
    return {
        "done": True,
        "planGeneration": manifest.generation,
        "plannedAt": rfc3339(manifest.issued_at_s),
        "cost": _rounded(manifest.cost_per_hour * CENTS),
        "solver": manifest.solver,
        "result": manifest.status.value,
        "servers": manifest.servers,
    }


def _conditions(resource: Resource, wanted: Wanted, now_s: float) -> list[Status]:
    """Conditions with the time of their last change; types of which nothing new is known stay as they were."""
    before = {c["type"]: c for c in resource.status.get("conditions") or ()}
    found = dict(before)
    for kind, (status, reason, message) in wanted.items():
        old = before.get(kind)
        same = old is not None and old["status"] == status
        found[kind] = {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message[:4000],
            "lastTransitionTime": old["lastTransitionTime"] if same and old else rfc3339(now_s),
            "observedGeneration": resource.generation,
        }
    return [found[kind] for kind in sorted(found)]
