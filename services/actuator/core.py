"""The actuator's core: from a complete generation of plans to decisions and what is to be written. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from schemas.actuation import ActuationFailed, FailureReason, VariantScale
from schemas.alert import AlertKind, AlertRaised
from schemas.base import Contract, Quality
from schemas.decision import DecisionMade
from schemas.fleet import FleetDeclared, ModelProfile, Server, objective_of, startup_assumed_s
from schemas.plan import Allocation, PlanIssued, PlanProposed
from schemas.telemetry import CapacityUnavailable, InventoryObserved, TelemetryObserved
from services.actuator.gate import Case, Gated, Memory, Rule, pass_gate, remember
from services.actuator.rules.trust import Ownership, was_handed_over
from services.actuator.settings import ActuatorSettings
from services.actuator.surge import differs, surge

FLEET_KEY = "fleet"
SERVER = "server/"
LEARNED_STARTS = 5
"""Starts from which on what was learned of them stands alone."""


@dataclass(frozen=True)
class State:
    """The newest inputs, and what must outlive a restart: memories, pauses, the last generation decided."""

    fleet: FleetDeclared | None = None
    plans: Mapping[str, PlanProposed] = field(default_factory=dict)
    manifest: PlanIssued | None = None
    inventory: Mapping[str, InventoryObserved] = field(default_factory=dict)
    telemetry: Mapping[str, TelemetryObserved] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    fleet_paused: bool = False
    decided: int = 0
    alerted: frozenset[tuple[str, str]] = frozenset()
    unavailable_until_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Writing:
    """What one server's decision asks the target to write."""

    server: str
    generation: int
    asked: tuple[Allocation, ...]
    scales: tuple[VariantScale, ...]
    inventory: InventoryObserved


@dataclass(frozen=True)
class Outputs:
    """What a generation came to."""

    decisions: tuple[DecisionMade, ...] = ()
    writings: tuple[Writing, ...] = ()
    alerts: tuple[AlertRaised, ...] = ()
    unavailable: tuple[CapacityUnavailable, ...] = ()
    failures: tuple[ActuationFailed, ...] = ()
    """What was written before and did not become ready in time, once for each spell."""
    undecided: Mapping[str, str] = field(default_factory=dict)
    """Servers without a decision, and why."""
    scales: Mapping[str, tuple[VariantScale, ...]] = field(default_factory=dict)
    """What each server that may be written is asked to have now, whether or not it has it already."""


def observe(state: State, message: Contract) -> State:
    """The state with a message in it; older than what is known changes nothing."""
    match message:
        case FleetDeclared():
            newer = state.fleet is None or message.declared_at_s >= state.fleet.declared_at_s
            return replace(state, fleet=message) if newer else state
        case PlanProposed(server=name):
            held = state.plans.get(name)
            newer = held is None or message.generation >= held.generation
            return replace(state, plans={**state.plans, name: message}) if newer else state
        case PlanIssued():
            newer = state.manifest is None or message.generation >= state.manifest.generation
            return replace(state, manifest=message) if newer else state
        case InventoryObserved(server=name):
            seen = state.inventory.get(name)
            newer = seen is None or message.observed_at_s >= seen.observed_at_s
            return replace(state, inventory={**state.inventory, name: message}) if newer else state
        case TelemetryObserved(server=name, calibration=False):
            window = state.telemetry.get(name)
            newer = window is None or message.window_end_s >= window.window_end_s
            return replace(state, telemetry={**state.telemetry, name: message}) if newer else state
    return state


def undecided_generation(state: State) -> int | None:
    """The newest generation that is complete and not decided yet; older ones and parts of one are not."""
    manifest = state.manifest
    if manifest is None or manifest.generation <= state.decided or state.fleet is None:
        return None
    members = sum(1 for plan in state.plans.values() if plan.generation == manifest.generation)
    return manifest.generation if members == manifest.servers else None


