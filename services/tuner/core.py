"""The tuner's core: telemetry and the fleet in, parameters of every pair of model and accelerator out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from schemas.fleet import FleetDeclared, LawParameters, ModelProfile
from schemas.parameters import CalibrationProposed, ParametersEstimated
from schemas.telemetry import TelemetryObserved
from services.perfmodel.law import IterationLaw
from services.tuner.calibration import proposal
from services.tuner.estimator import Estimate, Estimator
from services.tuner.observation import Excluded, Observation, observations
from services.tuner.settings import TunerSettings

SNAPSHOT_VERSION = 2

Pair = tuple[str, str]


class Skipped(StrEnum):
    """Why a whole telemetry message was not used."""

    DUPLICATE = "duplicate"
    STALE = "stale"
    FUTURE = "future"
    NO_FLEET = "no_fleet"
    UNDECLARED = "undeclared"
    NO_REPLICAS = "no_replicas"


@dataclass(frozen=True)
class Applied:
    """The newest window of one server that was used."""

    window_end_s: float
    epoch: str


@dataclass(frozen=True)
class PairState:
    """What is known of one model on one accelerator.

    prior: declared parameters that it started from; None where there were none.
    estimator: the estimator's own state.
    applied: by server; part of the pair so that one snapshot restores both or neither.
    excluded: replica windows left out so far.
    learned_s: end of the newest window learned from, or when the prior was declared.
    proposed_s: when a sweep was last proposed; 0 for never.
    """

    law: str
    prior: LawParameters | None
    estimator: Any
    applied: Mapping[str, Applied] = field(default_factory=dict)
    excluded: int = 0
    learned_s: float = 0.0
    proposed_s: float = 0.0


@dataclass(frozen=True)
class State:
    """All pairs, and the fleet they are declared in; mappings are never changed in place."""

    fleet: FleetDeclared | None = None
    pairs: Mapping[Pair, PairState] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """The plug-ins and settings in use.

    laws: iteration laws by name.
    """

    estimator: Estimator[Any]
    laws: Mapping[str, IterationLaw]
    settings: TunerSettings


@dataclass(frozen=True)
class Outputs:
    """What a step produced.

    parameters: to publish, one for each pair that changed.
    proposals: sweeps for pairs that operation does not identify and that a declared server may use.
    changed: keys whose snapshots are due.
    dropped: keys whose snapshots are void, of pairs that are no longer declared.
    skipped, excluded: messages and replica windows that were not used, by reason.
    refused: declared parameters that cannot be used, and why.
    """

    parameters: tuple[ParametersEstimated, ...] = ()
    proposals: tuple[CalibrationProposed, ...] = ()
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    skipped: Mapping[Skipped, int] = field(default_factory=dict)
    excluded: Mapping[Excluded, int] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


def step(
    state: State,
    telemetry: Sequence[TelemetryObserved],
    fleet: FleetDeclared | None,
    now_s: float,
    setup: Setup,
) -> tuple[State, Outputs]:
    """Take a fleet, if there is a new one, and a cycle's telemetry, of any servers and in any order.

    All observations of a pair are given to its estimator at once, oldest window first. Telemetry of a pair
    that is not declared is skipped.
    """
    published: dict[Pair, ParametersEstimated] = {}
    changed: dict[Pair, None] = {}
    refused: list[str] = []
    dropped: tuple[Pair, ...] = ()
    pairs = dict(state.pairs)
    if fleet is not None and (state.fleet is None or fleet.revision != state.fleet.revision):
        dropped = _declare(pairs, fleet, published, changed, refused, setup)
        state = replace(state, fleet=fleet)

    skipped: Counter[Skipped] = Counter()
    excluded: Counter[Excluded] = Counter()
    gathered: dict[Pair, list[Observation]] = {}
    profiles = _profiles(state.fleet)
    for message in sorted(telemetry, key=lambda m: (m.window_end_s, m.server)):
        reason = _unusable(message, state.fleet, profiles, now_s, setup.settings)
        if reason is not None:
            skipped[reason] += 1
            continue
        _gather(message, profiles[message.model], pairs, gathered, changed, skipped, excluded, setup)

    for pair, seen in gathered.items():
        if seen:
            before = pairs[pair]
            learned, estimate = setup.estimator.update(before.estimator, seen, now_s)
            # A server whose windows come late must not make the estimate look older than the one before.
            learned_s = max(before.learned_s, seen[-1].window_end_s)
            pairs[pair] = replace(before, estimator=learned, learned_s=learned_s)
            if estimate is not None:
                published[pair] = _message(pair, pairs[pair], estimate, setup)
    served = set() if state.fleet is None else {server.model for server in state.fleet.servers}
    proposals = tuple(
        proposed
        for pair in gathered
        if pair in published
        and pair[0] in served
        and (proposed := _proposed(pair, pairs, published[pair], profiles, now_s, setup)) is not None
    )
    return replace(state, pairs=pairs), Outputs(
        parameters=tuple(published.values()),
        proposals=proposals,
        changed=tuple(key_of(pair) for pair in changed),
        dropped=tuple(key_of(pair) for pair in dropped),
        skipped=dict(skipped),
        excluded=dict(excluded),
        refused=tuple(refused),
    )


def key_of(pair: Pair) -> str:
    """The snapshot key of a pair: its model and accelerator as a JSON list."""
    return json.dumps(pair)


def dump(state: State, key: str, setup: Setup) -> bytes:
    """The snapshot of one pair.

    Raises KeyError for a key that is not in the state.
    """
    model, accelerator = json.loads(key)
    kept = state.pairs[model, accelerator]
    return json.dumps(
        {
            "version": SNAPSHOT_VERSION,
            "estimator": setup.estimator.name,
            "law": kept.law,
            "prior": None if kept.prior is None else kept.prior.model_dump(mode="json"),
            "state": setup.estimator.dump(kept.estimator).decode(),
            "applied": {name: [a.window_end_s, a.epoch] for name, a in kept.applied.items()},
            "excluded": kept.excluded,
            "learned_s": kept.learned_s,
            "proposed_s": kept.proposed_s,
        }
    ).encode()


def load(state: State, key: str, raw: bytes, setup: Setup) -> State:
    """The state with one pair restored.

    Raises ValueError where the snapshot cannot be read or is of another version, estimator or law.
    """
    try:
        model, accelerator = json.loads(key)
        read: dict[str, Any] = json.loads(raw)
        if (read["version"], read["estimator"]) != (SNAPSHOT_VERSION, setup.estimator.name):
            raise ValueError(f"version {read['version']} of estimator {read['estimator']}")
        if read["law"] not in setup.laws:
            raise ValueError(f"law {read['law']} is not installed")
        kept = PairState(
            law=read["law"],
            prior=None if read["prior"] is None else LawParameters.model_validate(read["prior"]),
            estimator=setup.estimator.load(read["state"].encode(), setup.laws[read["law"]]),
            applied={
                name: Applied(float(end_s), str(epoch)) for name, (end_s, epoch) in read["applied"].items()
            },
            excluded=int(read["excluded"]),
            learned_s=float(read["learned_s"]),
            proposed_s=float(read["proposed_s"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"snapshot {key} cannot be used: {error}") from None
    return replace(state, pairs={**state.pairs, (model, accelerator): kept})


def _declare(
    pairs: dict[Pair, PairState],
    fleet: FleetDeclared,
    published: dict[Pair, ParametersEstimated],
    changed: dict[Pair, None],
    refused: list[str],
    setup: Setup,
) -> tuple[Pair, ...]:
    """Start pairs that are new or declare other parameters than they started from; say which are gone."""
    declared = {(m.name, p.accelerator): p for m in fleet.models for p in m.profiles}
    gone = tuple(pair for pair in pairs if pair not in declared)
    for pair in gone:
        del pairs[pair]
    for pair, profile in declared.items():
        prior = profile.parameters
        before = pairs.get(pair)
        if before is not None and (prior is None or prior == before.prior):
            continue
        started = _started(pair, prior, fleet.declared_at_s, refused, setup)
        if started is None:
            continue
        pairs[pair] = replace(started, applied=before.applied) if before is not None else started
        changed[pair] = None
        estimate = setup.estimator.estimate(started.estimator)
        if estimate is not None:
            published[pair] = _message(pair, started, estimate, setup)
    return gone


def _started(
    pair: Pair, prior: LawParameters | None, declared_at_s: float, refused: list[str], setup: Setup
) -> PairState | None:
    """A pair at its prior; without one, or where it cannot be used, with nothing known. None without a law."""
    name = setup.settings.law if prior is None else prior.law
    law = setup.laws.get(name)
    where = f"{pair[0]} on {pair[1]}"
    if law is None:
        refused.append(f"{where}: law {name} is not installed; installed: {', '.join(sorted(setup.laws))}")
        return None
    if prior is not None and str(prior.law_version) != str(law.version):
        refused.append(f"{where}: parameters are of version {prior.law_version} of {name}, not {law.version}")
    elif prior is not None:
        try:
            started = setup.estimator.start(prior.values, law)
            return PairState(name, prior, started, learned_s=declared_at_s)
        except ValueError as error:
            refused.append(f"{where}: {error}")
    return PairState(name, prior, setup.estimator.start(None, law), learned_s=declared_at_s)


def _proposed(
    pair: Pair,
    pairs: dict[Pair, PairState],
    estimate: ParametersEstimated,
    profiles: Mapping[str, Mapping[str, ModelProfile]],
    now_s: float,
    setup: Setup,
) -> CalibrationProposed | None:
    """A sweep for a pair just learned from, if none was proposed lately."""
    kept, calibration = pairs[pair], setup.settings.calibration
    if now_s < kept.proposed_s + calibration.every_s:
        return None
    profile = profiles[pair[0]][pair[1]]
    found = proposal(estimate, setup.laws[kept.law], profile, calibration, now_s)
    if found is not None:
        pairs[pair] = replace(kept, proposed_s=now_s)
    return found


def _profiles(fleet: FleetDeclared | None) -> Mapping[str, Mapping[str, ModelProfile]]:
    models = () if fleet is None else fleet.models
    return {model.name: {p.accelerator: p for p in model.profiles} for model in models}


def _unusable(
    message: TelemetryObserved,
    fleet: FleetDeclared | None,
    profiles: Mapping[str, Mapping[str, ModelProfile]],
    now_s: float,
    settings: TunerSettings,
) -> Skipped | None:
    if fleet is None:
        return Skipped.NO_FLEET
    if message.model not in profiles:
        return Skipped.UNDECLARED
    if not message.replicas:
        return Skipped.NO_REPLICAS
    if message.window_end_s > now_s + settings.observation.max_ahead_s:
        return Skipped.FUTURE
    if message.window_end_s < now_s - settings.observation.max_age_s:
        return Skipped.STALE
    return None


def _gather(
    message: TelemetryObserved,
    profiles: Mapping[str, ModelProfile],
    pairs: dict[Pair, PairState],
    gathered: dict[Pair, list[Observation]],
    changed: dict[Pair, None],
    skipped: Counter[Skipped],
    excluded: Counter[Excluded],
    setup: Setup,
) -> None:
    """Add a message's observations to those of its pairs, if it is newer than what they have applied.

    A server that runs on two accelerators is applied to two pairs; each remembers for itself.
    """
    server, end_s = message.server, message.window_end_s
    fresh: set[str] = set()
    epochs: list[Applied] = []
    for accelerator in {r.accelerator: None for r in message.replicas}:
        kept = pairs.get((message.model, accelerator))
        before = None if kept is None else kept.applied.get(server)
        if before is None or before.window_end_s < end_s:
            fresh.add(accelerator)
        if before is not None:
            epochs.append(before)
    if not fresh:
        skipped[Skipped.DUPLICATE] += 1
        return
    previous = max(epochs, key=lambda a: a.window_end_s).epoch if epochs else None
    found, left_out = observations(message, profiles, setup.settings.observation, previous)
    excluded.update(left_out)
    for accelerator in sorted(fresh):
        pair = (message.model, accelerator)
        kept = pairs.get(pair)
        if kept is None:
            continue
        seen = [o for where, o in found if where == accelerator]
        present = sum(r.accelerator == accelerator for r in message.replicas)
        pairs[pair] = replace(
            kept,
            applied={**kept.applied, server: Applied(end_s, message.epoch)},
            excluded=kept.excluded + present - len(seen),
        )
        changed[pair] = None
        gathered.setdefault(pair, []).extend(seen)


def _message(pair: Pair, kept: PairState, estimate: Estimate, setup: Setup) -> ParametersEstimated:
    rejected = min(estimate.evidence.rejected + kept.excluded, 1_000_000)
    return ParametersEstimated(
        model=pair[0],
        accelerator=pair[1],
        law=kept.law,
        law_version=int(setup.laws[kept.law].version),
        values=dict(estimate.values),
        covariance=estimate.covariance,
        health=estimate.health,
        evidence=estimate.evidence.model_copy(update={"rejected": rejected}),
        estimator=setup.estimator.name,
        estimated_at_s=kept.learned_s,
    )
