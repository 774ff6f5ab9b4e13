"""Requests and replies over the bus, one pair for each verb of a service."""

from typing import Annotated

from pydantic import Field, JsonValue

from schemas.base import Contract, CostPerHour, Count, Name, Positive, Share
from schemas.forecast import ForecastIssued
from schemas.parameters import ParametersEstimated
from schemas.plan import PlanIssued, PlanProposed, Prediction

Override = Annotated[str, Field(min_length=3, max_length=1000)]


class RequestRefused(Contract):
    """The answer to a request that is bad or cannot be met."""

    error: Annotated[str, Field(max_length=8000)]
    """What is wrong: the field, its value and what was expected."""


class SolveRequested(Contract):
    """Solve now from what is known; nothing is published."""

    solver: Name | None = None
    """Solver to use instead of the configured one."""
    servers: tuple[Name, ...] = ()
    """Servers to answer for; all when empty."""
    overrides: tuple[Override, ...] = ()
    """What-if: fields of the fleet as PATH=VALUE, for example servers[chat].min_replicas=2."""


class SolveAnswered(Contract):
    """One solution that was not published."""

    manifest: PlanIssued
    """The whole."""
    plans: tuple[PlanProposed, ...]
    """Server by server."""


class ExplainRequested(Contract):
    """Why a server gets what it gets, now or what-if; nothing is published."""

    server: Name
    """The server."""
    solver: Name | None = None
    """Solver to use instead of the configured one."""
    overrides: tuple[Override, ...] = ()
    """What-if: fields of the fleet as PATH=VALUE, for example servers[chat].min_replicas=2."""


class CandidateExplained(Contract):
    """One way to serve the server, chosen or not."""

    accelerator: Name
    """The accelerator."""
    max_batch: Positive
    """Batch limit of each replica."""
    replicas: Count
    """Replicas that it would take."""
    cards: Count
    """Cards that these would use."""
    cost_per_hour: CostPerHour
    """Cost of them."""
    value_per_hour: float
    """Change of the cost from what the server has now, switching included; what solvers minimise."""
    served_share: Share
    """Share of the planned rate that they carry within the objectives."""
    binding: Annotated[str, Field(max_length=100)] = ""
    """The objective or limit that decides the replicas."""
    predicted: Prediction | None = None
    """Performance that the models predict."""


class ExplainAnswered(Contract):
    """The server's plan with its explanation, the whole it is part of, and every candidate, best first."""

    plan: PlanProposed
    """What it would get."""
    manifest: PlanIssued
    """The whole, with the shadow price of each type and who lacks what."""
    candidates: tuple[CandidateExplained, ...] = ()
    """Every way to serve it."""


PerformanceProblem = dict[str, JsonValue]
"""One server and a question's figures, in our form or in that of the reference system; see the documentation."""

PerformanceProblems = PerformanceProblem | Annotated[tuple[JsonValue, ...], Field(max_length=10_000)]


class PerformanceRequested(Contract):
    """What the performance model says of servers that are described here, whatever the fleet is."""

    problems: PerformanceProblems
    """One problem, or a list."""
    model: Name | None = None
    """Queueing model that answers, instead of those that the problems name."""
    law: Name | None = None
    """Iteration law of the parameters, instead of those that the problems name."""


class PerformanceAnswered(Contract):
    """What the performance model says, each answer in the form of its problem."""

    answers: PerformanceProblem | tuple[PerformanceProblem, ...]
    """One answer, or a list in the order of the problems; that to a bad problem holds only `error`."""


class ParametersRequested(Contract):
    """Parameters in force, of one model or one accelerator when given."""

    model: Name | None = None
    """Only this model."""
    accelerator: Name | None = None
    """Only this accelerator."""


class ParametersAnswered(Contract):
    """Parameters in force."""

    parameters: tuple[ParametersEstimated, ...]
    """One entry for each model and accelerator."""


class ForecastRequested(Contract):
    """The newest forecast of one server."""

    server: Name
    """The server."""


class ForecastAnswered(Contract):
    """The newest forecast of one server."""

    forecast: ForecastIssued | None = None
    """Absent when none was issued yet."""


class PauseRequested(Contract):
    """Hold one server, or the whole fleet, until resumed."""

    server: Name | None = None
    """The server; the whole fleet when absent."""


class PauseAnswered(Contract):
    """What is held now."""

    fleet_paused: bool
    """Whether everything is held."""
    servers_paused: tuple[Name, ...]
    """Servers held on their own."""


class StatusRequested(Contract):
    """What a service knows of itself."""


class StatusAnswered(Contract):
    """What a service knows of itself."""

    service: Name
    """The service."""
    version: Name
    """Release."""
    ready: bool
    """Whether it works."""
    reasons: tuple[Annotated[str, Field(max_length=2000)], ...] = ()
    """Why it is not ready."""
    handled: Count = 0
    """Messages handled since it started."""
    parked: Count = 0
    """Messages parked since it started."""
