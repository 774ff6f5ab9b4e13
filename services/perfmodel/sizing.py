"""From latency targets to a rate, and to a batch limit, for any queueing model that can evaluate a rate."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.blocks import blocks
from services.perfmodel.law import Array, Workload
from services.perfmodel.queueing import Binding, QueueingModel, ServerModel, Sizing, Statistic, Targets
from services.perfmodel.root_finding import Rows, largest_below

# A latency that does not depend on the rate may equal its target up to rounding; that is met.
ROUNDING = 1e-12
# Rates are found to about a tenth of this.
RATE_ROUNDING = 1e-9
LARGEST_EXCESS = 50.0


@dataclass(frozen=True, eq=False)
class RateOutcome:
    """What a rate makes of some rows of servers, each of shape (R,)."""

    ttft_s: Array
    itl_s: Array
    blocked_share: Array
    throughput_rps: Array


@dataclass(frozen=True, eq=False)
class RateCurves:
    """How S servers along one axis answer to rates.

    capacity_rps: shape (S,), the rate no sizing exceeds.
    evaluate: the outcome at rates (R,) for rows (R,) of the servers; latencies and blocked share must not
        fall with the rate.
    """

    capacity_rps: Array
    evaluate: Callable[[Array, Rows], RateOutcome]


def largest_rates(
    server: ServerModel,
    targets: Targets,
    curves: Callable[[ServerModel], RateCurves],
    relative_tolerance: float = 1e-10,
) -> Sizing:
    """The largest rates up to capacity at which every target is met, whole blocks of servers at a time.

    curves: what a model makes of servers along one axis.
    relative_tolerance: of the rate; how exact the curves are.
    """
    shape = np.broadcast_shapes(server.shape, targets.shape)
    bounds = targets.spread(shape)
    sizing = Sizing.unknown(shape)
    for block in blocks(server, shape):
        part = _size(
            block.servers,
            bounds.take(block.elements),
            block.rows,
            curves(block.servers),
            relative_tolerance,
        )
        sizing.put(block.elements, part)
    return sizing


def _size(
    servers: ServerModel, targets: Targets, rows: Rows, curves: RateCurves, relative_tolerance: float
) -> Sizing:
    bounds = np.log(
        np.stack([np.asarray(v) for v in (targets.ttft_s, targets.itl_s, targets.max_blocked_share)])
    )
    bounds[np.isnan(bounds)] = np.inf
    causes = np.array([Binding.TTFT, Binding.ITL, Binding.BLOCKING], dtype=np.int8)

    def excesses(rate: Array, elements: Rows) -> Array:
        outcome = curves.evaluate(rate, rows[elements])
        with np.errstate(divide="ignore"):
            logs = np.log(np.stack([outcome.ttft_s, outcome.itl_s, outcome.blocked_share]))
        clipped: Array = np.clip(logs - bounds[:, elements] - ROUNDING, -LARGEST_EXCESS, LARGEST_EXCESS)
        return clipped

    everything = np.arange(rows.size)
    idle, full = np.zeros(rows.size), curves.capacity_rps[rows]
    at_idle, at_full = excesses(idle, everything), excesses(full, everything)
    feasible = at_idle.max(axis=0) <= 0
    rate = np.where(feasible, full, 0.0)
    binding = np.where(feasible, np.int8(Binding.CAPACITY), causes[at_idle.argmax(axis=0)])

    inside = np.flatnonzero(feasible & (at_full.max(axis=0) > 0))
    if inside.size:
        rate[inside] = largest_below(
            lambda point, active: excesses(point, inside[active]).max(axis=0),
            idle[inside],
            full[inside],
            at_idle.max(axis=0)[inside],
            at_full.max(axis=0)[inside],
            relative_tolerance,
        )
        binding[inside] = causes[excesses(rate[inside], inside).argmax(axis=0)]
        # A target met at rate zero and nowhere above it.
        feasible &= rate > 0

    throughput = np.zeros(rows.size)
    met = np.flatnonzero(feasible & ~np.isnan(np.asarray(targets.tps)))
    if met.size:
        throughput[met] = curves.evaluate(rate[met], rows[met]).throughput_rps
    return with_throughput(Sizing(rate, feasible, binding), throughput, servers.workload, targets, rows)


def with_throughput(
    sizing: Sizing, throughput_rps: Array, workload: Workload, targets: Targets, rows: Rows
) -> Sizing:
    """The sizing of elements (E,), infeasible where even its rate sustains fewer tokens than wanted.

    throughput_rps: (E,), requests per second served at the sizing's rates.
    workload: of servers along one axis; rows: (E,), which of them an element is.
    """
    tps = np.asarray(targets.tps)
    if not (tps > 0).any():
        return sizing
    sustained = throughput_rps * np.asarray(workload.output_tokens)[rows]
    short = sizing.feasible & (sustained < tps * (1.0 - RATE_ROUNDING))
    return Sizing(
        np.where(short, 0.0, sizing.max_rate_rps),
        sizing.feasible & ~short,
        np.where(short, np.int8(Binding.TPS), sizing.binding),
    )


def smallest_batch(
    model: QueueingModel, server: ServerModel, targets: Targets, statistic: Statistic, tolerance: float
) -> NDArray[np.int64]:
    """The smallest batch limit within `tolerance` of the best rate, from the whole curve of rates.

    Raises ValueError if the tolerance is outside [0, 1).
    """
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance:g}")
    shape = np.broadcast_shapes(server.shape, targets.shape)
    servers, bounds = server.spread(shape), targets.spread(shape)
    ceilings = np.asarray(servers.limits.max_batch).astype(np.int64)

    element = np.repeat(np.arange(ceilings.size), ceilings)
    batch = np.arange(element.size) - np.repeat(np.cumsum(ceilings) - ceilings, ceilings) + 1
    every = servers.take(element)
    every = replace(every, limits=replace(every.limits, max_batch=batch.astype(float)))
    rate = model.max_rate(every, bounds.take(element), statistic).max_rate_rps

    best = np.zeros(ceilings.size)
    np.maximum.at(best, element, rate)
    good = (rate >= (1.0 - tolerance) * (1.0 - RATE_ROUNDING) * best[element]) & (rate > 0)
    answer = np.full(ceilings.size, np.iinfo(np.int64).max)
    np.minimum.at(answer, element[good], batch[good])
    return np.where(best > 0, answer, 0).reshape(shape)
