"""The stability gate: a plan's target passes a list of rules, each of which may hold, clamp or refuse it. Pure.

Rules stand in a configured order; each sees the target that the one before left. A decision names the last rule
that changed the target, or `plan` when none did.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from schemas.base import Quality
from schemas.decision import Verdict
from schemas.fleet import Objective, Server
from schemas.plan import Allocation, PlanProposed
from schemas.telemetry import InventoryObserved, TelemetryObserved

Target = tuple[Allocation, ...]

_UNSEEN_WINDOWS = 4
"""Lengths of the newest window after whose end nobody knows whether a server is idle still."""


@dataclass(frozen=True)
class Memory:
    """What the gate remembers of one server; all times are control time in Unix seconds.

    recommended: (when, replicas) of plans, oldest first. reversals: when what was taken away was wanted again.
    asked: the last target that was given to the server, None before the first.
    written: replicas by accelerator as last known to be written, and when; intended: as last handed to the target,
    which may have taken them although its answer was lost. released: accelerators whose replicas did not come in
    time, and until when they are not asked for again. panicked_at_s: when demand last outran the plan.
    idle_since_s: since when nothing has arrived or been served, None while that is not known. given_up:
    accelerators whose replicas are overdue.
    """

    recommended: tuple[tuple[float, int], ...] = ()
    direction: int = 0
    reversals: tuple[float, ...] = ()
    moved_at_s: float | None = None
    asked: Target | None = None
    written: dict[str, int] = field(default_factory=dict)
    intended: dict[str, int] = field(default_factory=dict)
    intended_at_s: float | None = None
    written_at_s: float | None = None
    released: dict[str, float] = field(default_factory=dict)
    panicked_at_s: float | None = None
    idle_since_s: float | None = None
    given_up: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Everything that a rule may look at.

    current: what the server was last asked to have; held: what its inventory shows, with what a move leaves.
    overdue: accelerators on which a replica is pending for longer than any start takes.
    """

    server: Server
    objective: Objective
    plan: PlanProposed
    current: Target
    inventory: InventoryObserved
    telemetry: TelemetryObserved | None
    memory: Memory
    paused: bool
    startup_s: float
    now_s: float
    held: Target = ()
    overdue: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ruling:
    """What a rule makes of a target: the new one, why, until when, and the figures that it looked at."""

    target: Target
    verdict: Verdict
    reason: str
    until_s: float | None = None
    evidence: dict[str, float] = field(default_factory=dict)
    advice_only: bool = False
    """Nothing may be written at all, and no later rule is asked."""
    excuses: frozenset[str] = frozenset()
    """Names of later rules that are not asked."""
    panics: bool = False
    """Demand outran the plan; remembered, for no capacity is taken away for a while."""


class Rule(Protocol):
    """A plug-in: constructed with its settings, without state of its own."""

    name: ClassVar[str]

    def judge(self, case: Case, target: Target) -> Ruling | None:
        """The target to go on with, or nothing when the rule has no objection."""


@dataclass(frozen=True)
class Gated:
    """The outcome for one server."""

    target: Target
    verdict: Verdict
    rule: str
    reason: str
    until_s: float | None
    evidence: dict[str, float]
    advice_only: bool = False
    panics: bool = False


def pass_gate(case: Case, rules: Sequence[Rule]) -> Gated:
    """Send a plan's target through the rules; the same case gives the same outcome."""
    target = case.current if case.plan.allocations is None else case.plan.allocations
    last: tuple[str, Ruling] | None = None
    excused: frozenset[str] = frozenset()
    panics = False
    for rule in rules:
        ruling = None if rule.name in excused else rule.judge(case, target)
        if ruling is None:
            continue
        if ruling.advice_only:
            evidence = _figures(case, ruling.target) | ruling.evidence
            return Gated(
                ruling.target,
                ruling.verdict,
                rule.name,
                ruling.reason,
                ruling.until_s,
                evidence,
                advice_only=True,
            )
        excused, panics = excused | ruling.excuses, panics or ruling.panics
        if same(ruling.target, target) and case.plan.allocations is not None and not ruling.excuses:
            continue
        target, last = ruling.target, (rule.name, ruling)
    figures = _figures(case, target)
    if last is None:
        return Gated(target, Verdict.ALLOW, "plan", case.plan.explanation or "as planned", None, figures)
    name, ruling = last
    if same(target, case.current):
        verdict = Verdict.HOLD
    else:
        as_planned = case.plan.allocations is not None and same(target, case.plan.allocations)
        verdict = Verdict.ALLOW if as_planned else Verdict.CLAMP
    evidence = figures | ruling.evidence
    return Gated(target, verdict, name, ruling.reason, ruling.until_s, evidence, panics=panics)


