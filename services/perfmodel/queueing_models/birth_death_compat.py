"""The birth-death model with the latency, sizing and search rules of the reference system.

Chain and law are the same; what differs from `birth_death` is kept because stored results depend on it:
latencies are taken at the mean occupancy X, not averaged over batches, with the chunks of X rounded; TTFT
has one decode iteration more; sizing looks between 0.001·μ(1) and 0.999·μ(N), does not look at blocking,
and reads a TPS target as 0.9 of the largest rate; the batch limit comes from at most six probes. Moments of
the token lengths beyond the means do not enter.

Limits of validity: those of `birth_death`, and every known fault of the reference; for its stored results only.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.blocks import blocks
from services.perfmodel.law import Array, Values, require
from services.perfmodel.laws.three_parameter import (
    ThreeParameterLaw,
    background_time,
    chunk_counts,
    request_work,
)
from services.perfmodel.queueing import (
    ALL_STATISTICS,
    MEANS_ONLY,
    Binding,
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
from services.perfmodel.queueing_models.chain import Chain, Found
from services.perfmodel.queueing_models.tables import Tables
from services.perfmodel.root_finding import Rows

LOWEST_SHARE = 0.001
HIGHEST_SHARE = 0.999
TPS_SHARE = 0.9
# Relative difference of two times the reference, which computes in single precision, takes for equal.
SAME = 1e-6
PROBES = 6
HALVINGS = 100
MS_PER_S = 1000.0
FIGURES = 7


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
        figures = np.empty((FIGURES, rates.size))
        for block in blocks(server, shape):
            reference, rows = Reference.of(block.servers), block.rows
            tables = reference.tables
            single = _single(rates[block.elements] / MS_PER_S).astype(float) * MS_PER_S
            found = tables.chain.found_at(single, rows)
            figures[:, block.elements] = np.stack(
                [
                    found.throughput,
                    tables.chain.full_rate[rows],
                    found.blocked_share,
                    tables.wait_s(found, rows),
                    *reference.latencies(found, rows),
                    found.mean(tables.service_s[rows]),
                ]
            )
        throughput, capacity, blocked, wait, ttft, itl, service = figures.reshape(FIGURES, *shape)
        overloaded = rate >= capacity
        full = (server.parameters, server.limits.max_batch, server.workload, server.limits.token_budget)
        return Metrics(
            offered_rps=np.broadcast_to(rate, shape),
            throughput_rps=throughput,
            capacity_rps=capacity,
            occupancy=throughput * service,
            queue_length=throughput * wait,
            blocked_share=blocked,
            wait_s=Distribution(wait),
            ttft_s=Distribution(ttft),
            itl_s=Distribution(itl),
            end_to_end_s=Distribution(wait + service),
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
        reference = Reference.of(servers)
        highest = HIGHEST_SHARE * reference.tables.chain.full_rate[rows]

        rates = [highest]
        causes = [Binding.CAPACITY]
        feasible = np.ones(rows.size, dtype=bool)
        failed = np.zeros(rows.size, dtype=np.int8)
        for column, (cause, target) in enumerate(
            ((Binding.TTFT, targets.ttft_s), (Binding.ITL, targets.itl_s))
        ):
            rate, met = reference.rate_for(np.asarray(target), column, rows)
            failed = np.where(feasible & ~met, np.int8(cause), failed)
            feasible &= met
            rates.append(rate)
            causes.append(cause)
        rates.append(np.where(~np.isnan(np.asarray(targets.tps)), TPS_SHARE * highest, highest))
        causes.append(Binding.TPS)

        table = np.stack(rates)
        binding = np.where(feasible, np.array(causes, dtype=np.int8)[table.argmin(axis=0)], failed)
        return Sizing(np.where(feasible, table.min(axis=0), 0.0), feasible, binding)

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


@dataclass(frozen=True, eq=False)
class Reference:
    """The tables of servers along one axis with the reference's rules for latency."""

    server: ServerModel
    tables: Tables

    @classmethod
    def of(cls, server: ServerModel) -> "Reference":
        """The tables of servers along one axis; raises ValueError for those the reference refuses."""
        if not isinstance(server.law, ThreeParameterLaw):
            raise ValueError(f"birth-death-compat needs the law three-parameter, got {server.law.name}")
        if np.any(np.asarray(server.limits.max_batch) + server.limits.max_queue < 2):
            raise ValueError("max_batch + max_queue must be at least 2 in birth-death-compat")
        rows = _with_mean_lengths(server)
        tables = Tables.of(rows)
        chain = Chain.from_rates(
            _single_precision_rates(rows), tables.chain.max_batch, tables.chain.max_queue
        )
        return cls(rows, replace(tables, chain=chain))

    def latencies(self, found: Found, rows: Rows) -> tuple[Array, Array]:
        """Mean TTFT and inter-token time in seconds at what arrivals find, shapes (R,)."""
        server = self.server.take(rows)
        service = found.mean(self.tables.service_s[rows])
        occupancy = found.throughput * service
        batch = np.clip(np.floor(occupancy + 0.5), 1.0, server.limits.max_batch)
        chunks = chunk_counts(batch, server.workload, server.limits.token_budget)
        prefill_work, decode_work = request_work(server.parameters, chunks, server.workload)
        slope = (prefill_work + decode_work) / (chunks + server.workload.output_tokens)
        prefill = chunks * background_time(server.parameters, occupancy, slope) + prefill_work
        inter_token = (service - prefill) / server.workload.output_tokens
        return self.tables.wait_s(found, rows) + prefill + inter_token, inter_token

    def rate_for(self, target: Array, column: int, rows: Rows) -> tuple[Array, Flags]:
        """The rate at which TTFT (column 0) or ITL (column 1) is at its target, and whether there is one.

        A time that falls with the rate, or does not depend on it, has none above its value at the lowest.
        """
        chain = self.tables.chain
        highest = HIGHEST_SHARE * chain.full_rate[rows]
        lowest = LOWEST_SHARE / self.tables.service_s[rows, 0]

        def time_at(rate: Array, elements: Rows) -> Array:
            return self.latencies(chain.found_at(rate, rows[elements]), rows[elements])[column]

        everything = np.arange(rows.size)
        at_lowest, at_highest = time_at(lowest, everything), time_at(highest, everything)
        rises = at_lowest * (1.0 + SAME) < at_highest
        sign = np.where(rises, 1.0, -1.0)
        same_lowest = np.abs(at_lowest - target) <= SAME * target
        same_highest = np.abs(at_highest - target) <= SAME * target
        met = np.isnan(target) | same_lowest | same_highest | (sign * (target - at_lowest) >= 0)

        inside = np.flatnonzero(
            met
            & ~same_lowest
            & ~same_highest
            & (sign * (at_lowest - target) < 0)
            & (sign * (at_highest - target) > 0)
        )
        rate = np.where(same_lowest, lowest, highest)
        if inside.size:
            rate[inside] = _halved(
                lambda point, active: (
                    sign[inside[active]] * (time_at(point, inside[active]) / target[inside[active]] - 1.0)
                ),
                lowest[inside],
                highest[inside],
            )
        return rate, met


