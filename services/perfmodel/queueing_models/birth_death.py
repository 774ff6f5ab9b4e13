"""The exact birth-death model: one chain on the number in system, in O(N) whatever the waiting room."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.blocks import blocks
from services.perfmodel.law import Array, Values, require
from services.perfmodel.queueing import (
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
from services.perfmodel.queueing_models.chain import Chain, Found
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import RateCurves, RateOutcome, largest_rates, smallest_batch

MEANS = 9


@dataclass(frozen=True)
class BirthDeathModel:
    """Poisson arrivals, exponential times in service at rate μ(B) = B/τ(B), N places and Q to wait in.

    Means over what admitted arrivals find (see `chain`): the wait is the departures they find ahead of them
    over μ(N); prefill and inter-token time are the law's at the batch they are served in. TTFT is overhead,
    wait and prefill; end to end is overhead, wait and time in service. `Targets.max_blocked_share` and
    μ(N) bound every sizing. The KV cache does not enter.
    """

    name: str = "birth-death"
    capabilities: Capabilities = MEANS_ONLY

    def analyze(self, server: ServerModel, rate_rps: Values) -> Metrics:
        def means(servers: ServerModel, rate: Array, rows: Rows) -> Array:
            tables = Tables.of(servers)
            found = tables.chain.found_at(rate, rows)
            return tables.means(found, rows, *tables.latencies(found, rows))

        return analyze_chains(server, require("rate_rps", rate_rps, minimum=0.0), means)

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: Statistic = Statistic.MEAN
    ) -> Sizing:
        self.capabilities.require(self.name, statistic)

        def curves(servers: ServerModel) -> RateCurves:
            tables = Tables.of(servers)

            def evaluate(rate: Array, rows: Rows) -> RateOutcome:
                found = tables.chain.found_at(rate, rows)
                ttft, itl = tables.latencies(found, rows)
                return RateOutcome(ttft, itl, found.blocked_share, found.throughput)

            return RateCurves(tables.chain.full_rate, evaluate)

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


@dataclass(frozen=True, eq=False)
class Tables:
    """What the law says of every batch 1 … N of S servers, padded to the largest N.

    service_s, prefill_s, inter_token_s: shape (S, N); beyond a server's own N its value at N.
    overhead_s, work_s: shape (S,), the work at N.
    """

    chain: Chain
    service_s: Array
    prefill_s: Array
    inter_token_s: Array
    overhead_s: Array
    work_s: Array

    @classmethod
    def of(cls, server: ServerModel) -> "Tables":
        """The tables of servers along one axis."""
        law, limits = server.law, server.limits
        max_batch, max_queue = np.asarray(limits.max_batch), np.asarray(limits.max_queue)
        batch = np.minimum(np.arange(1.0, max_batch.max(initial=1.0) + 1.0), max_batch[:, None])
        wide = server.columns()
        question = (wide.parameters, batch, wide.workload, wide.limits.token_budget)
        service = law.iterations_per_request(*question) * law.iteration_time(*question)
        return cls(
            Chain.from_rates(batch / service, max_batch, max_queue),
            service,
            law.prefill_time(*question),
            law.inter_token_time(*question),
            law.overhead_time(server.parameters, server.workload),
            law.work_per_request(server.parameters, max_batch, server.workload, limits.token_budget),
        )

    def wait_s(self, found: Found, rows: Rows) -> Array:
        """Mean seconds from arrival to the start of service, shape (R,)."""
        return found.queued_before / self.chain.full_rate[rows]

    def latencies(self, found: Found, rows: Rows) -> tuple[Array, Array]:
        """Mean TTFT and mean inter-token time in seconds, shapes (R,)."""
        prefill = found.mean(self.prefill_s[rows])
        return self.overhead_s[rows] + self.wait_s(found, rows) + prefill, found.mean(
            self.inter_token_s[rows]
        )

    def means(self, found: Found, rows: Rows, ttft: Array, itl: Array) -> Array:
        """What `analyze_chains` makes metrics of, shape (MEANS, R)."""
        return np.stack(
            [
                found.throughput,
                self.chain.full_rate[rows],
                found.blocked_share,
                self.wait_s(found, rows),
                ttft,
                itl,
                found.mean(self.service_s[rows]),
                self.overhead_s[rows],
                self.work_s[rows],
            ]
        )


def analyze_chains(
    server: ServerModel, rate_rps: Array, means_at: Callable[[ServerModel, Array, Rows], Array]
) -> Metrics:
    """The metrics of chains at rates that broadcast with the servers, whole blocks of them at a time.

    means_at: `Tables.means` of rows (R,) of servers along one axis at rates (R,).
    """
    shape = np.broadcast_shapes(server.shape, rate_rps.shape)
    rate = np.broadcast_to(rate_rps, shape)
    means = np.empty((MEANS, rate.size))
    for block in blocks(server, shape):
        means[:, block.elements] = means_at(block.servers, rate.ravel()[block.elements], block.rows)
    throughput, capacity, blocked, wait, ttft, itl, service, overhead, work = means.reshape(MEANS, *shape)
    overloaded = rate >= capacity
    return Metrics(
        offered_rps=rate,
        throughput_rps=throughput,
        capacity_rps=capacity,
        occupancy=throughput * service,
        queue_length=throughput * wait,
        blocked_share=blocked,
        wait_s=Distribution(wait),
        ttft_s=Distribution(ttft),
        itl_s=Distribution(itl),
        end_to_end_s=Distribution(overhead + wait + service),
        overloaded=overloaded,
        saturation=saturation(rate, work, overloaded),
    )