def _figures(case: Case, target: Target) -> dict[str, float]:
    figures = {"current_replicas": float(total(case.current)), "gated_replicas": float(total(target))}
    if case.plan.allocations is not None:
        figures["planned_replicas"] = float(total(case.plan.allocations))
    if (needed := needed_replicas(case.plan)) is not None:
        figures["needed_replicas"] = needed
    if case.plan.inputs.rate_rps is not None:
        figures["planned_rate_rps"] = case.plan.inputs.rate_rps
    return figures


def total(target: Target) -> int:
    """Replicas on all accelerators."""
    return sum(a.replicas for a in target)


def accelerators(target: Target) -> frozenset[str]:
    """The accelerators that hold at least one replica."""
    return frozenset(a.accelerator for a in target if a.replicas)


def same(one: Target, other: Target) -> bool:
    """Whether two targets ask for the same replicas and batch limits."""
    return _essence(one) == _essence(other)


def _essence(target: Target) -> set[tuple[str, int, int]]:
    return {(a.accelerator, a.replicas, a.max_batch) for a in target if a.replicas}


def resized(target: Target, replicas: int, held: Target = ()) -> Target:
    """The target with another number of replicas; a mix keeps its proportions as nearly as it can.

    Parameters: held, replicas that a mix keeps as far as the target has them; no more than `replicas` in all.
    """
    before = total(target)
    if replicas == before or not target:
        return target
    if len(target) == 1:
        shares = [replicas]
    else:
        counts = {a.accelerator: a.replicas for a in held}
        kept = [min(a.replicas, counts.get(a.accelerator, 0)) for a in target]
        spare, more = before - sum(kept), replicas - sum(kept)
        exact = [
            n + ((a.replicas - n) * more / spare if spare else more / len(target))
            for a, n in zip(target, kept, strict=True)
        ]
        shares = [int(x) for x in exact]
        order = sorted(range(len(target)), key=lambda i: (int(exact[i]) - exact[i], i))
        for i in order[: replicas - sum(shares)]:
            shares[i] += 1
    return tuple(with_replicas(a, n) for a, n in zip(target, shares, strict=True))


def with_replicas(allocation: Allocation, replicas: int) -> Allocation:
    """The allocation with another number of replicas, at the same cost of each."""
    each = allocation.cost_per_hour / allocation.replicas if allocation.replicas else 0.0
    return allocation.model_copy(update={"replicas": replicas, "cost_per_hour": each * replicas})


def _batches(target: Target) -> dict[str, int]:
    return {a.accelerator: a.max_batch for a in target if a.replicas}


def needed_replicas(plan: PlanProposed) -> float | None:
    """Replicas that the planned load takes, before rounding up."""
    if plan.needed_share is None or plan.allocations is None:
        return None
    return plan.needed_share * total(plan.allocations)


def remember(case: Case, gated: Gated, keep_s: float) -> Memory:
    """The memory after a decision."""
    memory, now_s = case.memory, case.now_s
    recommended = tuple((at, n) for at, n in memory.recommended if at > now_s - keep_s)
    if case.plan.allocations is not None:
        recommended = (*recommended, (now_s, total(case.plan.allocations)))
    held, asked = _batches(case.current), _batches(gated.target)
    moved = bool(held) and bool(asked) and held != asked
    # Replicas on other accelerators, or with another batch limit, do not compare: a move has no direction.
    change = 0 if moved else total(gated.target) - total(case.current)
    direction = (change > 0) - (change < 0)
    # Down after up is how a peak ends; up after down is a replica taken away that was wanted again.
    turned = direction > 0 and memory.direction < 0
    reversals = tuple(at for at in memory.reversals if at > now_s - keep_s)
    return replace(
        memory,
        recommended=recommended,
        direction=direction or memory.direction,
        reversals=(*reversals, now_s) if turned else reversals,
        moved_at_s=now_s if moved else memory.moved_at_s,
        panicked_at_s=now_s if gated.panics else memory.panicked_at_s,
        idle_since_s=_idle_since_s(memory, case.telemetry, now_s),
    )


def _idle_since_s(memory: Memory, window: TelemetryObserved | None, now_s: float) -> float | None:
    """Since when nothing has arrived, been served or waited; not known where that was not measured well or lately."""
    if window is None or window.quality is not Quality.OK or window.offered_rate_rps is None:
        return None
    if now_s - window.window_end_s > _UNSEEN_WINDOWS * (window.window_end_s - window.window_start_s):
        return None
    if window.offered_rate_rps or window.completed_rate_rps or window.running or window.waiting:
        return None
    return window.window_start_s if memory.idle_since_s is None else memory.idle_since_s
