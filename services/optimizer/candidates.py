"""From what is known to the problem that solvers see: the candidates of every server, sized in one call."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from schemas.fleet import BatchChoice, FleetDeclared, ModelProfile, Server, objective_of
from schemas.plan import Prediction, ServerStatus
from services.optimizer.holdings import (
    Catalogue,
    asked_total,
    current_allocation,
    declared_quotas,
    platform_quotas,
    usable_cards,
    variants,
)
from services.optimizer.load import Load, planned_load
from services.optimizer.planning import OptimizerSettings
from services.optimizer.problem import (
    Candidate,
    Held,
    Problem,
    ReplicaCase,
    ServerProblem,
    transition_value,
)
from services.optimizer.sizing import Latencies, Laws, Size, latencies, size, smallest_batches
from services.optimizer.state import State
from services.perfmodel.queueing import QueueingModel

# The contracts' largest count and cost per hour; what exceeds them is no candidate.
MOST_REPLICAS = 1_000_000
MOST_COST_PER_HOUR = 1e12
LONGEST_LATENCY_S = 86_400.0
# Replicas are rounded up after rates were found to about this relative precision.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Excluded:
    """Why a server has no candidates."""

    status: ServerStatus
    reason: str


@dataclass(frozen=True)
class Assembly:
    """The problem and, by server, everything that plans say beside it.

    excluded: servers with nothing to choose, which keep what they have.
    dropped: why accelerators are no candidates of a server.
    """

    problem: Problem
    loads: Mapping[str, Load]
    excluded: Mapping[str, Excluded]
    dropped: Mapping[str, tuple[str, ...]]


@dataclass
class Memory:
    """What servers were answered with and on which inputs, so that those whose inputs stay are not asked again.

    It holds nothing that could change an answer: without it the same candidates are only found more slowly.
    """

    _known: dict[str, "tuple[tuple[object, ...], _Outlook]"] = field(default_factory=dict)

    def recall(self, server: str, inputs: tuple[object, ...]) -> "_Outlook | None":
        """What a server was answered with on the same inputs."""
        known = self._known.get(server)
        return known[1] if known is not None and known[0] == inputs else None

    def keep(self, known: "dict[str, tuple[tuple[object, ...], _Outlook]]") -> None:
        """Replaces all that is remembered."""
        self._known = known


@dataclass(frozen=True)
class _Option:
    server: Server
    profile: ModelProfile
    case: ReplicaCase
    parameters_at_s: float | None


@dataclass
class _Outlook:
    """One server on its way to candidates or to exclusion. quotas: by accelerator, the platform's for it."""

    server: Server
    load: Load
    current: Held | None
    options: list[_Option]
    candidates: list[Candidate]
    dropped: list[str]
    excluded: Excluded | None = None
    inputs: tuple[object, ...] = ()
    quotas: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def assemble(
    state: State,
    fleet: FleetDeclared,
    model: QueueingModel,
    laws: Laws,
    settings: OptimizerSettings,
    now_s: float,
    memory: Memory | None = None,
) -> Assembly:
    """The problem of the whole fleet. What is wrong with one server excludes that server only.

    memory: of the assembly before; what did not change since is taken from it.
    """
    catalogue = Catalogue(fleet)
    memory = memory or Memory()
    outlooks = [
        _outlook(state, fleet, catalogue, server, model, laws, settings, now_s, memory)
        for server in fleet.servers
    ]
    fresh = [o for o in outlooks if o.options and not o.candidates and o.excluded is None]
    if fleet.optimizer.batch is BatchChoice.SEARCH:
        _add_smaller_batches(fresh, model, laws)
    sizes = size([o.case for outlook in fresh for o in outlook.options], model, laws)
    for outlook in fresh:
        _add_candidates(outlook, catalogue, sizes)
    _add_predictions(fresh, model, laws)
    memory.keep({o.server.name: (o.inputs, o) for o in outlooks})

    holding = [o.server for o in outlooks if o.excluded]
    options = fleet.optimizer
    budget = options.budget_per_hour
    problem = Problem(
        servers=tuple(
            ServerProblem(
                server=o.server.name,
                priority=catalogue.classes[o.server.service_class].priority,
                candidates=tuple(sorted(o.candidates, key=Candidate.rank)),
                current=o.current,
                min_replicas=o.server.min_replicas,
                max_replicas=o.server.max_replicas,
                rate_rps=o.load.inputs.rate_rps or 0.0,
                tenant=o.server.tenant or "",
                # A server without load still has its least replicas to get.
                violation_cost_per_hour=catalogue.classes[o.server.service_class].violation_cost_per_hour
                * (o.load.inputs.rate_rps or 1.0),
                min_served_share=o.server.min_served_share,
            )
            for o in outlooks
            if o.candidates
        ),
        capacity=None
        if options.unlimited
        else usable_cards(state, fleet, catalogue, holding, settings, now_s),
        budget_per_hour=None
        if budget is None
        else max(0.0, budget - asked_total(state, holding, catalogue.cost_per_replica)),
        options=options,
        now_s=now_s,
        power_limit_w=None
        if options.power_limit_w is None
        else max(0.0, options.power_limit_w - asked_total(state, holding, catalogue.power_per_replica_w)),
        quotas=declared_quotas(state, fleet.quotas, catalogue, holding),
        platform_quotas={}
        if options.unlimited
        else platform_quotas(state, catalogue, holding, settings, now_s),
    )
    return Assembly(
        problem,
        {o.server.name: o.load for o in outlooks},
        {o.server.name: o.excluded for o in outlooks if o.excluded},
        {o.server.name: tuple(o.dropped) for o in outlooks},
    )


