"""What a queueing model is: from a request rate to latencies, and from latency targets to a rate.

Arrays broadcast: the fields of a server against each other, and servers against rates and targets. Invalid
input is an error for the whole call, naming the argument; a target that cannot be met is an answer for
its own element (`Sizing.feasible`), and leaves the others alone.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array, IterationLaw, Limits, Values, Workload, require, require_parameters

T = TypeVar("T")

Flags = NDArray[np.bool_]
Codes = NDArray[np.int8]

DEFAULT_MAX_BLOCKED_SHARE = 0.01


class Statistic(StrEnum):
    """Which number of a latency's distribution a target bounds."""

    MEAN = "mean"
    P50 = "p50"
    P90 = "p90"
    P95 = "p95"
    P99 = "p99"


class Saturation(IntEnum):
    """What keeps a server from carrying the rate it is offered."""

    NONE = 0
    BATCH = 1
    KV = 2
    COMPUTE = 3


class Binding(IntEnum):
    """What stops a rate from being larger, or, where no rate will do, what cannot be met."""

    CAPACITY = 0
    TTFT = 1
    ITL = 2
    TPS = 3
    BLOCKING = 4


@dataclass(frozen=True, eq=False)
class ServerModel:
    """One replica, or many at once: law, parameters of shape (..., p) in SI units, workload and limits.

    Raises ValueError naming the argument that is invalid or does not broadcast.
    """

    law: IterationLaw
    parameters: Array
    workload: Workload
    limits: Limits
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", require_parameters(self.law, self.parameters))
        try:
            _ = self.shape
        except ValueError:
            shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in self._fields())
            raise ValueError(f"parameters, workload and limits do not broadcast: {shapes}") from None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape all fields broadcast to, without the axis of the parameters."""
        return self.once("shape", lambda: np.broadcast_shapes(*(np.shape(v) for _, v in self._fields())))

    def elements(self, shape: tuple[int, ...]) -> NDArray[np.intp]:
        """Which of the servers of `rows` every element of a shape is, flattened."""
        alone = self.once("elements", lambda: np.arange(int(np.prod(self.shape, dtype=np.int64))))
        return alone if shape == self.shape else np.broadcast_to(alone.reshape(self.shape), shape).ravel()

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What a model makes of the servers and does not depend on rates: made on first use, then kept."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    def rows(self) -> "ServerModel":
        """The same servers along one axis: parameters (S, p), all else (S,)."""
        return self.spread(self.shape)

    def spread(self, shape: tuple[int, ...]) -> "ServerModel":
        """The servers along one axis, after broadcasting to a shape."""
        parameters = np.broadcast_to(self.parameters, (*shape, self.parameters.shape[-1]))
        return self._map(
            parameters.reshape(-1, parameters.shape[-1]),
            lambda value: np.broadcast_to(np.asarray(value, float), shape).ravel(),
        )

    def take(self, index: NDArray[np.intp]) -> "ServerModel":
        """Some of the servers of `rows`, in the order of `index`."""
        return self._map(self.parameters[index], lambda value: np.asarray(value)[index])

    def reshaped(self, shape: tuple[int, ...]) -> "ServerModel":
        """The servers of `rows` along other axes."""
        parameters = self.parameters.reshape(*shape, self.parameters.shape[-1])
        return self._map(parameters, lambda value: np.asarray(value).reshape(shape))

    def columns(self) -> "ServerModel":
        """The servers of `rows` along the first of two axes, so that a batch can run along the second."""
        return self._map(self.parameters[:, None, :], lambda value: np.asarray(value)[:, None])

    def _map(self, parameters: Array, change: Callable[[Values], Array]) -> "ServerModel":
        def changed(part: Workload | Limits) -> dict[str, Any]:
            return {name: None if value is None else change(value) for name, value in vars(part).items()}

        workload = replace(self.workload, **changed(self.workload))
        return ServerModel(self.law, parameters, workload, replace(self.limits, **changed(self.limits)))

    def _fields(self) -> Iterator[tuple[str, Values]]:
        yield "parameters", self.parameters[..., 0]
        for part in (self.workload, self.limits):
            yield from ((name, value) for name, value in vars(part).items() if value is not None)


@dataclass(frozen=True, eq=False)
class Targets:
    """What a server must keep; None or NaN is no target. Fields broadcast with the servers.

    ttft_s, itl_s: upper bounds in seconds of the chosen statistic.
    tps: generated tokens per second one replica must be able to sustain: a lower bound on its throughput at
        the largest rate the other targets allow, so it makes a server infeasible and never lowers a rate.
    max_blocked_share: share of the requests that may find the queue full; a rate above it is not carried.

    Raises ValueError naming the target that is not above zero or not finite.
    """

    ttft_s: Values | None = None
    itl_s: Values | None = None
    tps: Values | None = None
    max_blocked_share: Values = DEFAULT_MAX_BLOCKED_SHARE

    def __post_init__(self) -> None:
        for name in ("ttft_s", "itl_s", "tps"):
            value = getattr(self, name)
            array = np.asarray(np.nan if value is None else value, dtype=np.float64)
            require(name, array[~np.isnan(array)], above=0.0)
            object.__setattr__(self, name, array)
        share = require("max_blocked_share", self.max_blocked_share, above=0.0)
        if np.any(share > 1.0):
            raise ValueError(f"max_blocked_share must be at most 1, got {share.max():g}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape the targets broadcast to."""
        shapes = {np.shape(value) for value in vars(self).values()}
        return shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)

    def spread(self, shape: tuple[int, ...]) -> "Targets":
        """The targets along one axis, after broadcasting to a shape."""
        return self._of(*(_along_one_axis(value, shape) for value in vars(self).values()))

    def take(self, index: NDArray[np.intp]) -> "Targets":
        """Some of the targets of `spread`, in the order of `index`."""
        return self._of(*(np.asarray(value)[index] for value in vars(self).values()))

    @classmethod
    def _of(cls, ttft_s: Array, itl_s: Array, tps: Array, max_blocked_share: Array) -> "Targets":
        """Targets of values that were checked before."""
        made = object.__new__(cls)
        vars(made).update(ttft_s=ttft_s, itl_s=itl_s, tps=tps, max_blocked_share=max_blocked_share)
        return made


