"""One optimisation from files: read, solve, and the answer in rows, as the command line shows it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.base import Contract
from schemas.fleet import FleetDeclared, OptimizerOptions
from schemas.plan import Allocation, PlanIssued, PlanProposed, Prediction, ServerStatus, SolveStatus
from services.legacy.form import LegacySystem
from services.legacy.reader import CENTS, MS_PER_S
from services.optimizer.core import State, observe, plan
from services.optimizer.planning import OptimizerSettings
from services.optimizer.problem import Choice, Problem, SolveOutcome
from services.optimizer.sizing import Laws
from services.optimizer.solver import Solver
from services.perfmodel.queueing import QueueingModel


@dataclass(frozen=True)
class Row:
    """What became of one server; allocations are empty where it gets nothing or keeps what it has."""

    server: str
    priority: int
    status: ServerStatus
    allocations: tuple[Allocation, ...]
    predicted: Prediction | None
    binding: str
    explanation: str


@dataclass(frozen=True)
class Answered:
    """One solution: its manifest, a row for each server, and the plans where there are any."""

    manifest: PlanIssued
    rows: tuple[Row, ...]
    plans: tuple[PlanProposed, ...] = ()


def state_of(fleet: FleetDeclared, messages: Sequence[Contract] = ()) -> State:
    """What the optimizer knows from a fleet and messages about it."""
    state = observe(State(), fleet)
    for message in messages:
        state = observe(state, message)
    return state


def answer(
    state: State,
    solver: Solver,
    model: QueueingModel,
    laws: Laws,
    settings: OptimizerSettings,
    now_s: float,
) -> Answered:
    """The plan of a fleet as the service would make it."""
    assert state.fleet is not None
    began = time.perf_counter()
    _, generation = plan(state, solver, model, laws, settings, now_s)
    seconds = time.perf_counter() - began
    classes = {c.name: c.priority for c in state.fleet.service_classes}
    priorities = {s.name: classes[s.service_class] for s in state.fleet.servers}
    return Answered(
        generation.manifest.model_copy(update={"solve_s": seconds}),
        tuple(
            Row(
                p.server,
                priorities[p.server],
                p.status,
                p.allocations or (),
                p.predicted,
                p.binding,
                p.explanation,
            )
            for p in generation.plans
        ),
        generation.plans,
    )


def answer_compat(
    system: LegacySystem,
    solver: Solver,
    model: QueueingModel,
    laws: Laws,
    options: OptimizerOptions | None = None,
) -> Answered:
    """The reference's answer: its candidates, and a solver on them. Costs come out in units of 100 cents."""
    from services.optimizer.compat import compat_problem, options_of

    began = time.perf_counter()
    options = options or options_of(system)
    problem = compat_problem(system, options, model, laws)
    outcome = solver.solve(problem, options.time_limit_s)
    known = {s.server for s in problem.servers}
    return Answered(
        _manifest(problem, outcome, solver.name, model.name, time.perf_counter() - began),
        tuple(_row(system, outcome, name, name in known) for name in system.servers),
    )


def legacy_answer(answered: Answered, loads: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The answer in the reference's form; a server without an allocation is left out.

    loads: by server, its load in that form. Of a mix the largest part is shown, with all parts beside it.
    """
    return {
        "allocations": {
            row.server: _legacy_allocation(row) | {"load": dict(loads.get(row.server, {}))}
            for row in answered.rows
            if row.allocations
        }
    }


def loads_of_fleet(plans: Sequence[PlanProposed]) -> dict[str, dict[str, float]]:
    """The planned loads in the reference's form."""
    return {
        p.server: {
            "arrivalRate": 60.0 * (p.inputs.rate_rps or 0.0),
            "avgInTokens": p.inputs.input_tokens or 0.0,
            "avgOutTokens": p.inputs.output_tokens or 0.0,
        }
        for p in plans
    }


def loads_of_system(system: LegacySystem) -> dict[str, dict[str, float]]:
    """The loads of a legacy system."""
    return {
        s.name: {
            "arrivalRate": s.rate_per_min,
            "avgInTokens": s.input_tokens,
            "avgOutTokens": s.output_tokens,
        }
        for s in system.servers.values()
    }


def _legacy_allocation(row: Row) -> dict[str, Any]:
    parts = [
        {
            "accelerator": a.accelerator,
            "numReplicas": a.replicas,
            "maxBatch": a.max_batch,
            "cost": CENTS * a.cost_per_hour,
        }
        for a in sorted(row.allocations, key=lambda a: -a.traffic_share)
    ]
    times = {
        "itlAverage": MS_PER_S * row.predicted.itl_s if row.predicted else 0.0,
        "ttftAverage": MS_PER_S * row.predicted.ttft_s if row.predicted else 0.0,
    }
    return parts[0] | times | ({"mix": parts} if len(parts) > 1 else {})


def _row(system: LegacySystem, outcome: SolveOutcome, name: str, known: bool) -> Row:
    """The row of a server. known: whether it has candidates."""
    service_class = system.classes.get(system.servers[name].service_class)
    priority = service_class.priority if service_class else 100
    choices = outcome.solution.choices.get(name, ())
    if not choices:
        status = ServerStatus.UNSERVED if known else ServerStatus.INFEASIBLE
        why = "no accelerators are left for it" if known else "the reference finds no candidate for it"
        return Row(name, priority, status, (), None, "", why)
    short = any(c.replicas < c.candidate.replicas for c in choices)
    return Row(
        name,
        priority,
        ServerStatus.DEGRADED if short else ServerStatus.PLANNED,
        tuple(_allocation(c) for c in choices if c.replicas > 0),
        choices[0].candidate.predicted,
        choices[0].candidate.binding,
        "",
    )


def _allocation(choice: Choice) -> Allocation:
    return Allocation(
        accelerator=choice.candidate.accelerator,
        replicas=choice.replicas,
        max_batch=choice.candidate.max_batch,
        cost_per_hour=choice.cost_per_hour / CENTS,
    )


def _manifest(problem: Problem, outcome: SolveOutcome, solver: str, model: str, seconds: float) -> PlanIssued:
    cost = outcome.solution.cost_per_hour
    distance = None if outcome.bound is None else max(0.0, outcome.objective - outcome.bound)
    return PlanIssued(
        generation=0,
        servers=len(problem.servers),
        status=outcome.status,
        cost_per_hour=max(0.0, cost) / CENTS,
        bound_cost_per_hour=None if distance is None else max(0.0, cost - distance) / CENTS,
        gap_share=outcome.gap_share,
        solver=solver,
        performance_model=model,
        solve_s=seconds,
        shadow_prices=tuple(
            p.model_copy(update={"cost_per_hour": p.cost_per_hour / CENTS}) for p in outcome.shadow_prices
        ),
        shortfall=outcome.shortfall,
        classes=outcome.classes,
        issued_at_s=0.0,
        expires_at_s=0.0,
    )


def overridden_options(fleet: FleetDeclared, **changes: Any) -> FleetDeclared:
    """The fleet with some of its optimizer options changed, those that are None left as they are."""
    kept = {name: value for name, value in changes.items() if value is not None}
    return fleet.model_copy(update={"optimizer": fleet.optimizer.model_copy(update=kept)})


def nothing_planned(answered: Answered) -> bool:
    """Whether there are servers and none of them could be given anything."""
    moved = (ServerStatus.PLANNED, ServerStatus.DEGRADED)
    return answered.manifest.status is SolveStatus.INFEASIBLE or (
        bool(answered.rows) and not any(row.status in moved for row in answered.rows)
    )
