"""The corrected model: the birth-death chain, and what it leaves out, in closed form, with percentiles."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array, Values, require
from services.perfmodel.queueing import (
    ALL,
    ALL_STATISTICS,
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
from services.perfmodel.queueing_models.delays import LEVELS, delays, distributions
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import RateCurves, RateOutcome, largest_rates, smallest_batch

RATE_TOLERANCE = 1e-7


@dataclass(frozen=True)
class CorrectedModel:
    """Birth-death means corrected for variability and for the iteration in progress; see `delays`.

    Percentiles of the inter-token latency are over token gaps, all others over requests.

    Limits of validity: prompts short of the token budget, about 1 000 tokens (`interference` beyond); the
    second moments of the lengths matter, without them every request is taken for the mean one; blocking is
    the chain's, whatever the variability; the KV cache does not enter. Of a heavy-tailed output length the
    fourth moment enters the wait, and only the second is known.
    """

    name: str = "corrected"
    capabilities: Capabilities = ALL
    long_prompts: bool = False

    def adapted(self, server: ServerModel) -> ServerModel:
        """The servers whose chains are looked at."""
        return server

    def analyze(
        self, server: ServerModel, rate_rps: Values, statistics: Collection[Statistic] = ALL_STATISTICS
    ) -> Metrics:
        offered = require("rate_rps", rate_rps, minimum=0.0)
        shape = np.broadcast_shapes(server.shape, offered.shape)
        server = self.adapted(server)
        chains, rows = Chains.of(server), server.elements(shape)
        rate = np.broadcast_to(offered, shape).ravel()
        states = chains.at(rate, rows)
        found = delays(chains, states, rate, rows, self.long_prompts)

        times = distributions((found.wait, found.ttft, found.gap, found.end_to_end), statistics)
        # Gaps are counted by token, their mean by request.
        times[2] = replace(times[2], mean=states.inter_token_s)

        def shaped(values: Array) -> Array:
            return values.reshape(shape)

        wait_s, ttft_s, itl_s, end_to_end_s = (
            Distribution(**{name: shaped(v) for name, v in vars(time).items() if v is not None})
            for time in times
        )
        wait = found.wait.overall_mean()
        overloaded = rate >= chains.full_rate[rows]
        held_by = self.held_by(server, saturation(rate, chains.work_s[rows], overloaded), rows)
        return Metrics(
            offered_rps=shaped(rate),
            throughput_rps=shaped(states.throughput_rps),
            capacity_rps=shaped(chains.full_rate[rows]),
            occupancy=shaped(states.throughput_rps * states.service_s),
            queue_length=shaped(states.throughput_rps * wait),
            blocked_share=shaped(states.blocked_share),
            wait_s=wait_s,
            ttft_s=ttft_s,
            itl_s=itl_s,
            end_to_end_s=end_to_end_s,
            overloaded=overloaded.reshape(shape),
            saturation=held_by.reshape(shape),
        )

    def held_by(self, server: ServerModel, reasons: NDArray[np.int8], rows: Rows) -> NDArray[np.int8]:
        """What holds overloaded servers back, by element."""
        return reasons

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: Statistic = Statistic.MEAN
    ) -> Sizing:
        self.capabilities.require(self.name, statistic)

        def curves(servers: ServerModel) -> RateCurves:
            chains = Chains.of(self.adapted(servers))

            def evaluate(rate: Array, rows: Rows) -> RateOutcome:
                states = chains.at(rate, rows)
                found = delays(chains, states, rate, rows, self.long_prompts)
                if statistic is Statistic.MEAN:
                    times = found.ttft.overall_mean(), states.inter_token_s
                else:
                    level = LEVELS[statistic.value]
                    times = found.ttft.quantile(level), found.gap.quantile(level)
                return RateOutcome(*times, states.blocked_share, states.throughput_rps)

            return RateCurves(chains.full_rate, evaluate)

        return largest_rates(server, targets, curves, RATE_TOLERANCE)

    def concurrency(
        self,
        server: ServerModel,
        targets: Targets,
        statistic: Statistic = Statistic.MEAN,
        tolerance: float = 0.01,
    ) -> NDArray[np.int64]:
        self.capabilities.require(self.name, statistic)
        return smallest_batch(self, server, targets, statistic, tolerance)
