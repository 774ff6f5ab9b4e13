"""Candidates of a legacy system exactly as the reference makes them, its faults included.

What is kept because recorded solutions depend on it, and nowhere else: replicas are sized on the throughput
that is left after blocking, and on the rate that a TPS target implies instead of the offered one; a server
without load has latencies and a largest rate that no queue gave; a minimum may be negative; the file's cost
of what a server has goes into the values; a server without load and minimum is unknown to the limited modes.
All quantities are rounded to single precision in the reference's order of operations, in cents per hour.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from schemas.base import Statistic
from schemas.fleet import OptimizerOptions, SaturationPolicy
from schemas.plan import Prediction
from services.legacy.form import LegacyProfile, LegacyServer, LegacySystem, LegacyTarget
from services.optimizer.problem import Candidate, Held, Problem, ReplicaCase, ServerProblem
from services.optimizer.sizing import Latencies, Laws, latencies, size
from services.perfmodel.law import DEFAULT_TOKEN_BUDGET
from services.perfmodel.queueing import QueueingModel

MS_PER_S = 1000.0
LAW = "three-parameter"
PENALTY = np.float32(0.1)


@dataclass(frozen=True)
class _Pair:
    """A server that the reference sizes on one profile; the rate is that of the whole server per second."""

    server: LegacyServer
    profile: LegacyProfile
    case: ReplicaCase
    rate_rps: float


def compat_problem(
    system: LegacySystem, options: OptimizerOptions, model: QueueingModel, laws: Laws
) -> Problem:
    """The reference's problem: every server it finds candidates for, values and costs in cents per hour.

    options: those of the solve; `unlimited` decides what becomes of servers without load and minimum.
    """
    pairs, found = [], {name: [] for name in system.servers}  # type: tuple[list[_Pair], dict[str, list[Candidate]]]
    for server in system.servers.values():
        service_class = system.classes.get(server.service_class)
        target = service_class.targets.get(server.model) if service_class else None
        if target is None or server.rate_per_min < 0:
            continue
        for profile in _profiles(system, server):
            assert profile.parameters is not None
            if server.rate_per_min == 0:
                if server.min_replicas or options.unlimited:
                    found[server.name].append(_idle(system, server, profile))
            elif any(profile.parameters):
                pairs.append(_Pair(server, profile, _case(server, profile, target), _rate(server, target)))
    for candidate in _sized(system, pairs, model, laws):
        found[candidate.server].append(candidate)
    return Problem(
        servers=tuple(
            ServerProblem(
                server=name,
                priority=system.classes[system.servers[name].service_class].priority,
                candidates=tuple(sorted(candidates, key=Candidate.rank)),
                current=_held(system.servers[name]),
                min_replicas=max(0, system.servers[name].min_replicas),
                max_replicas=None,
                rate_rps=system.servers[name].rate_per_min / 60.0,
            )
            for name, candidates in found.items()
            if candidates
        ),
        capacity=None if options.unlimited else dict(system.capacity),
        budget_per_hour=None,
        options=options,
        now_s=0.0,
    )


def options_of(system: LegacySystem) -> OptimizerOptions:
    """The options that the system's own ask for."""
    return OptimizerOptions(
        unlimited=system.options.unlimited,
        saturation_policy=SaturationPolicy(system.options.saturation_policy),
        delayed_best_effort=system.options.delayed_best_effort,
    )


def _profiles(system: LegacySystem, server: LegacyServer) -> list[LegacyProfile]:
    usable = [p for p in system.profiles.values() if p.model == server.model and p.parameters is not None]
    if server.keep_accelerator and server.accelerator:
        return [p for p in usable if p.accelerator == server.accelerator]
    return usable


def _case(server: LegacyServer, profile: LegacyProfile, target: LegacyTarget) -> ReplicaCase:
    assert profile.parameters is not None
    return ReplicaCase(
        law=LAW,
        parameters=tuple(value / MS_PER_S for value in profile.parameters),
        input_tokens=server.input_tokens,
        output_tokens=max(1.0, server.output_tokens),
        max_batch=_batch(server, profile),
        max_queue=server.max_queue,
        token_budget=DEFAULT_TOKEN_BUDGET,
        kv_tokens=None,
        ttft_s=target.ttft_ms / MS_PER_S or None,
        itl_s=target.itl_ms / MS_PER_S or None,
        tokens_per_s=target.tps or None,
        statistic=Statistic.MEAN,
    )


