"""The birth-death model with the latency, sizing and search rules of the reference system.

The chain and the law are the same; what differs from `birth_death` is kept because stored results depend on it:
latencies are taken at the mean occupancy X, not averaged over batches, with the chunks of X rounded; TTFT
has one decode iteration more; sizing looks between 0.001·μ(1) and 0.999·μ(N), does not look at blocking,
and reads a TPS target as 0.9 of the largest rate; the batch limit comes from at most six probes. Moments of
the token lengths beyond the means do not enter.

Limits of validity: those of `birth_death`, and every known fault of the reference; for its stored results only.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.blocks import blocks
from services.perfmodel.law import Array, Values, require
from services.perfmodel.queueing import (
    ALL_STATISTICS,
    MEANS_ONLY,
    Binding,
    Capabilities,
    Distribution,
    Metrics,
    ServerModel,
    Sizing,
    Statistic,
    Targets,
    saturation,
)
from services.perfmodel.queueing_models.compat_chain import MS_PER_S, ONE, THOUSAND, CompatChain, single
from services.perfmodel.root_finding import Rows

TPS_SHARE = ONE - np.float32(0.1)
PROBES = 6


@dataclass(frozen=True)
class BirthDeathCompatModel:
    """The reference system's numbers; needs the three-parameter law and a system that holds two requests.

    Where the reference fails to size, the sizing is infeasible; other invalid input raises ValueError, also
    a rate of zero and a server with one place and no queue, which the reference refuses.
    """

    name: str = "birth-death-compat"
    capabilities: Capabilities = MEANS_ONLY

    def analyze(
        self, server: ServerModel, rate_rps: Values, statistics: Collection[Statistic] = ALL_STATISTICS
    ) -> Metrics:
        rate = require("rate_rps", rate_rps, above=0.0)
        shape = np.broadcast_shapes(server.shape, rate.shape)
        rates = np.broadcast_to(rate, shape).ravel()
        figures = np.empty((8, rates.size))
        for block in blocks(server, shape):
            chain = CompatChain.of(_with_mean_lengths(block.servers))
            found = chain.figures(single(rates[block.elements]) / THOUSAND, block.rows)
            found = replace(found, throughput=found.throughput * THOUSAND)
            figures[:, block.elements] = (*vars(found).values(), chain.full_rate[block.rows])
        throughput, occupancy, response, wait, ttft, itl, blocked, full = figures.reshape(8, *shape)
        capacity = MS_PER_S * full
        response, wait, ttft, itl = (time / MS_PER_S for time in (response, wait, ttft, itl))
        overloaded = rate >= capacity
        full = (server.parameters, server.limits.max_batch, server.workload, server.limits.token_budget)
        return Metrics(
            offered_rps=np.broadcast_to(rate, shape),
            throughput_rps=throughput,
            capacity_rps=capacity,
            occupancy=occupancy,
            queue_length=throughput * wait,
            blocked_share=blocked,
            wait_s=Distribution(wait),
            ttft_s=Distribution(ttft),
            itl_s=Distribution(itl),
            end_to_end_s=Distribution(response),
            overloaded=overloaded,
            saturation=saturation(
                np.broadcast_to(rate, shape), server.law.work_per_request(*full), overloaded
            ),
        )

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: Statistic = Statistic.MEAN
    ) -> Sizing:
        self.capabilities.require(self.name, statistic)
        shape = np.broadcast_shapes(server.shape, targets.shape)
        bounds = targets.spread(shape)
        sizing = Sizing.unknown(shape)
        for block in blocks(server, shape):
            sizing.put(block.elements, self._size(block.servers, bounds.take(block.elements), block.rows))
        return sizing

    def _size(self, servers: ServerModel, targets: Targets, rows: Rows) -> Sizing:
        chain = CompatChain.of(_with_mean_lengths(servers))
        by_ttft, by_itl = (
            chain.rate_for(single(np.where(np.isnan(target), 0.0, target) * MS_PER_S), figure, rows)
            for figure, target in (("ttft", np.asarray(targets.ttft_s)), ("itl", np.asarray(targets.itl_s)))
        )
        highest = chain.most_rate[rows]
        by_tps = np.where(np.isnan(np.asarray(targets.tps)), highest, highest * TPS_SHARE)

        table = np.stack([highest, by_ttft, by_itl, by_tps])
        feasible = (by_ttft >= 0) & (by_itl >= 0)
        failed = np.where(by_ttft < 0, np.int8(Binding.TTFT), np.int8(Binding.ITL))
        causes = np.array([Binding.CAPACITY, Binding.TTFT, Binding.ITL, Binding.TPS], dtype=np.int8)
        per_second = (table.min(axis=0) * THOUSAND).astype(float)
        binding = np.where(feasible, causes[table.argmin(axis=0)], failed)
        return Sizing(np.where(feasible, per_second, 0.0), feasible, binding)

    def concurrency(
        self,
        server: ServerModel,
        targets: Targets,
        statistic: Statistic = Statistic.MEAN,
        tolerance: float = 0.01,
    ) -> NDArray[np.int64]:
        """A batch limit from at most six probes; `QueueingModel.concurrency` searches the whole curve."""
        self.capabilities.require(self.name, statistic)
        shape = np.broadcast_shapes(server.shape, targets.shape)
        servers, bounds = _with_mean_lengths(server.spread(shape)), targets.spread(shape)
        ceiling = np.asarray(servers.limits.max_batch)

        def carried(batch: Array) -> Array:
            rate = np.zeros(batch.size)
            possible = np.flatnonzero(batch + servers.limits.max_queue >= 2)
            if possible.size:
                some = servers.take(possible)
                some = replace(some, limits=replace(some.limits, max_batch=batch[possible]))
                sizing = self.max_rate(some, bounds.take(possible), statistic)
                at = np.where(sizing.feasible, sizing.max_rate_rps, 1.0)
                rate[possible] = np.where(sizing.feasible, self.analyze(some, at).throughput_rps, 0.0)
            return rate

        wanted = (1.0 - tolerance) * carried(ceiling)
        by_itl, by_ttft = _batches_within(servers, bounds)
        low = np.minimum(by_itl, by_ttft)
        high = np.maximum(low, np.minimum(ceiling, np.maximum(3 * np.maximum(by_itl, by_ttft), low + 1)))
        for _ in range(PROBES):
            middle = np.floor((low + high) / 2)
            enough = carried(middle) >= wanted
            searching = low < high
            high = np.where(searching & enough, middle, high)
            low = np.where(searching & ~enough, middle + 1, low)
        return np.where(wanted > 0, high, 0).astype(np.int64).reshape(shape)


def _with_mean_lengths(server: ServerModel) -> ServerModel:
    """The servers with every request of mean lengths, the only ones the reference knows."""
    return replace(server, workload=replace(server.workload, output_tokens_sq=None, input_output_tokens=None))


def _batches_within(servers: ServerModel, targets: Targets) -> tuple[Array, Array]:
    """The largest batch, at least 1, whose inter-token time, and whose prefill, is within its target."""
    ceiling = np.asarray(servers.limits.max_batch)
    batch = np.arange(1.0, ceiling.max(initial=1.0) + 1.0)
    wide = servers.columns()
    question = (wide.parameters, batch, wide.workload, wide.limits.token_budget)
    law = servers.law
    found = []
    for time, target in (
        (law.inter_token_time(*question), targets.itl_s),
        (law.prefill_time(*question), targets.ttft_s),
    ):
        bound = np.asarray(target)[:, None]
        within = ((time <= bound) | np.isnan(bound)) & (batch <= ceiling[:, None])
        found.append(np.maximum(1.0, np.max(np.where(within, batch, 0.0), axis=1)))
    return found[0], found[1]
