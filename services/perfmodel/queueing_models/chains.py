"""Birth-death chains of many servers: compiled where numba is installed, else from tables.

A law's times are affine while the iterations per request stay the same (`IterationLaw`), so a server whose
iterations are as many alone as in a full batch is affine throughout. Others, whose prompts need more chunks the
fuller the batch is, are cut into segments; one that would need too many of them is tabulated.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from services.perfmodel.blocks import blocks
from services.perfmodel.law import Array, Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import Flags, ServerModel, Sizing, Targets
from services.perfmodel.queueing_models.tables import ChainStates, Tables
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import RateCurves, RateOutcome, largest_rates, with_throughput

# A rate of zero is looked at as this share of the capacity: an idle server to the last digit but three.
IDLE_SHARE = 1e-13
MOST_SEGMENTS = 48
# Servers from which on it pays to load the kernels where no service has: that takes most of a second, in which the
# plain path sizes several thousand once; the models ask it a few times.
WORTH_LOADING = 1_000
_KERNELS = "services.perfmodel.segment_kernels"
# Times beyond the largest double make a server of no capacity, by infinities and NaN that no target is met with.
OVERFLOW = np.errstate(over="ignore", divide="ignore", invalid="ignore")


@cache
def kernels() -> ModuleType | None:
    """The compiled kernels; None where numba is not installed, and the plain path is taken."""
    try:
        from services.perfmodel import segment_kernels
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None
    return segment_kernels


def warm_up() -> None:
    """Load the kernels, or compile them where that was never done, before there is work that would wait for it.

    All calls have arrays of the same types and layout, so that nothing is compiled afterwards.
    """
    kernels()
    law, limits = ThreeParameterLaw(), Limits(np.array([4.0, 4.0]), 4.0, np.array([8192.0, 64.0]))
    server = ServerModel(law, np.array([0.01, 1e-5, 1e-8]), Workload(100.0, 10.0), limits)
    chains, rows = Chains.of(server), server.elements(server.shape)
    chains.at(np.ones(rows.size), rows)
    chains.size(Targets(ttft_s=1.0).spread(server.shape), rows)


@dataclass(frozen=True, eq=False)
class Chains:
    """The chains of S servers along one axis, without what depends on the rate.

    full_rate: shape (S,), μ(N) in requests per second.
    overhead_s, work_s: shape (S,), the work of a request in a full batch.
    iteration_slope_s: shape (S,), what one more request adds to an iteration, up to a full batch.
    compiled: shape (S,), which of them the kernels take.
    table, segments, starts: see `segment_kernels.states`; the rows of servers that are not compiled mean nothing.
    """

    servers: ServerModel
    full_rate: Array
    overhead_s: Array
    work_s: Array
    iteration_slope_s: Array
    compiled: Flags
    table: Array
    segments: Array
    starts: Rows

    @classmethod
    def of(cls, server: ServerModel) -> "Chains":
        """The chains of servers of any shape, along one axis; made once for each server object."""
        return server.once("chains", lambda: cls._of(server.rows()))

    @classmethod
    @OVERFLOW
    def _of(cls, servers: ServerModel) -> "Chains":
        law, limits = servers.law, servers.limits
        most = np.asarray(limits.max_batch)
        alone = (servers.parameters, 1.0, servers.workload, limits.token_budget)
        full = (servers.parameters, most, servers.workload, limits.token_budget)
        iterations = law.iterations_per_request(*full)
        slowest = law.iteration_time(*full)
        overhead = np.array(law.overhead_time(servers.parameters, servers.workload))
        taken = np.zeros(most.size, dtype=bool)
        table, segments = np.empty((most.size, 0)), np.empty((0, 0))
        starts = np.zeros(most.size + 1, dtype=np.intp)
        if (most.size >= WORTH_LOADING or _KERNELS in sys.modules) and kernels() is not None:
            affine = law.iterations_per_request(*alone) == iterations
            table = _table(servers, iterations)
            segments, starts, taken = _segments(servers, np.flatnonzero(~affine), most.size)
            taken |= affine
        work = np.asarray(law.work_per_request(*full))
        slope = np.maximum(slowest - law.iteration_time(*alone), 0.0) / np.maximum(most - 1.0, 1.0)
        full_rate = most / (iterations * slowest)
        return cls(servers, full_rate, overhead, work, slope, taken, table, segments, starts)

    @OVERFLOW
    def at(self, rate: Array, rows: Rows) -> ChainStates:
        """What rates (R,) make of the chains `rows`."""
        compiled = self.compiled[rows]
        if compiled.all():
            return self._compiled(rate, rows)
        states = ChainStates.empty(rate.size)
        chosen = np.flatnonzero(compiled)
        if chosen.size:
            states.put(chosen, self._compiled(rate[chosen], rows[chosen]))
        chosen = np.flatnonzero(~compiled)
        if chosen.size:
            some = self.servers.take(rows[chosen])
            for block in blocks(some, some.shape):
                part = Tables.of(block.servers).states(rate[chosen][block.elements], block.rows)
                states.put(chosen[block.elements], part)
        return states

    @OVERFLOW
    def size(self, targets: Targets, rows: Rows) -> Sizing:
        """The largest rates of elements (E,) within targets on means, of the servers `rows`."""
        compiled = self.compiled[rows]
        if compiled.all():
            return self._sized(targets, rows)
        sizing = Sizing.unknown(rows.shape)
        chosen = np.flatnonzero(compiled)
        if chosen.size:
            sizing.put(chosen, self._sized(targets.take(chosen), rows[chosen]))
        chosen = np.flatnonzero(~compiled)
        if chosen.size:
            some = self.servers.take(rows[chosen])
            sizing.put(chosen, largest_rates(some, targets.take(chosen), _tabulated))
        return sizing

    def _compiled(self, rate: Array, rows: Rows) -> ChainStates:
        compiled = kernels()
        assert compiled is not None
        full = self.full_rate[rows]
        rates = np.ascontiguousarray(np.maximum(rate, IDLE_SHARE * full))
        rows = np.ascontiguousarray(rows)
        found = compiled.states(rates, rows, self.table, self.segments, self.starts).T
        return ChainStates(
            throughput_rps=rate * (1.0 - found[compiled.BLOCKED]),
            blocked_share=found[compiled.BLOCKED],
            wait_s=found[compiled.WAITED] / full,
            prefill_s=found[compiled.PREFILL],
            inter_token_s=found[compiled.TOKEN],
            service_s=found[compiled.SERVICE],
            batch=found[compiled.BATCH],
            batch_sq=found[compiled.BATCH_SQ],
            waiting_share=found[compiled.QUEUED],
            progress_s=found[compiled.PROGRESS],
        )

    def _sized(self, targets: Targets, rows: Rows) -> Sizing:
        compiled = kernels()
        assert compiled is not None
        ttft, itl = np.ascontiguousarray(targets.ttft_s), np.ascontiguousarray(targets.itl_s)
        share, rows = np.ascontiguousarray(targets.max_blocked_share), np.ascontiguousarray(rows)
        rate, binding, found = compiled.size(
            self.table, self.segments, self.starts, self.overhead_s, self.full_rate, rows, ttft, itl, share
        )
        sizing = Sizing(rate, rate > 0, binding.astype(np.int8))
        throughput = rate * (1.0 - found[:, compiled.BLOCKED])
        return with_throughput(sizing, throughput, self.servers.workload, targets, rows)


def _table(servers: ServerModel, iterations: Array) -> Array:
    """The rows of `affine_kernels.states`, as if the servers were affine throughout."""
    from services.perfmodel import affine_kernels

    law, limits = servers.law, servers.limits
    most = np.asarray(limits.max_batch)
    table = np.empty((most.size, affine_kernels.ROW))
    table[:, 0], table[:, 4], table[:, 5] = iterations, most, limits.max_queue
    times = (law.iteration_time, law.prefill_time, law.inter_token_time)
    for column, (at_zero, slope) in zip(
        (1, 6, 8), _affine(servers, np.ones(most.size), most, times), strict=True
    ):
        table[:, column], table[:, column + 1] = at_zero, slope
    table[:, 3] = affine_kernels.log_coefficients(table)
    return table


def _affine(
    servers: ServerModel, low: Array, high: Array, times: Sequence[Callable[..., Array]]
) -> list[tuple[Array, Array]]:
    """Times at a batch of zero and by batch, from two batches between which they are affine."""
    found = []
    rest = (servers.workload, servers.limits.token_budget)
    for time in times:
        at_low, at_high = time(servers.parameters, low, *rest), time(servers.parameters, high, *rest)
        # What a single batch leaves unknown does not matter: no other is looked at.
        slope = np.maximum(at_high - at_low, 0.0) / np.maximum(high - low, 1.0)
        found.append((at_low - low * slope, slope))
    # An iteration's fixed part may be rounded below zero where it is zero.
    found[0] = (np.maximum(found[0][0], 0.0), found[0][1])
    return found


def _segments(servers: ServerModel, rows: Rows, count: int) -> tuple[Array, Rows, Flags]:
    """The segments of some rows, where each of all rows' begin, and which rows have no more than are allowed."""
    from services.perfmodel.segment_kernels import SEGMENT

    law = servers.law
    pieces: list[tuple[Rows, Array]] = []
    left, start = rows, np.ones(rows.size)
    while left.size and len(pieces) < MOST_SEGMENTS:
        some = servers.take(left)
        most = np.asarray(some.limits.max_batch)

        def iterations(batch: Array, of: ServerModel = some) -> Array:
            return law.iterations_per_request(of.parameters, batch, of.workload, of.limits.token_budget)

        wanted = iterations(start)
        low, high = start.copy(), most.copy()
        while np.any(low < high):
            middle = np.ceil((low + high) / 2.0)
            same = iterations(middle) == wanted
            low, high = np.where(same, middle, low), np.where(same, high, middle - 1.0)
        times = (law.iteration_time, law.prefill_time, law.inter_token_time)
        piece = np.empty((left.size, SEGMENT))
        piece[:, 0], piece[:, 1] = low, wanted
        for column, (at_zero, slope) in zip((2, 4, 6), _affine(some, start, low, times), strict=True):
            piece[:, column], piece[:, column + 1] = at_zero, slope
        pieces.append((left, piece))
        more = low < most
        left, start = left[more], low[more] + 1.0
    owner = np.concatenate([rows for rows, _ in pieces]) if pieces else np.empty(0, dtype=np.intp)
    kept = ~np.isin(owner, left)
    owner = owner[kept]
    table = np.concatenate([piece for _, piece in pieces])[kept] if pieces else np.empty((0, SEGMENT))
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=count))]).astype(np.intp)
    taken = np.zeros(count, dtype=bool)
    taken[owner] = True
    return table[np.argsort(owner, kind="stable")], starts, taken


def _tabulated(servers: ServerModel) -> RateCurves:
    tables = Tables.of(servers)

    def evaluate(rate: Array, rows: Rows) -> RateOutcome:
        found = tables.chain.found_at(rate, rows)
        ttft, itl = tables.latencies(found, rows)
        return RateOutcome(ttft, itl, found.blocked_share, found.throughput)

    return RateCurves(tables.chain.full_rate, evaluate)
