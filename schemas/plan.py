"""What the optimizer proposes: a declarative target for each server, and the manifest of a generation."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import (
    Contract,
    CostPerHour,
    Count,
    LatencySeconds,
    Name,
    Positive,
    Rate,
    Seconds,
    Share,
    Tokens,
    UnixSeconds,
)

Explanation = Annotated[str, Field(max_length=4000)]


class Allocation(Contract):
    """Replicas of a server on one accelerator."""

    accelerator: Name
    """The accelerator."""
    replicas: Count
    """Replicas on it."""
    max_batch: Positive
    """Batch limit of each."""
    traffic_share: Share = 1.0
    """Share of the server's requests that they take."""
    cost_per_hour: CostPerHour = 0.0
    """Cost of these replicas."""


class Prediction(Contract):
    """Performance that the models predict for an allocation under the planned load."""

    ttft_s: LatencySeconds
    """Time to first token, in the objective's statistic."""
    itl_s: LatencySeconds
    """Inter-token latency, in the objective's statistic."""
    wait_s: LatencySeconds
    """Mean wait for a place in the batch."""
    utilization_share: Annotated[float, Field(ge=0)]
    """Planned rate over the largest rate that keeps the objectives; above 1 they are missed."""
    objectives_met: bool
    """Whether every objective is kept."""


class ServerStatus(StrEnum):
    """What became of a server in a generation. Only the first two carry an allocation to move to."""

    PLANNED = "planned"
    DEGRADED = "degraded"
    UNSERVED = "unserved"
    INFEASIBLE = "infeasible"
    NO_PARAMETERS = "no_parameters"
    NO_LOAD = "no_load"


class Inputs(Contract):
    """What a plan rests on."""

    fleet_revision: Name
    """Revision of the fleet."""
    window_end_s: UnixSeconds | None = None
    """End of the newest telemetry window used."""
    forecast_at_s: UnixSeconds | None = None
    """When the forecast used was issued."""
    parameters_at_s: UnixSeconds | None = None
    """Oldest parameter set used."""
    rate_rps: Rate | None = None
    """Request rate planned for."""
    rate_from: Annotated[str, Field(max_length=100)] = ""
    """Where that rate is from: forecast, telemetry or nominal."""
    input_tokens: Tokens | None = None
    """Mean input tokens planned for."""
    output_tokens: Tokens | None = None
    """Mean output tokens planned for."""


class PlanProposed(Contract):
    """One server's target in one generation. Without allocations there is no opinion: hold."""

    server: Name
    """The server."""
    generation: Count
    """Generation of the plan; the manifest of the same number completes it."""
    status: ServerStatus
    """What became of the server."""
    allocations: tuple[Allocation, ...] | None = None
    """The target; absent means hold, empty means zero replicas."""
    predicted: Prediction | None = None
    """Performance of the target."""
    predicted_one_fewer: Prediction | None = None
    """Performance with one replica fewer; absent when there is none to remove."""
    predicted_current: Prediction | None = None
    """Performance of what the server has now under the planned load; absent when it has nothing known."""
    needed_share: Annotated[float, Field(ge=0)] | None = None
    """Replicas needed before rounding up, over replicas planned."""
    inputs: Inputs
    """What it rests on."""
    binding: Annotated[str, Field(max_length=100)] = ""
    """The objective or limit that decides the size: ttft, itl, tps, memory, minimum, maximum, capacity."""
    explanation: Explanation = ""
    """Why, in words."""
    issued_at_s: UnixSeconds
    """When it was made."""
    expires_at_s: UnixSeconds
    """When it must no longer be acted upon."""

    @model_validator(mode="after")
    def _status_matches_allocations(self) -> "PlanProposed":
        moves = self.status in (ServerStatus.PLANNED, ServerStatus.DEGRADED)
        if moves != (self.allocations is not None):
            raise ValueError(
                f"allocations: expected {'a target' if moves else 'none'} with status {self.status.value}"
            )
        names = [a.accelerator for a in self.allocations or ()]
        if len(set(names)) != len(names):
            raise ValueError("allocations: each accelerator may occur once")
        return self


class SolveStatus(StrEnum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    TIME_LIMIT = "time_limit"
    INFEASIBLE = "infeasible"


class ShadowPrice(Contract):
    """Worth of one more card of a type."""

    type: Name
    """The accelerator type."""
    cost_per_hour: CostPerHour
    """Fall of the total cost per card and hour."""


class Shortfall(Contract):
    """A server that does not get what it needs."""

    server: Name
    """The server."""
    missing_replicas: Count
    """Replicas that it lacks on the accelerator that it would have taken."""
    accelerator: Name
    """That accelerator."""
    type: Name | None = None
    """Its type of card."""
    missing_cards: Count = 0
    """Cards of that type that would cure it."""


class ClassService(Contract):
    """How far the servers of one priority are served within their objectives."""

    priority: Annotated[int, Field(ge=1, le=100)]
    """The priority, 1 is the most important."""
    servers: Count
    """Servers that were solved for."""
    servers_served: Count
    """Of these, served within every objective."""
    demand_rps: Rate
    """Requests per second of all of them."""
    demand_served_rps: Rate
    """Requests per second of those that are served within every objective."""
    demand_carried_rps: Rate
    """Requests per second that could be carried within objectives, best effort included."""
    bound: Annotated[float, Field(ge=0)] | None = None
    """No plan that does as well for more important classes serves more, servers or demand as was asked for."""


class PlanIssued(Contract):
    """The manifest that completes a generation; the actuator acts once this is there."""

    generation: Count
    """The generation."""
    servers: Count
    """Plans in it."""
    status: SolveStatus
    """How the solve ended."""
    cost_per_hour: CostPerHour
    """Cost of the whole plan."""
    bound_cost_per_hour: CostPerHour | None = None
    """No plan of the same service costs less, when the solver proves it."""
    gap_share: Annotated[float, Field(ge=0)] | None = None
    """Distance to that bound as a share of the cost."""
    solver: Name
    """Plug-in that solved it."""
    performance_model: Name
    """Queueing model that sized the candidates."""
    solve_s: Seconds
    """Time to size and solve."""
    shadow_prices: tuple[ShadowPrice, ...] = ()
    """By type, when the solver has them."""
    shortfall: tuple[Shortfall, ...] = ()
    """Who lacks what."""
    classes: tuple[ClassService, ...] = ()
    """How far each class is served, the most important first."""
    issued_at_s: UnixSeconds
    """When it was made."""
    expires_at_s: UnixSeconds
    """When it must no longer be acted upon."""
