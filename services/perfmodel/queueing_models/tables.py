"""What the law says of every batch, tabulated: the plain path of the chain models, for any law and any chunks."""

from dataclasses import dataclass

import numpy as np

from services.perfmodel.law import Array
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.chain import Chain, Found
from services.perfmodel.root_finding import Rows


@dataclass(frozen=True, eq=False)
class ChainStates:
    """What rates make of chains; every array has shape (R,) and is over admitted arrivals.

    wait_s: mean seconds from arrival to the start of service.
    prefill_s, inter_token_s, service_s: means of the law's times at the batch an arrival is served in.
    batch, batch_sq: mean and mean square of that batch.
    waiting_share: share that finds every place taken.
    progress_s: mean duration of the iteration that an arrival finds in progress, zero of an idle server.
    """

    throughput_rps: Array
    blocked_share: Array
    wait_s: Array
    prefill_s: Array
    inter_token_s: Array
    service_s: Array
    batch: Array
    batch_sq: Array
    waiting_share: Array
    progress_s: Array

    @classmethod
    def empty(cls, count: int) -> "ChainStates":
        """States that are still to be put."""
        return cls(*(np.empty(count) for _ in range(10)))

    def put(self, elements: Rows, part: "ChainStates") -> None:
        """Write the states of some elements."""
        for name, values in vars(self).items():
            values[elements] = getattr(part, name)


@dataclass(frozen=True, eq=False)
class Tables:
    """What the law says of every batch 1 … N of S servers, padded to the largest N.

    service_s, prefill_s, inter_token_s, iteration_s: shape (S, N); beyond a server's own N its value at N.
    overhead_s: shape (S,).
    """

    chain: Chain
    service_s: Array
    prefill_s: Array
    inter_token_s: Array
    iteration_s: Array
    overhead_s: Array

    @classmethod
    def of(cls, server: ServerModel) -> "Tables":
        """The tables of servers along one axis."""
        law, limits = server.law, server.limits
        max_batch, max_queue = np.asarray(limits.max_batch), np.asarray(limits.max_queue)
        batch = np.minimum(np.arange(1.0, max_batch.max(initial=1.0) + 1.0), max_batch[:, None])
        wide = server.columns()
        question = (wide.parameters, batch, wide.workload, wide.limits.token_budget)
        iteration = law.iteration_time(*question)
        service = law.iterations_per_request(*question) * iteration
        return cls(
            Chain.from_rates(batch / service, max_batch, max_queue),
            service,
            law.prefill_time(*question),
            law.inter_token_time(*question),
            iteration,
            law.overhead_time(server.parameters, server.workload),
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

    def states(self, rate: Array, rows: Rows) -> ChainStates:
        """What rates (R,) make of the chains `rows`."""
        found = self.chain.found_at(rate, rows)
        share, iteration = found.batch_share, self.iteration_s[rows]
        batch = np.minimum(np.arange(1.0, share.shape[1] + 1.0), self.chain.max_batch[rows][:, None])
        # An arrival that is served in a batch of B found B − 1 others at work, unless it had to wait.
        shifted = np.concatenate([np.zeros((rows.size, 1)), iteration[:, :-1]], axis=1)
        last = np.arange(rows.size), self.chain.max_batch[rows].astype(np.intp) - 1
        found_waiting = found.waiting_share * (iteration[last] - shifted[last])
        return ChainStates(
            found.throughput,
            found.blocked_share,
            self.wait_s(found, rows),
            found.mean(self.prefill_s[rows]),
            found.mean(self.inter_token_s[rows]),
            found.mean(self.service_s[rows]),
            found.mean(batch),
            found.mean(batch**2),
            found.waiting_share,
            found.mean(shifted) + found_waiting,
        )
