"""The fluid model: no randomness, no waiting below capacity, the cheapest answer."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array, Values, require
from services.perfmodel.queueing import (
    ALL_STATISTICS,
    MEANS_ONLY,
    Capabilities,
    Distribution,
    Flags,
    Metrics,
    ServerModel,
    Sizing,
    Statistic,
    Targets,
    saturation,
)
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import RateCurves, RateOutcome, largest_rates, smallest_batch

# A server exactly at capacity is not overloaded through rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class FluidModel:
    """Fixed point of the mean batch: ρ = λ·work, T = T(1)/(1−ρ), X = λ·iterations·T, carried while X ≤ N.

    A request runs in a batch of X + 1. Beyond capacity the batch and the queue are full and the excess is
    blocked. The KV cache does not enter.

    Limits of validity: an engine far from its capacity, or bounds; waits below capacity are none, whatever the
    load, and latencies near it are those of the mean batch only.
    """

    name: str = "fluid"
    capabilities: Capabilities = MEANS_ONLY

    def analyze(
        self, server: ServerModel, rate_rps: Values, statistics: Collection[Statistic] = ALL_STATISTICS
    ) -> Metrics:
        rate = require("rate_rps", rate_rps, minimum=0.0)
        shape = np.broadcast_shapes(server.shape, rate.shape)
        flat_rate = np.broadcast_to(rate, shape).ravel()
        state = State.at(server.spread(shape), flat_rate)

        def shaped(value: Array) -> Array:
            return value.reshape(shape)

        return Metrics(
            offered_rps=shaped(flat_rate),
            throughput_rps=shaped(state.throughput_rps),
            capacity_rps=shaped(state.capacity_rps),
            occupancy=shaped(state.occupancy),
            queue_length=shaped(state.throughput_rps * state.wait_s),
            blocked_share=shaped(state.blocked_share),
            wait_s=Distribution(shaped(state.wait_s)),
            ttft_s=Distribution(shaped(state.ttft_s)),
            itl_s=Distribution(shaped(state.itl_s)),
            end_to_end_s=Distribution(shaped(state.end_to_end_s)),
            overloaded=state.overloaded.reshape(shape),
            saturation=saturation(flat_rate, state.work_s, state.overloaded).reshape(shape),
        )

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: Statistic = Statistic.MEAN
    ) -> Sizing:
        self.capabilities.require(self.name, statistic)

        def curves(servers: ServerModel) -> RateCurves:
            def evaluate(rate: Array, rows: Rows) -> RateOutcome:
                state = State.at(servers.take(rows), rate)
                return RateOutcome(state.ttft_s, state.itl_s, state.blocked_share, state.throughput_rps)

            return RateCurves(capacity_rps(servers), evaluate)

        return largest_rates(server, targets, curves)

    def concurrency(
        self,
        server: ServerModel,
        targets: Targets,
        statistic: Statistic = Statistic.MEAN,
        tolerance: float = 0.01,
    ) -> NDArray[np.int64]:
        self.capabilities.require(self.name, statistic)
        return smallest_batch(self, server, targets, statistic, tolerance)


def capacity_rps(server: ServerModel) -> Array:
    """The rate in requests per second that fills the batch, N/τ(N+1), for servers along one axis."""
    full = np.asarray(server.limits.max_batch)
    question = (server.parameters, full + 1.0, server.workload, server.limits.token_budget)
    return full / (server.law.iterations_per_request(*question) * server.law.iteration_time(*question))


@dataclass(frozen=True, eq=False)
class State:
    """The fixed point of servers along one axis at one rate each, every array of shape (S,)."""

    occupancy: Array
    throughput_rps: Array
    capacity_rps: Array
    blocked_share: Array
    wait_s: Array
    ttft_s: Array
    itl_s: Array
    end_to_end_s: Array
    work_s: Array
    overloaded: Flags

    @classmethod
    def at(cls, server: ServerModel, rate: Array) -> "State":
        """The state at rates of shape (S,)."""
        law, limits = server.law, server.limits
        full, capacity = np.asarray(limits.max_batch), capacity_rps(server)
        busy = occupancy(server, rate)
        overloaded = busy > full * (1.0 + ROUNDING)
        busy = np.minimum(busy, full)
        throughput = np.where(overloaded, np.minimum(rate, capacity), rate)
        wait = np.where(overloaded, limits.max_queue / capacity, 0.0)

        question = (server.parameters, busy + 1.0, server.workload, limits.token_budget)
        arrived = wait + law.overhead_time(server.parameters, server.workload)
        service = law.iterations_per_request(*question) * law.iteration_time(*question)
        return cls(
            occupancy=busy,
            throughput_rps=throughput,
            capacity_rps=capacity,
            blocked_share=1.0 - np.divide(throughput, rate, out=np.ones_like(rate), where=rate > 0),
            wait_s=wait,
            ttft_s=arrived + law.prefill_time(*question),
            itl_s=law.inter_token_time(*question),
            end_to_end_s=arrived + service,
            work_s=law.work_per_request(*question),
            overloaded=overloaded,
        )


def occupancy(server: ServerModel, rate: Array) -> Array:
    """The smallest fixed point X = λ·τ(X+1) of servers along one axis; N + 1 where it is beyond N.

    For given iterations per request it is explicit. They only grow with X, so starting from an empty server
    and recomputing them reaches the smallest one, in as many steps as they take different values.
    """
    law, limits = server.law, server.limits
    beyond = np.asarray(limits.max_batch) + 1.0
    busy = np.zeros_like(rate)
    while True:
        batch = busy + 1.0
        question = (server.parameters, batch, server.workload, limits.token_budget)
        iterations, work = law.iterations_per_request(*question), law.work_per_request(*question)
        alone = law.iteration_time(*question) - busy * work / iterations
        spare = 1.0 - rate * work
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            larger = np.where(spare > 0, rate * iterations * alone / spare, np.inf)
        larger = np.clip(larger, busy, beyond)
        if np.all(larger <= busy * (1.0 + 1e-12)):
            return larger
        busy = larger