def decide(
    state: State, rules: Sequence[Rule], settings: ActuatorSettings, now_s: float, writes: bool
) -> tuple[State, Outputs]:
    """Decide the newest complete generation, once; every server of the fleet gets a decision or a reason.

    Parameters: writes, whether the target carries decisions out; a dry run decides from the inventory alone.
    """
    generation, fleet = undecided_generation(state), state.fleet
    if generation is None or fleet is None or state.manifest is None:
        return state, Outputs()
    decisions, writings, failures, undecided = [], [], [], {}
    memory = dict(state.memory)
    refused: dict[str, str] = {}
    asked: dict[str, tuple[VariantScale, ...]] = {}
    for server in fleet.servers:
        plan, inventory = state.plans.get(server.name), state.inventory.get(server.name)
        if plan is None or plan.generation != generation:
            undecided[server.name] = "it has no plan in this generation"
            continue
        held = state.memory.get(server.name, Memory()).asked
        if inventory is None or (inventory.quality is not Quality.OK and not (writes and held is not None)):
            undecided[server.name] = "nothing is known of its replicas"
            continue
        overdue = _overdue_since_s(fleet, server, inventory, settings, now_s) if writes else {}
        case = replace(
            _case(state, fleet, server, plan, inventory, settings, now_s, writes), overdue=frozenset(overdue)
        )
        gated = pass_gate(case, rules)
        if gated.rule == Ownership.name:
            refused[server.name] = gated.reason
        decisions.append(_decision(case, gated, generation, now_s, writes))
        remembered = remember(case, gated, settings.remember_s)
        if not writes:
            # Nothing was changed, so there is no direction, no reversal and no move.
            remembered = replace(
                case.memory,
                recommended=remembered.recommended,
                panicked_at_s=remembered.panicked_at_s,
                idle_since_s=remembered.idle_since_s,
            )
        failures += _failures(case, overdue, generation, settings.target)
        remembered = replace(remembered, given_up=tuple(sorted(overdue)))
        scales = surge(gated.target, inventory)
        if not gated.advice_only:
            asked[server.name] = scales
        if writes and not gated.advice_only:
            remembered = replace(remembered, asked=gated.target)
        # An inventory from before the last write does not show it; writing again would run into our own change.
        sees_all = case.memory.intended_at_s is None or inventory.observed_at_s > case.memory.intended_at_s
        if differs(scales, inventory) and sees_all and not gated.advice_only:
            if writes:
                remembered = replace(
                    remembered,
                    written=remembered.written | _taken(case.memory, inventory),
                    intended={scale.accelerator: scale.replicas for scale in scales},
                    intended_at_s=now_s,
                )
            writings.append(Writing(server.name, generation, gated.target, scales, inventory))
        memory[server.name] = remembered
    # A server that is not decided was not looked at, so what was said of it stands.
    unseen = {(AlertKind.FOREIGN_WRITER.value, name) for name in undecided} & state.alerted
    found = {(AlertKind.FOREIGN_WRITER.value, name): text for name, text in refused.items()} | {
        (AlertKind.CAPACITY_SHORTFALL.value, s.server): (
            f"{s.missing_replicas} replicas on {s.accelerator} are missing for its objectives"
        )
        for s in state.manifest.shortfall
    }
    found |= dict.fromkeys(unseen, "")
    alerts = _alerts(state.alerted, found, now_s)
    unavailable = tuple(_unavailable(state, fleet, settings, now_s))
    until_s = {kind: at for kind, at in state.unavailable_until_s.items() if at > now_s}
    state = replace(
        state,
        memory=memory,
        decided=generation,
        alerted=frozenset(found),
        unavailable_until_s=until_s | {one.type: one.until_s for one in unavailable},
    )
    return state, Outputs(
        tuple(decisions), tuple(writings), alerts, unavailable, tuple(failures), undecided, asked
    )


def written(state: State, writing: Writing, now_s: float) -> State:
    """The state after a target took a writing: from now on another desired count is another writer's.

    An inventory from before now may not show it, whenever it was decided.
    """
    held = {v.accelerator: v.desired for v in writing.inventory.variants}
    counts = held | {scale.accelerator: scale.replicas for scale in writing.scales}
    memory = state.memory.get(writing.server, Memory())
    intended_at_s = None if memory.intended_at_s is None else now_s
    memory = replace(memory, written=counts, written_at_s=now_s, intended_at_s=intended_at_s)
    return replace(state, memory={**state.memory, writing.server: memory})


def pause(state: State, server: str | None) -> State:
    """Hold a server, or the fleet."""
    if server is None:
        return replace(state, fleet_paused=True)
    return replace(state, paused=state.paused | {server})


def resume(state: State, server: str | None) -> State:
    """Stop holding a server, or the fleet; what another writer set is taken over as it is."""
    names = set(state.memory) if server is None else {server} & set(state.memory)
    forgotten = {
        name: replace(
            state.memory[name], asked=None, written={}, intended={}, written_at_s=None, intended_at_s=None
        )
        for name in names
    }
    paused = frozenset() if server is None else state.paused - {server}
    fleet_paused = False if server is None else state.fleet_paused
    return replace(state, memory={**state.memory, **forgotten}, paused=paused, fleet_paused=fleet_paused)


