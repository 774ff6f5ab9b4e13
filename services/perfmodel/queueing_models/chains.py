"""Birth-death chains of many servers: compiled where times are affine in the batch, else from tables.

A law's times are affine while the iterations per request stay the same (`IterationLaw`), so a server whose
iterations are as many alone as in a full batch is affine throughout. Others, whose prompts need more chunks the
fuller the batch is, are tabulated, as is everything where numba is not installed.
"""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from services.perfmodel.blocks import blocks
from services.perfmodel.law import Array
from services.perfmodel.queueing import Flags, ServerModel, Sizing, Targets
from services.perfmodel.queueing_models.tables import ChainStates, Tables
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import RateCurves, RateOutcome, largest_rates, with_throughput

# A rate of zero is looked at as this share of the capacity: an idle server to the last digit but three.
IDLE_SHARE = 1e-13


@cache
def kernels() -> ModuleType | None:
    """The compiled kernels; None where numba is not installed, and the plain path is taken."""
    try:
        from services.perfmodel import affine_kernels
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None
    return affine_kernels


@dataclass(frozen=True, eq=False)
class Chains:
    """The chains of S servers along one axis, without what depends on the rate.

    full_rate: shape (S,), μ(N) in requests per second.
    overhead_s, work_s: shape (S,), the work of a request in a full batch.
    iteration_slope_s: shape (S,), what one more request adds to an iteration, up to a full batch.
    affine: shape (S,), which of them the kernels take.
    table: shape (S, ROW), see `affine_kernels.states`; meaningless in rows that are not affine.
    """

    servers: ServerModel
    full_rate: Array
    overhead_s: Array
    work_s: Array
    iteration_slope_s: Array
    affine: Flags
    table: Array

    @classmethod
    def of(cls, server: ServerModel) -> "Chains":
        """The chains of servers of any shape, along one axis; made once for each server object."""
        return server.once("chains", lambda: cls._of(server.rows()))

    @classmethod
    def _of(cls, servers: ServerModel) -> "Chains":
        law, limits = servers.law, servers.limits
        most = np.asarray(limits.max_batch)
        alone = (servers.parameters, 1.0, servers.workload, limits.token_budget)
        full = (servers.parameters, most, servers.workload, limits.token_budget)
        iterations = law.iterations_per_request(*full)
        slowest = law.iteration_time(*full)
        overhead = np.array(law.overhead_time(servers.parameters, servers.workload))
        compiled = kernels()
        if compiled is None:
            affine, table = np.zeros(most.size, dtype=bool), np.empty((most.size, 0))
        else:
            affine = law.iterations_per_request(*alone) == iterations
            table = np.empty((most.size, compiled.ROW))
            steps = np.maximum(most - 1.0, 1.0)
            table[:, 0], table[:, 4], table[:, 5] = iterations, most, limits.max_queue
            for column, time, at_full in (
                (1, law.iteration_time, slowest),
                (6, law.prefill_time, law.prefill_time(*full)),
                (8, law.inter_token_time, law.inter_token_time(*full)),
            ):
                at_one = time(*alone)
                # What a single place leaves unknown does not matter: no batch is larger.
                slope = np.maximum(at_full - at_one, 0.0) / steps
                table[:, column], table[:, column + 1] = at_one - slope, slope
            # The law may be rounded below zero where its fixed part is zero.
            table[:, 1] = np.maximum(table[:, 1], 0.0)
            table[:, 3] = compiled.log_coefficients(table)
        work = np.asarray(law.work_per_request(*full))
        slope = np.maximum(slowest - law.iteration_time(*alone), 0.0) / np.maximum(most - 1.0, 1.0)
        return cls(servers, most / (iterations * slowest), overhead, work, slope, affine, table)

    def at(self, rate: Array, rows: Rows) -> ChainStates:
        """What rates (R,) make of the chains `rows`."""
        states = ChainStates.empty(rate.size)
        affine = self.affine[rows]
        chosen = np.flatnonzero(affine)
        if chosen.size:
            states.put(chosen, self._compiled(rate[chosen], rows[chosen]))
        chosen = np.flatnonzero(~affine)
        if chosen.size:
            some = self.servers.take(rows[chosen])
            for block in blocks(some, some.shape):
                part = Tables.of(block.servers).states(rate[chosen][block.elements], block.rows)
                states.put(chosen[block.elements], part)
        return states

    def size(self, targets: Targets, rows: Rows) -> Sizing:
        """The largest rates of elements (E,) within targets on means, of the servers `rows`."""
        sizing = Sizing.unknown(rows.shape)
        affine = self.affine[rows]
        chosen = np.flatnonzero(affine)
        if chosen.size:
            sizing.put(chosen, self._sized(targets.take(chosen), rows[chosen]))
        chosen = np.flatnonzero(~affine)
        if chosen.size:
            some = self.servers.take(rows[chosen])
            sizing.put(chosen, largest_rates(some, targets.take(chosen), _tabulated))
        return sizing

    def _compiled(self, rate: Array, rows: Rows) -> ChainStates:
        compiled = kernels()
        assert compiled is not None
        full = self.full_rate[rows]
        found = compiled.states(np.maximum(rate, IDLE_SHARE * full), rows, self.table).T
        _, base, slope, _, _, _, prefill, prefill_slope, token, token_slope = self.table[rows].T
        batch, waiting = found[compiled.BATCH], found[compiled.QUEUED]
        # An arrival that did not have to wait found one request fewer than the batch it is served in.
        working = batch - (1.0 - waiting)
        return ChainStates(
            throughput_rps=rate * (1.0 - found[compiled.BLOCKED]),
            blocked_share=found[compiled.BLOCKED],
            wait_s=found[compiled.WAITED] / full,
            prefill_s=prefill + prefill_slope * batch,
            inter_token_s=token + token_slope * batch,
            service_s=self.table[rows, 0] * (base + slope * batch),
            batch=batch,
            batch_sq=found[compiled.BATCH_SQ],
            waiting_share=waiting,
            progress_s=base * (1.0 - found[compiled.IDLE]) + slope * working,
        )

    def _sized(self, targets: Targets, rows: Rows) -> Sizing:
        compiled = kernels()
        assert compiled is not None
        ttft, itl = (np.asarray(bound, float) for bound in (targets.ttft_s, targets.itl_s))
        ttft, itl = np.where(np.isnan(ttft), np.inf, ttft), np.where(np.isnan(itl), np.inf, itl)
        share = np.asarray(targets.max_blocked_share)
        rate, binding, found = compiled.size(self.table, self.overhead_s, rows, ttft, itl, share)
        sizing = Sizing(rate, rate > 0, binding.astype(np.int8))
        throughput = rate * (1.0 - found[:, compiled.BLOCKED])
        return with_throughput(sizing, throughput, self.servers.workload, targets, rows)


def _tabulated(servers: ServerModel) -> RateCurves:
    tables = Tables.of(servers)

    def evaluate(rate: Array, rows: Rows) -> RateOutcome:
        found = tables.chain.found_at(rate, rows)
        ttft, itl = tables.latencies(found, rows)
        return RateOutcome(ttft, itl, found.blocked_share, found.throughput)

    return RateCurves(tables.chain.full_rate, evaluate)