def _halved(excess: Callable[[Array, Rows], Array], low: Array, high: Array) -> Array:
    """Where an excess rises through zero between two rates, shape (R,), as the reference looks for it.

    It halves the interval, in single precision of requests per millisecond, until the excess, a share of the
    target, is `SAME` of zero: on a flat curve that is visibly not the root.
    """
    lower, upper = _single(low / MS_PER_S), _single(high / MS_PER_S)
    middle = (lower + upper) * np.float32(0.5)
    active = np.arange(middle.size)
    for _ in range(HALVINGS):
        found = excess(middle[active].astype(float) * MS_PER_S, active)
        above = found > 0
        upper[active[above]] = middle[active[above]]
        lower[active[~above]] = middle[active[~above]]
        active = active[np.abs(found) > SAME]
        if not active.size:
            break
        middle[active] = (lower[active] + upper[active]) * np.float32(0.5)
    return middle.astype(float) * MS_PER_S


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


def _single(value: Values) -> NDArray[np.float32]:
    largest = np.finfo(np.float32).max
    return np.asarray(np.clip(value, -largest, largest), dtype=np.float32)


def _single_precision_rates(servers: ServerModel) -> Array:
    """μ(B) of shape (S, N) in requests per second, with the roundings of the reference's milliseconds.

    With a long queue at critical load the wait amplifies a rounding of the rates a thousandfold, so its
    waits are only met with its rates.
    """
    ceiling = np.asarray(servers.limits.max_batch)
    batch = np.minimum(np.arange(1.0, ceiling.max(initial=1.0) + 1.0), ceiling[:, None])
    wide = servers.columns()
    one, two = np.float32(1), np.float32(2)
    chunks = _single(chunk_counts(batch, wide.workload, wide.limits.token_budget))
    alpha, beta, gamma = (_single(wide.parameters[..., k] * MS_PER_S) for k in range(3))
    prompt, output = _single(wide.workload.input_tokens), _single(wide.workload.output_tokens)
    prefill = (beta + gamma * (chunks + one) / two) * prompt
    decode = beta * output + gamma * output * (prompt + (output + one) / two)
    iteration = alpha + _single(batch) * ((prefill + decode) / (chunks + output))
    rate: Array = (_single(batch) / ((chunks + output) * iteration)).astype(float) * MS_PER_S
    return rate