def _case(
    state: State,
    fleet: FleetDeclared,
    server: Server,
    plan: PlanProposed,
    inventory: InventoryObserved,
    settings: ActuatorSettings,
    now_s: float,
    writes: bool,
) -> Case:
    memory = state.memory.get(server.name, Memory())
    overdue = _overdue_since_s(fleet, server, inventory, settings, now_s)
    released = {name: at for name, at in memory.released.items() if at > now_s}
    memory = replace(memory, released=dict.fromkeys(overdue, now_s + settings.unavailable_s) | released)
    return Case(
        server=server,
        objective=objective_of(fleet, server),
        plan=plan,
        current=memory.asked if writes and memory.asked is not None else _held(fleet, server, inventory),
        held=_held(fleet, server, inventory),
        inventory=inventory,
        telemetry=state.telemetry.get(server.name),
        memory=memory,
        paused=state.fleet_paused or server.name in state.paused,
        startup_s=_startup_s(fleet, server, inventory),
        now_s=now_s,
    )


def _taken(memory: Memory, inventory: InventoryObserved) -> dict[str, int]:
    """Counts handed to the target that the inventory shows, whether or not an answer came."""
    return {
        v.accelerator: v.desired
        for v in inventory.variants
        if was_handed_over(memory, v.accelerator, v.desired)
    }


def _held(fleet: FleetDeclared, server: Server, inventory: InventoryObserved) -> tuple[Allocation, ...]:
    """What the server is asked to have according to the inventory."""
    costs = {a.name: a.cost_per_hour for a in fleet.accelerators}
    profiles = _profiles(fleet, server)
    found = []
    for variant in inventory.variants:
        if not variant.desired:
            continue
        profile = profiles.get(variant.accelerator)
        units = profile.accelerator_count if profile else 1
        batch = variant.max_batch or (profile.max_batch if profile else 1)
        cost = variant.desired * units * costs.get(variant.accelerator, 0.0)
        found.append(
            Allocation(
                accelerator=variant.accelerator, replicas=variant.desired, max_batch=batch, cost_per_hour=cost
            )
        )
    return tuple(found)


_PENDING_FOR = (
    ("Unschedulable", FailureReason.UNSCHEDULABLE),
    ("exceeded quota", FailureReason.QUOTA),
    ("ImagePull", FailureReason.IMAGE),
    ("ErrImage", FailureReason.IMAGE),
    ("InvalidImageName", FailureReason.IMAGE),
)
"""What a platform's words for why a replica is pending come to, the first that they hold counts."""


def _failures(
    case: Case, overdue: Mapping[str, float], generation: int, target: str
) -> list[ActuationFailed]:
    """What we wrote, and was not told of yet, whose replicas did not become ready in time."""
    if case.memory.written_at_s is None:
        return []
    said = {v.accelerator: v.pending_reason or "" for v in case.inventory.variants}
    return [
        ActuationFailed(
            server=case.server.name,
            generation=generation,
            target=target,
            asked=case.current,
            reason=next((r for word, r in _PENDING_FOR if word in said[name]), FailureReason.NOT_READY),
            message=f"on {name} a replica is pending for {case.now_s - since_s:.0f} s: {said[name] or 'no reason'}",
            failed_at_s=case.now_s,
        )
        for name, since_s in sorted(overdue.items())
        if name not in case.memory.given_up
    ]


def _profiles(fleet: FleetDeclared, server: Server) -> dict[str, ModelProfile]:
    return {p.accelerator: p for m in fleet.models if m.name == server.model for p in m.profiles}


def _startup_s(fleet: FleetDeclared, server: Server, inventory: InventoryObserved) -> float:
    """The longest start-up time of what the server runs on: learned, and while that is little no less than declared.

    A high percentile of a few starts lies too low, and a replica would be given up that is about to come.
    """
    learned = {s.accelerator: s for s in inventory.startup}
    held = {v.accelerator for v in inventory.variants if v.desired}
    profiles = _profiles(fleet, server)
    times_s = []
    for name in held or set(profiles):
        known = learned.get(name)
        if known is not None:
            times_s.append(known.p95_s)
        if known is None or known.samples < LEARNED_STARTS:
            times_s.append(startup_assumed_s(profiles[name]) if name in profiles else 0.0)
    return max(times_s, default=0.0)


def _decision(case: Case, gated: Gated, generation: int, now_s: float, writes: bool) -> DecisionMade:
    window = case.telemetry
    return DecisionMade(
        server=case.server.name,
        generation=generation,
        decided_at_s=now_s,
        current=case.current,
        raw=case.plan.allocations,
        gated=gated.target,
        verdict=gated.verdict,
        rule=gated.rule,
        reason=gated.reason[:4000],
        until_s=gated.until_s,
        evidence=gated.evidence,
        input_age_s=max(0.0, now_s - window.window_end_s) if window else None,
        dry_run=not writes,
    )