def _batch(server: LegacyServer, profile: LegacyProfile) -> int:
    if server.max_batch or server.rate_per_min == 0:
        return server.max_batch or max(1, profile.max_batch)
    return max(1, profile.max_batch * profile.at_tokens // max(1, int(server.output_tokens)))


def _rate(server: LegacyServer, target: LegacyTarget) -> float:
    """Requests per second that replicas are counted for; a TPS target replaces what is offered."""
    if target.tps:
        return float(np.float32(target.tps) / np.float32(max(1.0, server.output_tokens)))
    return float(np.float32(server.rate_per_min) / np.float32(60.0))


def _sized(system: LegacySystem, pairs: list[_Pair], model: QueueingModel, laws: Laws) -> list[Candidate]:
    sizes = size([p.case for p in pairs], model, laws)
    asked = [(p.case, sizes[p.case].max_rate_rps) for p in pairs if sizes[p.case].max_rate_rps > 0]
    carried = latencies(asked, model, laws)
    counted = []
    for pair in pairs:
        at_most = carried.get((pair.case, sizes[pair.case].max_rate_rps))
        if at_most is None or at_most.throughput_rps <= 0:
            continue
        rate = np.float32(at_most.throughput_rps)
        needed = pair.rate_rps / float(rate)
        counted.append((pair, float(rate), max(math.ceil(needed), pair.server.min_replicas)))
    answers = latencies([(p.case, p.rate_rps / n) for p, _, n in counted], model, laws)
    return [
        _candidate(
            system,
            pair.server,
            pair.profile,
            pair.case,
            replicas,
            rate,
            sizes[pair.case].binding,
            _prediction(answers[(pair.case, pair.rate_rps / replicas)], pair.rate_rps / replicas / rate),
        )
        for pair, rate, replicas in counted
    ]


def _idle(system: LegacySystem, server: LegacyServer, profile: LegacyProfile) -> Candidate:
    """Replicas for the minimum alone; without one, an allocation of nothing on no accelerator."""
    batch = np.float32(_batch(server, profile))
    alpha, beta, gamma = (np.float32(value) for value in profile.parameters or ())
    decode = alpha + beta
    prefill = decode + gamma * batch
    longest = alpha + beta * batch + prefill
    rate = float(batch / longest) * MS_PER_S if longest > 0 else math.inf
    case = _case(server, profile, LegacyTarget(server.model, 0.0, 0.0, 0.0))
    times = Latencies(float(prefill) / MS_PER_S, float(decode) / MS_PER_S, 0.0, 0.0)
    made = _candidate(
        system, server, profile, case, server.min_replicas, rate, "minimum", _prediction(times, 0.0)
    )
    if server.min_replicas:
        return made
    return replace(made, accelerator="", value=_value(server, "", np.float32(0.0)))


def _candidate(
    system: LegacySystem,
    server: LegacyServer,
    profile: LegacyProfile,
    case: ReplicaCase,
    replicas: int,
    max_rate_rps: float,
    binding: str,
    predicted: Prediction | None,
) -> Candidate:
    accelerator = system.accelerators[profile.accelerator]
    per_replica = np.float32(profile.count) * np.float32(accelerator.cost)
    return Candidate(
        server=server.name,
        accelerator=accelerator.name,
        type=accelerator.type,
        accelerator_count=profile.count,
        units_per_replica=profile.count * accelerator.multiplicity,
        max_batch=case.max_batch,
        max_rate_rps=max_rate_rps,
        needed_replicas=float(replicas),
        replicas=replicas,
        served_share=1.0,
        cost_per_replica_per_hour=float(per_replica),
        value=_value(server, accelerator.name, np.float32(replicas) * per_replica),
        binding=binding,
        case=case,
        predicted=predicted,
    )


def _value(server: LegacyServer, accelerator: str, cost: np.float32) -> float:
    before = np.float32(server.cost)
    if server.accelerator == accelerator:
        unchanged = server.replicas * 1.0 == 0 and cost == 0
        return 0.0 if unchanged else float(cost - before)
    return float(PENALTY * (before + cost) + (cost - before))


def _held(server: LegacyServer) -> Held | None:
    return Held(server.accelerator, server.replicas, server.cost) if server.accelerator else None


def _prediction(times: Latencies | None, utilization: float) -> Prediction | None:
    if times is None:
        return None
    return Prediction(
        ttft_s=times.ttft_s,
        itl_s=times.itl_s,
        wait_s=max(0.0, times.wait_s),
        utilization_share=utilization,
        objectives_met=True,
    )
