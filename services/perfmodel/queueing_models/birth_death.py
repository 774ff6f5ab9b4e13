"""The exact birth-death model: one chain on the number in system, whatever the waiting room."""

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
    Metrics,
    ServerModel,
    Sizing,
    Statistic,
    Targets,
    saturation,
)
from services.perfmodel.queueing_models.chains import Chains
from services.perfmodel.queueing_models.tables import ChainStates
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import smallest_batch


@dataclass(frozen=True)
class BirthDeathModel:
    """Poisson arrivals, exponential times in service at rate μ(B) = B/τ(B), N places and Q to wait in.

    Means over what admitted arrivals find (see `chain`): the wait is the departures they find ahead of them
    over μ(N); prefill and inter-token time are the law's at the batch they are served in. TTFT is overhead,
    wait and prefill; end to end is overhead, wait and time in service. `Targets.max_blocked_share` and
    μ(N) bound every sizing.

    Limits of validity: service times that vary more or less than exponentially change the wait in proportion
    (`corrected`); the iteration in progress is not waited for, which is most of the wait at low load; prompts
    hold nobody up, so with long ones waits are far too low (`interference`); no percentiles; the KV cache and
    `Workload.arrival_scv` do not enter.
    """

    name: str = "birth-death"
    capabilities: Capabilities = MEANS_ONLY

    def analyze(
        self, server: ServerModel, rate_rps: Values, statistics: Collection[Statistic] = ALL_STATISTICS
    ) -> Metrics:
        rate = require("rate_rps", rate_rps, minimum=0.0)
        shape = np.broadcast_shapes(server.shape, rate.shape)
        chains, rows = Chains.of(server), server.elements(shape)
        states = chains.at(np.broadcast_to(rate, shape).ravel(), rows)
        return mean_metrics(chains, states, rate, rows, shape)

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: Statistic = Statistic.MEAN
    ) -> Sizing:
        self.capabilities.require(self.name, statistic)
        shape, wanted = server.shape, targets.shape
        shape = shape if shape == wanted else np.broadcast_shapes(shape, wanted)
        return Chains.of(server).size(targets.spread(shape), server.elements(shape)).reshaped(shape)

    def concurrency(
        self,
        server: ServerModel,
        targets: Targets,
        statistic: Statistic = Statistic.MEAN,
        tolerance: float = 0.01,
    ) -> NDArray[np.int64]:
        self.capabilities.require(self.name, statistic)
        return smallest_batch(self, server, targets, statistic, tolerance)


def mean_metrics(
    chains: Chains, states: ChainStates, rate: Array, rows: Rows, shape: tuple[int, ...]
) -> Metrics:
    """The metrics of a shape from the states of its elements, flattened; means only."""
    overhead, capacity = chains.overhead_s[rows], chains.full_rate[rows]

    def shaped(values: Array) -> Array:
        return values.reshape(shape)

    rate = np.broadcast_to(rate, shape)
    overloaded = rate >= shaped(capacity)
    return Metrics(
        offered_rps=rate,
        throughput_rps=shaped(states.throughput_rps),
        capacity_rps=shaped(capacity),
        occupancy=shaped(states.throughput_rps * states.service_s),
        queue_length=shaped(states.throughput_rps * states.wait_s),
        blocked_share=shaped(states.blocked_share),
        wait_s=Distribution(shaped(states.wait_s)),
        ttft_s=Distribution(shaped(overhead + states.wait_s + states.prefill_s)),
        itl_s=Distribution(shaped(states.inter_token_s)),
        end_to_end_s=Distribution(shaped(overhead + states.wait_s + states.service_s)),
        overloaded=overloaded,
        saturation=saturation(rate, shaped(chains.work_s[rows]), overloaded),
    )
