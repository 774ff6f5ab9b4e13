"""The optimizer's core: from what is known to a whole generation of plans. No clock, no bus, no logging."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from schemas.fleet import FleetDeclared, Ranking, Server
from schemas.plan import Allocation, Inputs, PlanIssued, PlanProposed, Prediction, ServerStatus
from services.optimizer.candidates import MOST_COST_PER_HOUR, Assembly, Memory, assemble, predict
from services.optimizer.explain import explain, explain_unserved, shortened
from services.optimizer.planning import OptimizerSettings
from services.optimizer.problem import Candidate, Choice, ServerProblem, SolveOutcome
from services.optimizer.sizing import Laws
from services.optimizer.solver import Solver
from services.optimizer.state import State, observe
from services.perfmodel.queueing import QueueingModel

__all__ = ["Generation", "State", "observe", "plan"]


@dataclass(frozen=True)
class Generation:
    """One plan for the whole fleet.

    plans: one for every server of the fleet, in its order.
    manifest: completes the generation; its solve_s is 0 until the caller, who has a clock, fills it.
    notes: what the generation could not honour, for the log.
    candidates: every candidate by server, best first.
    """

    plans: tuple[PlanProposed, ...]
    manifest: PlanIssued
    notes: tuple[str, ...] = ()
    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Frame:
    """What every plan of a generation shares.

    short: servers that get less than they need. unchanged: by server, performance of what it has now.
    """

    generation: int
    issued_at_s: float
    expires_at_s: float
    short: Set[str]
    unchanged: Mapping[str, Prediction | None]


def plan(
    state: State,
    solver: Solver,
    queueing_model: QueueingModel,
    laws: Laws,
    settings: OptimizerSettings,
    now_s: float,
    memory: Memory | None = None,
) -> tuple[State, Generation]:
    """The next generation: every server has a plan with its own status, whatever is wrong with others.

    memory: of the plan before, so that only what changed since is sized anew.
    Raises ValueError while no fleet is known.
    """
    fleet = state.fleet
    if fleet is None:
        raise ValueError("no fleet is declared yet: there is nothing to plan")
    assembly = assemble(state, fleet, queueing_model, laws, settings, now_s, memory)
    outcome = solver.solve(assembly.problem, fleet.optimizer.time_limit_s)
    predictions = _predictions(assembly, outcome, queueing_model, laws)
    frame = _Frame(
        state.last_generation + 1,
        now_s,
        now_s + settings.plan_lifetime_s,
        {s.server for s in outcome.shortfall},
        _unchanged(assembly, state, queueing_model, laws),
    )
    problems = {s.server: s for s in assembly.problem.servers}
    plans = tuple(
        _planned(problems[server.name], server, assembly, outcome, predictions, frame, state)
        if server.name in problems
        else _held(server, assembly, frame)
        for server in fleet.servers
    )
    manifest = PlanIssued(
        generation=frame.generation,
        servers=len(plans),
        status=outcome.status,
        cost_per_hour=min(outcome.solution.cost_per_hour, MOST_COST_PER_HOUR),
        bound_cost_per_hour=_bound_cost_per_hour(outcome),
        gap_share=outcome.gap_share,
        solver=solver.name,
        performance_model=queueing_model.name,
        solve_s=0.0,
        shadow_prices=outcome.shadow_prices,
        shortfall=outcome.shortfall,
        classes=outcome.classes,
        issued_at_s=frame.issued_at_s,
        expires_at_s=frame.expires_at_s,
    )
    state = replace(state, last_generation=frame.generation, last_plans={p.server: p for p in plans})
    return state, Generation(
        plans,
        manifest,
        _notes(fleet, solver),
        {s.server: s.candidates for s in assembly.problem.servers},
    )


Predictions = Mapping[str, tuple[Prediction | None, Prediction | None]]


def _predictions(assembly: Assembly, outcome: SolveOutcome, model: QueueingModel, laws: Laws) -> Predictions:
    """Performance of what every server was given, and with one replica fewer.

    A candidate taken whole was predicted with it; best effort is asked for again, because it carries more
    load for each replica than the candidate it is part of.
    """
    rates = {s.server: s.rate_rps for s in assembly.problem.servers}
    known: dict[str, tuple[Prediction | None, Prediction | None]] = {}
    partial: list[tuple[str, Choice, float]] = []
    for server, choices in outcome.solution.choices.items():
        for choice, share in zip(choices, _traffic_shares(choices), strict=True):
            if len(choices) == 1 and choice.replicas == choice.candidate.replicas:
                known[server] = (choice.candidate.predicted, choice.candidate.predicted_one_fewer)
            else:
                partial.append((server, choice, rates[server] * share))
    asked = [(c.candidate, rate, c.replicas - fewer) for _, c, rate in partial for fewer in (0, 1)]
    answers = iter(predict(asked, model, laws))
    for server, _, _ in partial:
        pair = (next(answers), next(answers))
        other = known.get(server, pair)
        known[server] = (_worse(pair[0], other[0]), _worse(pair[1], other[1]))
    return known


def _unchanged(
    assembly: Assembly, state: State, model: QueueingModel, laws: Laws
) -> dict[str, Prediction | None]:
    """Performance of what every server has now under the planned load, where it is among its candidates."""
    asked = {
        s.server: (_in_force(s, state), s.rate_rps, s.current.replicas)
        for s in assembly.problem.servers
        if s.current is not None and any(c.accelerator == s.current.accelerator for c in s.candidates)
    }
    return dict(zip(asked, predict(list(asked.values()), model, laws), strict=True))


def _in_force(problem: ServerProblem, state: State) -> Candidate:
    """The candidate on the current accelerator of the batch limit in force, the best where that is not known."""
    assert problem.current is not None
    name = problem.current.accelerator
    limits = {v.max_batch for v in state.inventory[problem.server].variants if v.accelerator == name}
    own = [c for c in problem.candidates if c.accelerator == name]
    return next((c for c in own if c.max_batch in limits), own[0])


def _worse(one: Prediction | None, other: Prediction | None) -> Prediction | None:
    """What all requests of a mix are promised: the worse of every figure of its parts."""
    if one is None or other is None:
        return None
    return Prediction(
        ttft_s=max(one.ttft_s, other.ttft_s),
        itl_s=max(one.itl_s, other.itl_s),
        wait_s=max(one.wait_s, other.wait_s),
        utilization_share=max(one.utilization_share, other.utilization_share),
        objectives_met=one.objectives_met and other.objectives_met,
    )


def _traffic_shares(choices: Sequence[Choice]) -> list[float]:
    """Shares of the requests in proportion to what the replicas given can carry."""
    carried = [c.replicas * c.candidate.max_rate_rps for c in choices]
    total = math.fsum(carried)
    return [rate / total if total > 0 else 1.0 for rate in carried]


def _planned(
    problem: ServerProblem,
    server: Server,
    assembly: Assembly,
    outcome: SolveOutcome,
    predictions: Predictions,
    frame: _Frame,
    state: State,
) -> PlanProposed:
    choices = outcome.solution.choices.get(server.name, ())
    previous = state.last_plans.get(server.name)
    dropped = assembly.dropped[server.name]
    load = assembly.loads[server.name]
    if not choices:
        return _without_target(
            server, ServerStatus.UNSERVED, load.inputs, explain_unserved(problem, dropped), frame
        )
    given = sum(c.replicas for c in choices)
    if load.raise_only and problem.current and given < problem.current.replicas:
        reason = "Nothing fresh was measured, so it keeps what it has: the plan would take replicas away."
        return _without_target(server, ServerStatus.NO_LOAD, load.inputs, reason, frame)

    short = server.name in frame.short
    best_effort = any(c.replicas < c.candidate.replicas for c in choices) and short
    allocations = tuple(
        Allocation(
            accelerator=c.candidate.accelerator,
            replicas=c.replicas,
            max_batch=c.candidate.max_batch,
            traffic_share=share,
            cost_per_hour=c.cost_per_hour,
        )
        for c, share in zip(choices, _traffic_shares(choices), strict=True)
        if c.replicas > 0
    )
    binding = "capacity" if best_effort else choices[0].candidate.binding
    predicted, one_fewer = predictions[server.name]
    estimated = [c.candidate.parameters_at_s for c in choices if c.candidate.parameters_at_s is not None]
    return PlanProposed(
        server=server.name,
        generation=frame.generation,
        status=ServerStatus.DEGRADED if short else ServerStatus.PLANNED,
        allocations=allocations,
        predicted=predicted,
        predicted_one_fewer=one_fewer,
        predicted_current=frame.unchanged.get(server.name),
        needed_share=_needed_share(problem.rate_rps, choices),
        inputs=load.inputs.model_copy(update={"parameters_at_s": min(estimated)})
        if estimated
        else load.inputs,
        binding=binding,
        explanation=explain(
            problem, choices, binding, allocations, problem.rate_rps, previous, dropped, outcome.shadow_prices
        ),
        issued_at_s=frame.issued_at_s,
        expires_at_s=frame.expires_at_s,
    )


def _needed_share(rate_rps: float, choices: Sequence[Choice]) -> float | None:
    carried = math.fsum(c.replicas * c.candidate.max_rate_rps for c in choices)
    return rate_rps / carried if carried > 0 else None


def _held(server: Server, assembly: Assembly, frame: _Frame) -> PlanProposed:
    excluded = assembly.excluded[server.name]
    return _without_target(
        server, excluded.status, assembly.loads[server.name].inputs, f"Held: {excluded.reason}.", frame
    )


def _without_target(
    server: Server, status: ServerStatus, inputs: Inputs, explanation: str, frame: _Frame
) -> PlanProposed:
    return PlanProposed(
        server=server.name,
        generation=frame.generation,
        status=status,
        predicted_current=frame.unchanged.get(server.name),
        inputs=inputs,
        explanation=shortened(explanation),
        issued_at_s=frame.issued_at_s,
        expires_at_s=frame.expires_at_s,
    )


def _bound_cost_per_hour(outcome: SolveOutcome) -> float | None:
    """The cost less the distance of the objective to its bound, which both are per hour."""
    if outcome.bound is None:
        return None
    cost = min(outcome.solution.cost_per_hour, MOST_COST_PER_HOUR)
    return max(0.0, cost - max(0.0, outcome.objective - outcome.bound))


def _notes(fleet: FleetDeclared, solver: Solver) -> tuple[str, ...]:
    notes = []
    if fleet.optimizer.budget_per_hour is not None and not solver.capabilities.budget:
        notes.append(f"budget_per_hour is set, but solver {solver.name} does not keep budgets")
    if not fleet.optimizer.unlimited and not solver.capabilities.capacity:
        notes.append(f"capacity is limited, but solver {solver.name} does not keep it")
    if fleet.optimizer.ranking is Ranking.WEIGHTED and not solver.capabilities.weighs:
        notes.append(f"ranking is weighted, but solver {solver.name} serves class after class")
    return tuple(notes)