def batch_limit(server: Server, profile: ModelProfile, output_tokens: float) -> int:
    """The batch limit of a candidate: pinned by the owner, else the most that the profile allows.

    A profile's limit may be meant for a number of output tokens; other lengths scale it inversely.
    """
    if server.max_batch or profile.at_tokens is None or output_tokens <= 0:
        return server.max_batch or profile.max_batch
    return max(1, int(profile.max_batch * profile.at_tokens // output_tokens))


def predict(
    asked: Sequence[tuple[Candidate, float, int]], model: QueueingModel, laws: Laws
) -> list[Prediction | None]:
    """Performance of so many replicas of a candidate that share a rate in requests per second.

    None where there are no replicas to share it or the performance model has no finite answer.
    """
    questions = [(c.case, rate / replicas) for c, rate, replicas in asked if replicas > 0]
    answers = latencies(questions, model, laws)
    return [
        _prediction(c, rate / replicas, answers[(c.case, rate / replicas)]) if replicas > 0 else None
        for c, rate, replicas in asked
    ]


def _prediction(candidate: Candidate, rate_rps: float, times: Latencies | None) -> Prediction | None:
    if times is None:
        return None
    return Prediction(
        ttft_s=min(times.ttft_s, LONGEST_LATENCY_S),
        itl_s=min(times.itl_s, LONGEST_LATENCY_S),
        wait_s=min(times.wait_s, LONGEST_LATENCY_S),
        utilization_share=rate_rps / candidate.max_rate_rps,
        objectives_met=rate_rps <= candidate.max_rate_rps * (1.0 + ROUNDING),
    )


def _outlook(
    state: State,
    fleet: FleetDeclared,
    catalogue: Catalogue,
    server: Server,
    model: QueueingModel,
    laws: Laws,
    settings: OptimizerSettings,
    now_s: float,
    memory: Memory,
) -> _Outlook:
    load = planned_load(state, fleet, server, settings, now_s)
    current = current_allocation(state, catalogue, server)
    quotas = {name: variant.quotas for name, variant in variants(state, server).items()}
    inputs = (
        (server, fleet.accelerators, catalogue.models[server.model], objective_of(fleet, server)),
        (load.inputs.rate_rps, load.inputs.input_tokens, load.inputs.output_tokens, load.missing),
        (load.raise_only, current, quotas, fleet.optimizer.batch, model.name),
        [
            state.parameters.get((server.model, p.accelerator))
            for p in catalogue.models[server.model].profiles
        ],
    )
    if known := memory.recall(server.name, inputs):
        return replace(known, load=load)
    outlook = _Outlook(server, load, current, [], [], [], inputs=inputs, quotas=quotas)
    if load.missing:
        outlook.excluded = Excluded(ServerStatus.NO_LOAD, load.missing)
        return outlook
    objective = objective_of(fleet, server)
    predicted = {s.value for s in model.capabilities.statistics}
    if objective.statistic.value not in predicted:
        listed = ", ".join(sorted(predicted))
        outlook.excluded = Excluded(
            ServerStatus.INFEASIBLE,
            f"its objectives are on {objective.statistic.value}, which performance model {model.name} "
            f"does not predict; it predicts {listed}",
        )
        return outlook
    keep = current.accelerator if current and (server.keep_accelerator or load.raise_only) else None
    for profile in catalogue.models[server.model].profiles:
        if keep is not None and profile.accelerator != keep:
            continue
        law, values, estimated_at_s = _parameters(state, server, profile, laws, outlook.dropped)
        if law is None:
            continue
        case = ReplicaCase(
            law=law,
            parameters=values,
            input_tokens=load.inputs.input_tokens or 0.0,
            # An engine generates at least one token for every request that it answers.
            output_tokens=max(1.0, load.inputs.output_tokens or 0.0),
            max_batch=batch_limit(server, profile, load.inputs.output_tokens or 0.0),
            max_queue=server.max_queue,
            token_budget=profile.token_budget,
            kv_tokens=profile.kv_tokens,
            ttft_s=objective.ttft_s,
            itl_s=objective.itl_s,
            tokens_per_s=objective.tokens_per_s,
            statistic=objective.statistic,
        )
        outlook.options.append(_Option(server, profile, case, estimated_at_s))
    if not outlook.options:
        why = "; ".join(outlook.dropped) or f"its model has no profile for {keep}, which it must keep"
        outlook.excluded = Excluded(ServerStatus.NO_PARAMETERS, why)
    return outlook


def _parameters(
    state: State, server: Server, profile: ModelProfile, laws: Laws, dropped: list[str]
) -> tuple[str | None, tuple[float, ...], float | None]:
    """Law, values in the law's order, and time of the first usable set: the estimated, else the declared."""
    estimated = state.parameters.get((server.model, profile.accelerator))
    for source, known, at_s in (
        ("estimated", estimated, estimated.estimated_at_s if estimated else None),
        ("declared", profile.parameters, None),
    ):
        if known is None:
            continue
        law = laws.get(known.law)
        if law is None or law.version != str(known.law_version):
            reason = f"are of law {known.law} version {known.law_version}, which is not installed"
        elif set(known.values) != set(law.parameter_names):
            reason = (
                f"are {', '.join(sorted(known.values))}, but {known.law} has {', '.join(law.parameter_names)}"
            )
        elif not any(known.values.values()):
            reason = "are all zero"
        else:
            return known.law, tuple(known.values[name] for name in law.parameter_names), at_s
        dropped.append(f"{profile.accelerator}: {source} parameters {reason}")
    if estimated is None and profile.parameters is None:
        dropped.append(f"{profile.accelerator}: no parameters, neither estimated nor declared")
    return None, (), None


def _add_smaller_batches(outlooks: Sequence[_Outlook], model: QueueingModel, laws: Laws) -> None:
    """One more option where the owner pins no batch limit: the smallest that is nearly as good."""
    free = [(o, option) for o in outlooks for option in o.options if not option.server.max_batch]
    batches = smallest_batches([option.case for _, option in free], model, laws)
    for outlook, option in free:
        smaller = batches[option.case]
        if 0 < smaller < option.case.max_batch:
            outlook.options.append(replace(option, case=replace(option.case, max_batch=smaller)))


def _add_candidates(outlook: _Outlook, catalogue: Catalogue, sizes: Mapping[ReplicaCase, Size]) -> None:
    for option in outlook.options:
        found = sizes[option.case]
        accelerator = option.profile.accelerator
        request, memory = option.case.input_tokens + option.case.output_tokens, option.case.kv_tokens
        if memory is not None and request > memory:
            outlook.dropped.append(
                f"{accelerator}: its KV memory holds {memory} tokens, a request of the mean lengths has "
                f"{request:.6g}"
            )
        elif found.refused:
            outlook.dropped.append(f"{accelerator}: {found.refused}")
        elif found.max_rate_rps <= 0:
            outlook.dropped.append(f"{accelerator}: no rate keeps its objectives, {found.binding} stops it")
        else:
            candidate = _candidate(option, outlook, catalogue, found)
            if candidate:
                outlook.candidates.append(candidate)
            else:
                outlook.dropped.append(f"{accelerator}: it would take more than can be counted")
    if outlook.options and not outlook.candidates:
        outlook.excluded = Excluded(ServerStatus.INFEASIBLE, "; ".join(outlook.dropped))


def _candidate(option: _Option, outlook: _Outlook, catalogue: Catalogue, found: Size) -> Candidate | None:
    server, profile, current = option.server, option.profile, outlook.current
    accelerator = catalogue.accelerators[profile.accelerator]
    rate = outlook.load.inputs.rate_rps or 0.0
    # Replicas that come and go carry less than replicas that stay.
    max_rate_rps = found.max_rate_rps * (1.0 - accelerator.interruption_share)
    needed = rate / max_rate_rps
    floor = server.min_replicas
    if outlook.load.raise_only and current:
        floor = max(floor, current.replicas)
    most = MOST_REPLICAS if server.max_replicas is None else server.max_replicas
    cost = profile.accelerator_count * accelerator.cost_per_hour
    if needed > MOST_REPLICAS:
        return None
    for_rate = max(math.ceil(needed * (1.0 - ROUNDING)), 1 if rate > 0 else 0)
    replicas = min(max(for_rate, floor), most)
    if replicas * cost > MOST_COST_PER_HOUR:
        return None
    if replicas < for_rate:
        binding, served = "maximum", replicas / needed
    else:
        binding, served = ("minimum" if floor > for_rate or rate == 0 else found.binding), 1.0
    return Candidate(
        server=server.name,
        accelerator=accelerator.name,
        type=accelerator.type,
        accelerator_count=profile.accelerator_count,
        units_per_replica=profile.accelerator_count * accelerator.multiplicity,
        max_batch=option.case.max_batch,
        max_rate_rps=max_rate_rps,
        needed_replicas=needed,
        replicas=replicas,
        served_share=served,
        cost_per_replica_per_hour=cost,
        value=transition_value(accelerator.name, replicas * cost, current),
        binding=binding,
        case=option.case,
        region=accelerator.region or "",
        power_w=profile.accelerator_count * accelerator.power.full_w if accelerator.power else 0.0,
        quotas=outlook.quotas.get(accelerator.name, ()),
        held=current,
        parameters_at_s=option.parameters_at_s,
    )


def _add_predictions(outlooks: Iterable[_Outlook], model: QueueingModel, laws: Laws) -> None:
    asked = [
        (c, o.load.inputs.rate_rps or 0.0, replicas)
        for o in outlooks
        for c in o.candidates
        for replicas in (c.replicas, c.replicas - 1)
    ]
    answers = iter(predict(asked, model, laws))
    for outlook in outlooks:
        outlook.candidates = [
            replace(c, predicted=next(answers), predicted_one_fewer=next(answers)) for c in outlook.candidates
        ]