def _alerts(
    before: frozenset[tuple[str, str]], found: Mapping[tuple[str, str], str], now_s: float
) -> tuple[AlertRaised, ...]:
    """An alert when a fact begins, and one more, resolved, when it ends."""
    begun = [
        AlertRaised(kind=AlertKind(kind), subject=subject, message=text[:4000], raised_at_s=now_s)
        for (kind, subject), text in found.items()
        if (kind, subject) not in before
    ]
    ended = [
        AlertRaised(
            kind=AlertKind(kind), subject=subject, resolved=True, message="no longer", raised_at_s=now_s
        )
        for kind, subject in sorted(before - found.keys())
    ]
    return (*begun, *ended)


def _unavailable(
    state: State, fleet: FleetDeclared, settings: ActuatorSettings, now_s: float
) -> list[CapacityUnavailable]:
    """Accelerator types on which a replica is pending for longer than any start takes, once for each spell."""
    types = {a.name: a.type for a in fleet.accelerators}
    found: dict[str, CapacityUnavailable] = {}
    for server in fleet.servers:
        inventory = state.inventory.get(server.name)
        overdue = {} if inventory is None else _overdue_since_s(fleet, server, inventory, settings, now_s)
        for accelerator, since_s in overdue.items():
            kind = types.get(accelerator)
            if kind is None or state.unavailable_until_s.get(kind, now_s) > now_s:
                continue
            found[kind] = CapacityUnavailable(
                type=kind,
                since_s=since_s,
                until_s=now_s + settings.unavailable_s,
                reason=f"a replica of {server.name} has been pending for {now_s - since_s:.0f} s",
            )
    return list(found.values())


def _overdue_since_s(
    fleet: FleetDeclared,
    server: Server,
    inventory: InventoryObserved,
    settings: ActuatorSettings,
    now_s: float,
) -> dict[str, float]:
    """Accelerators on which a replica of the server is pending for longer than any start takes, and since when."""
    limit_s = min(2 * _startup_s(fleet, server, inventory), settings.pending_at_most_s)
    return {
        v.accelerator: v.pending_since_s
        for v in inventory.variants
        if v.pending and v.pending_since_s is not None and now_s - v.pending_since_s > limit_s
    }


def dump(state: State, key: str) -> bytes:
    """What must outlive a restart, by key: a server's memory, or that of the fleet."""
    if key == FLEET_KEY:
        kept = {
            "paused": sorted(state.paused),
            "fleet_paused": state.fleet_paused,
            "decided": state.decided,
            "alerted": sorted(state.alerted),
            "unavailable_until_s": dict(state.unavailable_until_s),
        }
        return json.dumps(kept).encode()
    memory = state.memory[key.removeprefix(SERVER)]
    asked = None if memory.asked is None else [a.model_dump(mode="json") for a in memory.asked]
    return json.dumps(vars(memory) | {"asked": asked}).encode()


def load(state: State, key: str, raw: bytes) -> State:
    """The state with a snapshot restored; raises ValueError for one that cannot be read."""
    try:
        kept = json.loads(raw)
        if key == FLEET_KEY:
            return replace(
                state,
                paused=frozenset(kept["paused"]),
                fleet_paused=bool(kept["fleet_paused"]),
                decided=int(kept["decided"]),
                alerted=frozenset((str(kind), str(subject)) for kind, subject in kept["alerted"]),
                unavailable_until_s={
                    str(kind): float(at) for kind, at in kept["unavailable_until_s"].items()
                },
            )
        asked = kept["asked"]
        memory = Memory(
            recommended=tuple((float(at), int(n)) for at, n in kept["recommended"]),
            direction=int(kept["direction"]),
            reversals=tuple(map(float, kept["reversals"])),
            moved_at_s=_time_s(kept["moved_at_s"]),
            asked=None if asked is None else tuple(Allocation.model_validate(a) for a in asked),
            written={str(name): int(n) for name, n in kept["written"].items()},
            intended={str(name): int(n) for name, n in kept["intended"].items()},
            written_at_s=_time_s(kept["written_at_s"]),
            intended_at_s=_time_s(kept["intended_at_s"]),
            # Snapshots of earlier versions have no more than this.
            released={str(name): float(at) for name, at in kept.get("released", {}).items()},
            panicked_at_s=_time_s(kept.get("panicked_at_s")),
            idle_since_s=_time_s(kept.get("idle_since_s")),
            given_up=tuple(map(str, kept.get("given_up", ()))),
        )
    except (KeyError, TypeError, AttributeError, ValidationError, ValueError) as error:
        raise ValueError(f"snapshot {key!r} cannot be read: {error}") from None
    return replace(state, memory={**state.memory, key.removeprefix(SERVER): memory})


def _time_s(value: float | None) -> float | None:
    return None if value is None else float(value)
