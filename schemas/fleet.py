"""The fleet as its owner declares it: accelerators, models, service classes, servers, capacity, options.

Published whole as ``fleet.declared`` by the one configured authority. References between its parts are
checked here, so that no consumer meets a dangling name.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import (
    Contract,
    CostPerHour,
    Count,
    LawParametersValues,
    Name,
    Positive,
    Rate,
    Seconds,
    Share,
    Statistic,
    Tokens,
    UnixSeconds,
)


class Power(Contract):
    """Power draw of an accelerator, piecewise linear over its utilisation."""

    idle_w: Annotated[float, Field(ge=0)]
    """Watts when idle."""
    full_w: Annotated[float, Field(ge=0)]
    """Watts at full utilisation."""
    mid_w: Annotated[float, Field(ge=0)]
    """Watts at the utilisation of the bend."""
    mid_utilisation_share: Share
    """Utilisation at which the curve bends."""


class Accelerator(Contract):
    """One way of buying accelerators: a number of cards of one type as one unit."""

    name: Name
    """Its name, referred to by profiles, for example 4xA100."""
    type: Name
    """The type of card, which capacity is counted in, for example A100."""
    multiplicity: Positive = 1
    """Cards of the type in one unit."""
    cost_per_hour: CostPerHour
    """Cost of one unit per hour."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of one unit."""
    memory_bandwidth_gib_per_s: Annotated[float, Field(gt=0)] | None = None
    """Memory bandwidth of one unit."""
    power: Power | None = None
    """Power draw of one unit."""
    region: Name | None = None
    """Region or zone that it is in; quotas may name it."""
    interruption_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the time that a replica on it is expected to be lost, for spot capacity."""


class LawParameters(Contract):
    """Parameters of an iteration law. They are not portable between laws, nor between versions of one."""

    law: Name = "three-parameter"
    """Name of the iteration law."""
    law_version: Positive = 1
    """Version of the law."""
    values: LawParametersValues
    """Each parameter by name, in SI units, for example alpha_s."""


class ModelProfile(Contract):
    """How one model runs on one accelerator."""

    accelerator: Name
    """The accelerator's name."""
    accelerator_count: Positive = 1
    """Units of the accelerator that one replica takes."""
    max_batch: Positive = 256
    """Most requests that a replica of this profile may serve at once."""
    at_tokens: Positive | None = None
    """Mean output tokens that `max_batch` is meant for; with another mean it is scaled inversely to it."""
    token_budget: Positive = 8192
    """Most tokens computed in one engine iteration."""
    kv_tokens: Positive | None = None
    """Tokens that fit into a replica's KV cache; nothing when unknown."""
    parameters: LawParameters | None = None
    """Parameters known before service, from benchmarks; the tuner starts from them."""
    startup_s: Seconds | None = None
    """Expected time from creation to readiness of a replica, until it is learned."""


class Model(Contract):
    """A model and the accelerators that it may run on."""

    name: Name
    """The model's name."""
    profiles: tuple[ModelProfile, ...] = Field(min_length=1)
    """One entry for each usable accelerator."""


class Objective(Contract):
    """Objectives of one model within a service class; what is absent is not an objective."""

    model: Name
    """The model that the objectives are for."""
    ttft_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Time to first token."""
    itl_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Inter-token latency."""
    tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Generated tokens per second of one replica."""
    statistic: Statistic = Statistic.MEAN
    """Which value of the latency distribution must keep the objective."""


class ServiceClass(Contract):
    """A class of service: its priority and its objectives by model."""

    name: Name
    """The class's name."""
    priority: Annotated[int, Field(ge=1, le=100)]
    """1 is the most important, 100 the least."""
    objectives: tuple[Objective, ...] = ()
    """Objectives, one entry for each model."""
    forecast_quantile: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """Quantile of the forecast load that capacity is planned for."""
    violation_cost_per_hour: CostPerHour = 100.0
    """What it costs per hour to leave one request per second outside the objectives, where classes are weighed."""


class Server(Contract):
    """One inference server: a model offered to a service class."""

    name: Name
    """The server's name."""
    model: Name
    """The model that it serves."""
    service_class: Name
    """The class whose objectives it keeps."""
    min_replicas: Count = 1
    """Fewest replicas; 0 allows scaling to zero."""
    max_replicas: Positive | None = None
    """Most replicas."""
    max_batch: Positive | None = None
    """Batch limit pinned by the owner; otherwise the optimizer chooses it."""
    max_queue: Count = 128
    """Requests that may wait in one replica."""
    keep_accelerator: bool = False
    """Whether the accelerator in use must be kept."""
    nominal_rate_rps: Rate | None = None
    """Expected load before any is measured."""
    nominal_input_tokens: Tokens | None = None
    """Expected input tokens of a request before any is measured."""
    nominal_output_tokens: Tokens | None = None
    """Expected output tokens of a request before any is measured."""
    paused: bool = False
    """Whether Stoker only advises on this server."""
    tenant: Name | None = None
    """Who it belongs to; quotas may name it."""
    min_served_share: Share = 0.0
    """Least share of its planned load that best effort may carry; where less fits, it gets nothing."""


class DeclaredCapacity(Contract):
    """Cards of one type that may be used."""

    type: Name
    """The accelerator type."""
    count: Count
    """Cards of the type."""


class Quota(Contract):
    """The most cards that some servers may use together; what it does not name, it counts all of."""

    name: Name
    """Its name."""
    cards: Count
    """Most cards."""
    tenant: Name | None = None
    """Only servers of this tenant."""
    region: Name | None = None
    """Only accelerators in this region."""
    type: Name | None = None
    """Only cards of this type."""


