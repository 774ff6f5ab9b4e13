"""What is measured: windows of load and latency, inventory, capacity."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import (
    Contract,
    Count,
    LatencySeconds,
    Name,
    Positive,
    Quality,
    Rate,
    Seconds,
    Share,
    Tokens,
    UnixSeconds,
)


class Latency(Contract):
    """One latency over one window; a percentile that could not be had is absent."""

    count: Annotated[float, Field(ge=0)]
    """Observations behind it."""
    mean_s: LatencySeconds
    """Arithmetic mean."""
    p50_s: LatencySeconds | None = None
    """Median."""
    p90_s: LatencySeconds | None = None
    """90th percentile."""
    p95_s: LatencySeconds | None = None
    """95th percentile."""
    p99_s: LatencySeconds | None = None
    """99th percentile."""


class OfferedFrom(StrEnum):
    """How the offered rate was had. Completions alone under-count in overload."""

    GATEWAY = "gateway"
    COUNTERS = "counters"
    COMPLETIONS = "completions"


class ReplicaTelemetry(Contract):
    """One replica over one window."""

    replica: Name
    """The replica's name, for example its pod."""
    accelerator: Name
    """The accelerator that it runs on."""
    max_batch: Positive | None = None
    """Its batch limit."""
    quality: Quality = Quality.OK
    """How far this replica's figures can be trusted."""
    warming_up: bool = False
    """Whether it became ready within this window; such figures teach nothing."""
    offered_rate_rps: Rate | None = None
    """Requests that reached it per second."""
    completed_rate_rps: Rate | None = None
    """Requests that it finished per second."""
    input_tokens: Tokens | None = None
    """Mean input tokens of a request."""
    output_tokens: Tokens | None = None
    """Mean output tokens of a request."""
    ttft: Latency | None = None
    """Time to first token."""
    itl: Latency | None = None
    """Inter-token latency."""
    running: Annotated[float, Field(ge=0)] | None = None
    """Requests in its batch at the end of the window."""
    waiting: Annotated[float, Field(ge=0)] | None = None
    """Requests that wait in it at the end of the window."""
    kv_used_share: Share | None = None
    """Share of its KV cache in use."""


class TelemetryObserved(Contract):
    """One window of one server. A figure that was not measured is absent, which is not zero."""

    server: Name
    """The server."""
    model: Name
    """The model that it serves."""
    window_start_s: UnixSeconds
    """Start of the window."""
    window_end_s: UnixSeconds
    """End of the window."""
    epoch: Name = "0"
    """Configuration (accelerators and batch limits) that the window was measured under."""
    quality: Quality
    """How far the window can be trusted."""
    reporting_share: Share = 1.0
    """Share of the ready replicas that reported."""
    offered_rate_rps: Rate | None = None
    """Requests that arrived per second, finished or not."""
    offered_from: OfferedFrom | None = None
    """How the offered rate was had."""
    completed_rate_rps: Rate | None = None
    """Requests finished per second."""
    input_tokens: Tokens | None = None
    """Mean input tokens of a request."""
    output_tokens: Tokens | None = None
    """Mean output tokens of a request."""
    ttft: Latency | None = None
    """Time to first token."""
    itl: Latency | None = None
    """Inter-token latency."""
    running: Annotated[float, Field(ge=0)] | None = None
    """Requests in batches at the end of the window."""
    waiting: Annotated[float, Field(ge=0)] | None = None
    """Requests that wait anywhere at the end of the window."""
    replicas: tuple[ReplicaTelemetry, ...] = ()
    """Each replica that reported."""
    calibration: bool = False
    """Whether a proposed sweep measured it, away from users: it teaches parameters and is nobody's load."""

    @model_validator(mode="after")
    def _window_is_ordered(self) -> "TelemetryObserved":
        if self.window_end_s <= self.window_start_s:
            raise ValueError(
                f"window_end_s is {self.window_end_s}: expected after window_start_s {self.window_start_s}"
            )
        return self


class VariantInventory(Contract):
    """The replicas of a server on one accelerator."""

    accelerator: Name
    """The accelerator."""
    max_batch: Positive | None = None
    """Batch limit in force."""
    batch_settable: bool = True
    """Whether the platform can be asked for another batch limit."""
    desired: Count
    """Replicas asked for."""
    ready: Count
    """Replicas that serve."""
    pending: Count
    """Replicas asked for that do not serve yet."""
    terminating: Count = 0
    """Replicas that drain."""
    pending_since_s: UnixSeconds | None = None
    """Since when the oldest pending replica waits."""
    resource_version: Name | None = None
    """Version of the object that holds the target, for preconditions."""
    autoscaler: Name | None = None
    """What else sets the replicas, if something does, such as a HorizontalPodAutoscaler."""
    pending_reason: Annotated[str, Field(max_length=1000)] | None = None
    """Why pending replicas do not become ready, in the platform's words."""
    quotas: tuple[Name, ...] = ()
    """Quotas observed with the capacity that its replicas count against."""


class StartupTime(Contract):
    """Time from creation to readiness, learned by model and accelerator."""

    accelerator: Name
    """The accelerator."""
    p50_s: Seconds
    """Median."""
    p95_s: Seconds
    """95th percentile."""
    samples: Count
    """Start-ups seen."""


class InventoryObserved(Contract):
    """What a server has at this moment."""

    server: Name
    """The server."""
    model: Name
    """The model that it serves."""
    observed_at_s: UnixSeconds
    """When it was seen."""
    quality: Quality
    """How far it can be trusted."""
    variants: tuple[VariantInventory, ...] = ()
    """One entry for each accelerator that it has replicas or a target on."""
    startup: tuple[StartupTime, ...] = ()
    """Learned start-up times of its model."""
    paused: bool = False
    """Whether a mark on the server itself, such as an annotation, asks that it only be advised."""


class AcceleratorCapacity(Contract):
    """Cards of one type."""

    type: Name
    """The accelerator type."""
    total: Count
    """Cards present."""
    free: Count
    """Cards not in use."""


class QuotaObserved(Contract):
    """A limit that the platform sets on the cards of a part of it, such as a namespace."""

    name: Name
    """The quota."""
    cards: Count
    """Most cards."""
    used: Count
    """Cards asked for now."""
    used_by_others: Count = 0
    """Of these, what others than the servers' own replicas ask for."""


class CapacityObserved(Contract):
    """Accelerators present and free."""

    observed_at_s: UnixSeconds
    """When it was seen."""
    quality: Quality
    """How far it can be trusted."""
    types: tuple[AcceleratorCapacity, ...]
    """By type."""
    quotas: tuple[QuotaObserved, ...] = ()
    """Quotas on cards that the platform enforces."""


class CapacityUnavailable(Contract):
    """A type of accelerator that was asked for and could not be had."""

    type: Name
    """The accelerator type."""
    since_s: UnixSeconds
    """Since when."""
    until_s: UnixSeconds
    """Until when not to ask again."""
    reason: Annotated[str, Field(max_length=2000)]
    """What the target said."""
