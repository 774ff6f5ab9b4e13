"""The boundary of the collector: what a source yields, and what a source is.

A source reads cumulative counters and gauges and leaves every difference to the core, so that sources which
look at the same replicas are interchangeable. `None` is a figure that was not measured; it is never zero.
All times are control time in Unix seconds.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel

from schemas.alert import AlertKind
from schemas.parameters import CalibrationProposed
from schemas.telemetry import TelemetryObserved


class Provides(StrEnum):
    """A kind of reading that a source can yield."""

    METRICS = "metrics"
    INVENTORY = "inventory"
    CAPACITY = "capacity"


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    TERMINATING = "terminating"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class HistogramReading:
    """A cumulative histogram of seconds.

    `edges_s` holds the n finite upper edges, ascending; `counts` the n + 1 cumulative counts, the last one
    being all observations; `sum_s` the sum of the observations.
    """

    edges_s: tuple[float, ...]
    counts: tuple[float, ...]
    sum_s: float

    @property
    def count(self) -> float:
        return self.counts[-1]


@dataclass(frozen=True, slots=True)
class ReplicaReading:
    """One replica at its sample's own time: counters since it started, and gauges."""

    server: str
    replica: str
    sampled_at_s: float
    accelerator: str | None = None
    max_batch: int | None = None
    completed: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    ttft: HistogramReading | None = None
    itl: HistogramReading | None = None
    running: float | None = None
    waiting: float | None = None
    kv_used_share: float | None = None


@dataclass(frozen=True, slots=True)
class GatewayReading:
    """What stands before a server's replicas: requests that reached it since it started, and its queue."""

    server: str
    sampled_at_s: float
    requests: float | None = None
    waiting: float | None = None


@dataclass(frozen=True, slots=True)
class VariantReading:
    """The replicas of a server on one accelerator, as counts.

    `autoscaler` names what else sets the count, if something does; `trouble` why replicas cannot even
    be made, and since when; `quotas` what its replicas count against.
    """

    accelerator: str
    desired: int
    ready: int
    pending: int
    terminating: int = 0
    max_batch: int | None = None
    resource_version: str | None = None
    batch_settable: bool = True
    autoscaler: str | None = None
    trouble: str | None = None
    trouble_since_s: float | None = None
    quotas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica's life so far."""

    name: str
    accelerator: str
    state: ReplicaState
    created_at_s: float | None = None
    ready_at_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ServerInventory:
    """What a server has; `replicas` is empty when a source knows only counts.

    `paused` says that a mark on the server itself asks that it only be advised.
    """

    server: str
    observed_at_s: float
    variants: tuple[VariantReading, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class CapacityReading:
    """Accelerator cards of one type, present and free."""

    type: str
    observed_at_s: float
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """The most cards that a part of the platform may use, how many it uses, and of these others than servers."""

    name: str
    cards: int
    used: int
    used_by_others: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """What a poll could not read, in words that help: the query, and the names or labels that do exist."""

    kind: AlertKind
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything that one poll of one source yielded; `calibrations` are windows of sweeps, of any age."""

    source: str
    provides: frozenset[Provides]
    replicas: tuple[ReplicaReading, ...] = ()
    gateways: tuple[GatewayReading, ...] = ()
    inventory: tuple[ServerInventory, ...] = ()
    capacity: tuple[CapacityReading, ...] = ()
    quotas: tuple[QuotaReading, ...] = ()
    calibrations: tuple[TelemetryObserved, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def failed(self) -> bool:
        return any(problem.kind is AlertKind.SOURCE_FAILED for problem in self.problems)


class Source(Protocol):
    """A place to read from, constructed as `Plugin(settings, to_clock_s=…)`.

    `to_clock_s` maps wall time to control time, both Unix seconds.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]
    provides: ClassVar[frozenset[Provides]]

    async def poll(self, now_s: float) -> Readings:
        """Read once, at control time `now_s`; a backend that fails is a problem in the readings."""

    async def close(self) -> None:
        """Release connections; closing twice is harmless."""


@runtime_checkable
class Calibrator(Protocol):
    """A source whose servers can be measured away from users; `calibrates` says whether it was asked to."""

    calibrates: bool

    async def calibrate(self, proposed: CalibrationProposed) -> str | None:
        """Have a sweep carried out, once however often it is asked for; why not, where it is refused.

        Raises Retry where nobody answers.
        """