def _along_one_axis(value: Values | None, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value, dtype=np.float64)
    return (array if array.shape == shape else np.broadcast_to(array, shape)).reshape(-1)


@dataclass(frozen=True, eq=False)
class Distribution:
    """A time in seconds: its mean, and its percentiles where the model's capabilities include them."""

    mean: Array
    p50: Array | None = None
    p90: Array | None = None
    p95: Array | None = None
    p99: Array | None = None


@dataclass(frozen=True, eq=False)
class Metrics:
    """What a rate makes of a server; every array has the broadcast shape of servers and rates.

    offered_rps, throughput_rps: requests per second that arrive, and that are served.
    capacity_rps: requests per second served when the queue never empties.
    occupancy, queue_length: mean requests in service, and waiting.
    blocked_share: share of the offered requests that find the queue full and are lost.
    wait_s, ttft_s, itl_s, end_to_end_s: times of the requests that are served.
    overloaded: the offered rate is at or above the capacity.
    saturation: `Saturation` codes: what holds an overloaded server back.
    """

    offered_rps: Array
    throughput_rps: Array
    capacity_rps: Array
    occupancy: Array
    queue_length: Array
    blocked_share: Array
    wait_s: Distribution
    ttft_s: Distribution
    itl_s: Distribution
    end_to_end_s: Distribution
    overloaded: Flags
    saturation: Codes


def saturation(rate_rps: Array, work_s: Array, overloaded: Flags) -> Codes:
    """What holds overloaded servers back, where no batch, however large, carries a rate of 1 / work."""
    reason = np.where(rate_rps * work_s >= 1.0, Saturation.COMPUTE, Saturation.BATCH)
    return np.where(overloaded, reason, Saturation.NONE).astype(np.int8)


@dataclass(frozen=True, eq=False)
class Sizing:
    """The largest rate each server carries within its targets.

    max_rate_rps: requests per second; 0 where no rate meets the targets.
    feasible: whether some rate above zero meets them.
    binding: `Binding` codes: what stops the rate, or what cannot be met.
    """

    max_rate_rps: Array
    feasible: Flags
    binding: Codes

    @classmethod
    def unknown(cls, shape: tuple[int, ...]) -> "Sizing":
        """A sizing of a shape whose elements are still to be put."""
        return cls(np.zeros(shape), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int8))

    def reshaped(self, shape: tuple[int, ...]) -> "Sizing":
        """The sizings along one axis in another shape."""
        return Sizing(*(values.reshape(shape) for values in vars(self).values()))

    def put(self, elements: NDArray[np.intp], part: "Sizing") -> None:
        """Writes the sizings along one axis to positions of the flattened shape."""
        for name, values in vars(self).items():
            values.put(elements, getattr(part, name))


@dataclass(frozen=True)
class Capabilities:
    """What a queueing model can answer.

    statistics: the statistics that targets may bound and that `Metrics` holds.
    kv_memory: whether `Limits.kv_tokens` enters.
    """

    statistics: frozenset[Statistic]
    kv_memory: bool = False

    def require(self, model: str, statistic: Statistic) -> None:
        """Raises ValueError listing what the model supports, if it does not support the statistic."""
        if statistic not in self.statistics:
            supported = ", ".join(sorted(self.statistics))
            raise ValueError(f"statistic {statistic} is not supported by {model}; supported: {supported}")


ALL_STATISTICS = frozenset(Statistic)
MEANS_ONLY = Capabilities(frozenset({Statistic.MEAN}))
ALL = Capabilities(ALL_STATISTICS)
ALL_WITH_MEMORY = Capabilities(ALL_STATISTICS, kv_memory=True)


class QueueingModel(Protocol):
    """What a stream of requests makes of an engine with a given iteration law."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def analyze(
        self, server: ServerModel, rate_rps: Values, statistics: Collection[Statistic] = ALL_STATISTICS
    ) -> Metrics:
        """Throughput, occupancy and latencies at a request rate.

        rate_rps: requests per second, finite and at least 0; broadcasts with the servers.
        statistics: those of the latencies that are wanted, as far as the model has them; means are always there,
            and percentiles that are not wanted may be left out.

        Raises ValueError naming the argument that is invalid.
        """
        ...

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: Statistic = Statistic.MEAN
    ) -> Sizing:
        """The largest rate that meets the targets, is blocked no more than allowed and is below capacity.

        Raises ValueError naming a statistic outside the capabilities.
        """
        ...

    def concurrency(
        self,
        server: ServerModel,
        targets: Targets,
        statistic: Statistic = Statistic.MEAN,
        tolerance: float = 0.01,
    ) -> NDArray[np.int64]:
        """The smallest batch limit whose largest rate is within `tolerance` of the best over all limits.

        The limits tried are all of 1 … `server.limits.max_batch`; 0 where none of them is feasible.

        Raises ValueError naming a statistic outside the capabilities, or a tolerance outside [0, 1).
        """
        ...
