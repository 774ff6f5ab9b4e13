"""The topic table. Streams, consumers, permissions, the AsyncAPI document and the README derive from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from schemas.actuation import ActuationApplied, ActuationFailed
from schemas.alert import AlertRaised
from schemas.base import Contract
from schemas.decision import DecisionMade
from schemas.fleet import FleetDeclared
from schemas.forecast import ForecastIssued
from schemas.parameters import CalibrationProposed, ParametersEstimated
from schemas.plan import PlanIssued, PlanProposed
from schemas.request import (
    ExplainAnswered,
    ExplainRequested,
    ForecastAnswered,
    ForecastRequested,
    ParametersAnswered,
    ParametersRequested,
    PauseAnswered,
    PauseRequested,
    PerformanceAnswered,
    PerformanceRequested,
    SolveAnswered,
    SolveRequested,
    StatusAnswered,
    StatusRequested,
)
from schemas.subjects import encode_token, partition_of
from schemas.telemetry import CapacityObserved, CapacityUnavailable, InventoryObserved, TelemetryObserved

ROOT = "stoker.v1"
MAX_MESSAGE_BYTES = 900 * 1024


class Stream(StrEnum):
    """Where messages of a topic are kept."""

    STATE = "STATE"
    TELEMETRY = "TELEMETRY"
    DECISIONS = "DECISIONS"
    DLQ = "DLQ"


class Delivery(StrEnum):
    """What a consumer needs of a topic: every message, or only the newest of each subject."""

    EVERY = "every"
    NEWEST = "newest"


@dataclass(frozen=True)
class Topic:
    """One row of the table.

    `keys` name the fields of the payload that end the subject; `as_of` is the field that says which moment it
    speaks of.
    """

    name: str
    keys: tuple[str, ...]
    payload: type[Contract]
    as_of: str
    stream: Stream
    publishers: tuple[str, ...]
    consumers: Mapping[str, Delivery]
    summary: str

    @property
    def prefix(self) -> str:
        """The subject without its keys."""
        return f"{ROOT}.{self.name}"

    @property
    def filter(self) -> str:
        """The subject that matches every message of the topic."""
        return ".".join((self.prefix, *("*" for _ in self.keys)))

    @property
    def address(self) -> str:
        """The subject with its keys in braces, as AsyncAPI writes it."""
        return ".".join((self.prefix, *(f"{{{key}}}" for key in self.keys)))

    def as_of_s(self, payload: Contract) -> float:
        """The moment that a payload speaks of, Unix seconds."""
        return float(getattr(payload, self.as_of))

    def subject(self, payload: Contract) -> str:
        """The one subject that a payload belongs to."""
        return ".".join((self.prefix, *(encode_token(_key(payload, key)) for key in self.keys)))


@dataclass(frozen=True)
class Verb:
    """One question that a service answers."""

    service: str
    name: str
    request: type[Contract]
    reply: type[Contract]
    summary: str

    @property
    def subject(self) -> str:
        """The subject to ask on."""
        return f"{ROOT}.svc.{self.service}.{self.name}"


def _key(payload: Contract, key: str) -> str:
    if key == "partition":
        return partition_of(str(getattr(payload, "model")))  # noqa: B009 - contracts have no common field
    return str(getattr(payload, key))


def _to(every: str = "", newest: str = "") -> Mapping[str, Delivery]:
    return MappingProxyType(
        dict.fromkeys(every.split(), Delivery.EVERY) | dict.fromkeys(newest.split(), Delivery.NEWEST)
    )


ANYONE = ("collector", "tuner", "predictor", "optimizer", "actuator", "operator")

TOPICS: tuple[Topic, ...] = (
    Topic(
        "fleet.declared",
        (),
        FleetDeclared,
        "declared_at_s",
        Stream.STATE,
        ("collector", "operator"),
        _to(newest="collector tuner predictor optimizer actuator operator"),
        "the fleet: accelerators, models, service classes, servers, declared capacity, optimizer options",
    ),
    Topic(
        "telemetry.observed",
        ("partition", "server"),
        TelemetryObserved,
        "window_end_s",
        Stream.TELEMETRY,
        ("collector",),
        _to(every="tuner predictor", newest="optimizer actuator"),
        "one window of one server: load, latencies, occupancy, quality, replica by replica",
    ),
    Topic(
        "inventory.observed",
        ("server",),
        InventoryObserved,
        "observed_at_s",
        Stream.STATE,
        ("collector",),
        _to(newest="predictor optimizer actuator"),
        "replicas desired, ready, pending, terminating by accelerator, and learned start-up times",
    ),
    Topic(
        "capacity.observed",
        (),
        CapacityObserved,
        "observed_at_s",
        Stream.STATE,
        ("collector",),
        _to(newest="optimizer"),
        "accelerators present and free, by type",
    ),
    Topic(
        "capacity.unavailable",
        ("type",),
        CapacityUnavailable,
        "since_s",
        Stream.STATE,
        ("actuator",),
        _to(newest="optimizer"),
        "a type that could not be had, since when and until when",
    ),
    Topic(
        "parameters.estimated",
        ("model", "accelerator"),
        ParametersEstimated,
        "estimated_at_s",
        Stream.STATE,
        ("tuner",),
        _to(newest="optimizer"),
        "parameters, covariance, law, health and evidence",
    ),
    Topic(
        "calibration.proposed",
        ("model", "accelerator"),
        CalibrationProposed,
        "proposed_at_s",
        Stream.STATE,
        ("tuner",),
        _to(newest="collector"),
        "a small sweep that would identify the parameters",
    ),
    Topic(
        "forecast.issued",
        ("server",),
        ForecastIssued,
        "issued_at_s",
        Stream.STATE,
        ("predictor",),
        _to(newest="optimizer actuator"),
        "quantiles of the largest rate over the lead time, and token means",
    ),
    Topic(
        "plan.proposed",
        ("server",),
        PlanProposed,
        "issued_at_s",
        Stream.STATE,
        ("optimizer",),
        _to(newest="optimizer actuator operator"),
        "one server's declarative target in one generation, with prediction and explanation",
    ),
    Topic(
        "plan.issued",
        (),
        PlanIssued,
        "issued_at_s",
        Stream.STATE,
        ("optimizer",),
        _to(newest="optimizer actuator operator"),
        "the manifest that completes a generation",
    ),
    Topic(
        "decision.made",
        ("server",),
        DecisionMade,
        "decided_at_s",
        Stream.DECISIONS,
        ("actuator",),
        _to(newest="operator"),
        "raw target, gated target, verdict, rule and evidence",
    ),
    Topic(
        "actuation.applied",
        ("server",),
        ActuationApplied,
        "applied_at_s",
        Stream.DECISIONS,
        ("actuator",),
        _to(newest="operator"),
        "what was asked and what the target reports",
    ),
    Topic(
        "actuation.failed",
        ("server",),
        ActuationFailed,
        "failed_at_s",
        Stream.DECISIONS,
        ("actuator",),
        _to(newest="operator"),
        "what was asked and why it was not done",
    ),
    Topic(
        "alert.raised",
        ("kind",),
        AlertRaised,
        "raised_at_s",
        Stream.DECISIONS,
        ANYONE,
        _to(),
        "loud facts: missing series, stale data, shortfall, drift by another controller",
    ),
)

VERBS: tuple[Verb, ...] = (
    Verb(
        "optimizer", "solve", SolveRequested, SolveAnswered, "solve now from what is known, publish nothing"
    ),
    Verb(
        "optimizer",
        "explain",
        ExplainRequested,
        ExplainAnswered,
        "why a server gets what it gets, or what if",
    ),
    Verb(
        "optimizer",
        "analyze",
        PerformanceRequested,
        PerformanceAnswered,
        "throughput and latencies of described servers at a rate",
    ),
    Verb(
        "optimizer",
        "size",
        PerformanceRequested,
        PerformanceAnswered,
        "the largest rates of described servers within their targets",
    ),
    Verb("tuner", "parameters", ParametersRequested, ParametersAnswered, "parameters in force"),
    Verb("predictor", "forecast", ForecastRequested, ForecastAnswered, "the newest forecast of a server"),
    Verb("actuator", "pause", PauseRequested, PauseAnswered, "hold a server or the fleet"),
    Verb("actuator", "resume", PauseRequested, PauseAnswered, "stop holding a server or the fleet"),
    *(
        Verb(service, "status", StatusRequested, StatusAnswered, f"what the {service} knows of itself")
        for service in ANYONE
    ),
)

TOPIC_BY_NAME: Mapping[str, Topic] = MappingProxyType({topic.name: topic for topic in TOPICS})
TOPIC_BY_PAYLOAD: Mapping[type[Contract], Topic] = MappingProxyType({t.payload: t for t in TOPICS})


def topic_of_subject(subject: str) -> Topic | None:
    """The topic that a subject belongs to, or nothing."""
    tokens = subject.split(".")
    topic = TOPIC_BY_NAME.get(".".join(tokens[2:4]))
    if topic is None or not subject.startswith(f"{topic.prefix}") or len(tokens) != 4 + len(topic.keys):
        return None
    return topic


def dlq_subject(stream: str, consumer: str) -> str:
    """Where a message is parked that a consumer of a stream refuses."""
    return f"{ROOT}.dlq.{stream}.{consumer}"