class SaturationPolicy(StrEnum):
    """What is done for servers that do not fit: nothing, or best effort, for the greedy solver in this order.

    Exact solvers give best effort so that the most demand is carried, whatever the order is called.
    """

    NONE = "None"
    PRIORITY_EXHAUSTIVE = "PriorityExhaustive"
    PRIORITY_ROUND_ROBIN = "PriorityRoundRobin"
    ROUND_ROBIN = "RoundRobin"


class Served(StrEnum):
    """What is maximised, class by class, of what is served within its objectives."""

    DEMAND = "demand"
    SERVERS = "servers"


class Ranking(StrEnum):
    """How service and cost are traded: class after class and then cost, or what is not served at its own cost."""

    LEXICOGRAPHIC = "lexicographic"
    WEIGHTED = "weighted"


class BatchChoice(StrEnum):
    """Which batch limits are candidates of a server whose owner pins none."""

    PROFILE = "profile"
    SEARCH = "search"


class OptimizerOptions(Contract):
    """How the fleet is optimised."""

    solver: Name = "auto"
    """Name of the solver plug-in."""
    unlimited: bool = False
    """Whether capacity is taken as without limit."""
    saturation_policy: SaturationPolicy = SaturationPolicy.PRIORITY_EXHAUSTIVE
    """What is done for servers that do not fit."""
    delayed_best_effort: bool = False
    """Whether best effort comes after every class rather than after each."""
    time_limit_s: Annotated[float, Field(gt=0, le=3600)] = 2.0
    """Longest time that a solver may take."""
    budget_per_hour: CostPerHour | None = None
    """Most that the whole fleet may cost."""
    power_limit_w: Annotated[float, Field(ge=0)] | None = None
    """Most that the whole fleet may draw, each replica counted at full utilisation."""
    maximize: Served = Served.DEMAND
    """What of a class counts when not everything fits: its requests per second, or its number of servers."""
    ranking: Ranking = Ranking.LEXICOGRAPHIC
    """Whether classes come one after the other or are weighed against cost, by solvers that can."""
    heterogeneous: bool = False
    """Whether a server may be served from several accelerators at once, by solvers that can."""
    batch: BatchChoice = BatchChoice.PROFILE
    """Batch limits that are candidates: that of the profile, or also the smallest that is nearly as good."""


class FleetDeclared(Contract):
    """The whole fleet in one revision."""

    declared_at_s: UnixSeconds
    """When this revision was read."""
    revision: Name
    """Digest of the content; the same content has the same revision."""
    accelerators: tuple[Accelerator, ...]
    """Every accelerator that may be used."""
    models: tuple[Model, ...]
    """Every model served."""
    service_classes: tuple[ServiceClass, ...]
    """Every class of service."""
    servers: tuple[Server, ...]
    """Every inference server."""
    capacity: tuple[DeclaredCapacity, ...] = ()
    """Cards by type; a type that is absent has none unless its capacity is observed."""
    quotas: tuple[Quota, ...] = ()
    """Limits on the cards that some servers use together."""
    optimizer: OptimizerOptions = OptimizerOptions()
    """Options of the optimizer."""

    @model_validator(mode="after")
    def _names_are_unique_and_references_exist(self) -> "FleetDeclared":
        accelerators = _unique("accelerators", (a.name for a in self.accelerators))
        models = _unique("models", (m.name for m in self.models))
        classes = _unique("service_classes", (c.name for c in self.service_classes))
        _unique("servers", (s.name for s in self.servers))
        _unique("capacity", (c.type for c in self.capacity))
        _unique("quotas", (q.name for q in self.quotas))
        for i, model in enumerate(self.models):
            where = f"models[{i}] ({model.name}).profiles"
            _unique(where, (p.accelerator for p in model.profiles))
            for profile in model.profiles:
                _exists(f"{where}.accelerator", profile.accelerator, accelerators)
        for i, service_class in enumerate(self.service_classes):
            where = f"service_classes[{i}] ({service_class.name}).objectives"
            _unique(where, (o.model for o in service_class.objectives))
            for objective in service_class.objectives:
                _exists(f"{where}.model", objective.model, models)
        for i, quota in enumerate(self.quotas):
            where = f"quotas[{i}] ({quota.name})"
            for key, known in (
                ("tenant", {s.tenant for s in self.servers if s.tenant}),
                ("region", {a.region for a in self.accelerators if a.region}),
                ("type", {a.type for a in self.accelerators}),
            ):
                if (named := getattr(quota, key)) is not None:
                    _exists(f"{where}.{key}", named, known)
        for i, server in enumerate(self.servers):
            where = f"servers[{i}] ({server.name})"
            _exists(f"{where}.model", server.model, models)
            _exists(f"{where}.service_class", server.service_class, classes)
            if server.max_replicas is not None and server.max_replicas < server.min_replicas:
                raise ValueError(
                    f"{where}.max_replicas is {server.max_replicas}: expected at least min_replicas, "
                    f"which is {server.min_replicas}"
                )
        return self


def objective_of(fleet: FleetDeclared, server: Server) -> Objective:
    """The objectives of a server: those of its class for its model, or none at all."""
    for service_class in fleet.service_classes:
        if service_class.name == server.service_class:
            for objective in service_class.objectives:
                if objective.model == server.model:
                    return objective
    return Objective(model=server.model)


def startup_assumed_s(profile: ModelProfile) -> float:
    """Start-up time to assume before any is learned: the declared one, else two minutes."""
    return profile.startup_s if profile.startup_s is not None else 120.0


def _unique(where: str, names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where}: {name!r} occurs twice; names must be unique")
        seen.add(name)
    return seen


def _exists(where: str, name: str, known: set[str]) -> None:
    if name not in known:
        listed = ", ".join(sorted(known)) or "nothing"
        raise ValueError(f"{where} is {name!r}, which is not declared; declared: {listed}")
