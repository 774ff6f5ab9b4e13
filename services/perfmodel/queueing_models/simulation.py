"""The simulation: every iteration of an engine with continuous batching, the yardstick of the other models."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from services.perfmodel.law import Array, Values, require
from services.perfmodel.queueing import (
    ALL_STATISTICS,
    ALL_WITH_MEMORY,
    Capabilities,
    Distribution,
    Metrics,
    Saturation,
    ServerModel,
    Sizing,
    Statistic,
    Targets,
)
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import RateCurves, RateOutcome, largest_rates, smallest_batch

# The queue that never empties has at least so many batches.
FULL_BATCHES = 10
PERCENTILES = (50.0, 90.0, 95.0, 99.0)


class SimulationSettings(BaseModel):
    """How long and how often is simulated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: Annotated[int, Field(ge=200, le=10_000_000)] = 20_000
    """Requests of one run; at high loads waits are correlated over thousands of requests."""
    warm_up_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of them at the start of a run that is not counted, because it began with an idle engine."""
    batches: Annotated[int, Field(ge=2, le=1000)] = 20
    """Parts of a run whose means give the confidence intervals."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of arrivals and lengths; the same for every rate and server, so that differences are not noise."""
    block_tokens: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens in a block of KV memory."""


@dataclass(frozen=True, eq=False)
class Requests:
    """What a run serves, in the order of arrival; all of shape (R,).

    arrival_s: seconds, rising.
    prompt, cached, output: tokens; `cached` of the prompt are in the prefix cache.
    """

    arrival_s: Array
    prompt: Rows
    cached: Rows
    output: Rows


@dataclass(frozen=True, eq=False)
class Run:
    """What became of the requests of a run, and of the engine.

    admitted_s, first_token_s, finish_s: shape (R,), NaN where a request was blocked.
    gaps: token gaps counted by the bins of `engine.gap_edges`.
    """

    requests: Requests
    admitted_s: Array
    first_token_s: Array
    finish_s: Array
    gaps: Array
    iterations: int
    decoded_tokens: int
    preemptions: int


@dataclass(frozen=True)
class Estimate:
    """A mean over a run and the half-width of its 95 % confidence interval, from batch means."""

    mean: float
    half_width: float


def serve(server: ServerModel, requests: Requests, block_tokens: int = 16) -> Run:
    """Run one engine over requests of any arrival process, or of a trace.

    server: a single replica, of shape (). Raises ValueError for several, or where requests are malformed.
    """
    from services.perfmodel import engine

    if server.shape != ():
        raise ValueError(f"one server is simulated at a time, got shape {server.shape}")
    if np.any(np.diff(requests.arrival_s) < 0) or np.any(requests.output < 1) or np.any(requests.prompt < 0):
        raise ValueError("requests must arrive in rising order, with at least 1 output and 0 prompt tokens")
    costs, limits = server.law.token_costs(server.parameters), server.limits
    names = [one.name for one in fields(costs)][:-1]
    kv_blocks = 0 if limits.kv_tokens is None else int(float(limits.kv_tokens) // block_tokens)
    if limits.kv_tokens is not None and kv_blocks == 0:
        raise ValueError(f"kv_tokens must hold a block of {block_tokens} tokens, got {limits.kv_tokens}")
    admitted, first, finish = (np.empty(requests.arrival_s.size) for _ in range(3))
    gaps = np.zeros(engine.BINS)
    iterations, decoded, preemptions = engine.run(
        requests.arrival_s,
        requests.prompt,
        requests.cached,
        requests.output,
        np.array([float(getattr(costs, name)) for name in names]),
        costs.prefill_tokens,
        int(limits.token_budget),
        int(limits.max_batch),
        int(limits.max_queue),
        kv_blocks,
        block_tokens,
        admitted,
        first,
        finish,
        gaps,
    )
    return Run(requests, admitted, first, finish, gaps, iterations, decoded, preemptions)


def draw(server: ServerModel, rate_rps: float, count: int, seed: int) -> Requests:
    """Requests with the workload's moments: gamma lengths (fixed ones without second moments), whole by chance.

    Times between arrivals are gamma of the workload's `arrival_scv`. Prompt and output lengths are drawn
    independently, whatever `input_output_tokens` says.
    """
    rng, workload = np.random.default_rng(seed), server.workload
    gaps_s = _gamma(rng, 1.0, float(workload.arrival_variability), count) / rate_rps
    lengths = []
    for mean, square, least in (
        (float(workload.input_tokens), float(workload.input_second_moment), 0),
        (float(workload.output_tokens), float(workload.output_second_moment), 1),
    ):
        scv = max(0.0, square / mean**2 - 1.0) if mean > 0 else 0.0
        real = _gamma(rng, mean, scv, count)
        lengths.append(np.maximum(least, np.floor(real + rng.random(count))).astype(np.int64))
    prompt, output = lengths
    cached = np.floor(prompt * (1.0 - float(workload.computed_share))).astype(np.int64)
    return Requests(np.cumsum(gaps_s), prompt, cached, output)


def estimate(values: Array, batches: int = 20) -> Estimate:
    """The mean of a correlated series and its 95 % half-width, by batch means."""
    # Imported here because it takes half a second and nothing else needs it.
    from scipy import stats

    parts = np.array([part.mean() for part in np.array_split(values, batches)])
    spread = parts.std(ddof=1) / np.sqrt(batches)
    return Estimate(float(values.mean()), float(stats.t.ppf(0.975, batches - 1) * spread))


@dataclass(frozen=True)
class SimulationModel:
    """Token-level continuous batching; see `engine` for what is followed and `draw` for the requests.

    Statistics are over the served requests after a warm-up; percentiles of the inter-token latency are over
    token gaps, its mean is over requests. The wait is from arrival to the iteration that first works on the
    prompt. `capacity_rps` is the throughput with a queue that never empties. `max_rate` bisects over runs
    with the same random numbers: its answer carries the noise of one run, about 1 % of the rate.

    Limits of validity: those of `engine`; lengths are gamma distributed and independent of each other, so tails
    heavier than that need a trace (`serve`); at loads near capacity a run of the default length is noisy.
    """

    Settings: ClassVar[type[BaseModel]] = SimulationSettings
    settings: SimulationSettings = field(default_factory=SimulationSettings)
    name: str = "simulation"
    capabilities: Capabilities = ALL_WITH_MEMORY

    def analyze(
        self, server: ServerModel, rate_rps: Values, statistics: Collection[Statistic] = ALL_STATISTICS
    ) -> Metrics:
        rate = require("rate_rps", rate_rps, minimum=0.0)
        shape = np.broadcast_shapes(server.shape, rate.shape)
        servers, rates = server.spread(shape), np.broadcast_to(rate, shape).ravel()
        table = np.array([self._figures(_one(servers, k), rates[k]) for k in range(rates.size)])
        columns = iter(table.reshape(*shape, FIGURES).transpose(-1, *range(len(shape))))

        def distribution() -> Distribution:
            return Distribution(*(next(columns) for _ in range(5)))

        throughput, capacity, occupancy, queue, blocked, kv = (next(columns) for _ in range(6))
        overloaded = rate >= capacity
        held_by = np.where(kv > 0, Saturation.KV, Saturation.BATCH)
        return Metrics(
            offered_rps=np.broadcast_to(rate, shape),
            throughput_rps=throughput,
            capacity_rps=capacity,
            occupancy=occupancy,
            queue_length=queue,
            blocked_share=blocked,
            wait_s=distribution(),
            ttft_s=distribution(),
            itl_s=distribution(),
            end_to_end_s=distribution(),
            overloaded=overloaded,
            saturation=np.where(overloaded, held_by, Saturation.NONE).astype(np.int8),
        )

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: Statistic = Statistic.MEAN
    ) -> Sizing:
        def curves(servers: ServerModel) -> RateCurves:
            every = [_one(servers, k) for k in range(servers.shape[0])]

            def evaluate(rate: Array, rows: Rows) -> RateOutcome:
                one_by_one = [self.analyze(every[row], rate[k]) for k, row in enumerate(rows)]

                def column(value: Callable[[Metrics], Array]) -> Array:
                    return np.array([float(value(metrics)) for metrics in one_by_one])

                return RateOutcome(
                    column(lambda m: getattr(m.ttft_s, statistic.value)),
                    column(lambda m: getattr(m.itl_s, statistic.value)),
                    column(lambda m: m.blocked_share),
                    column(lambda m: m.throughput_rps),
                )

            return RateCurves(np.array([self._capacity(one)[0] for one in every]), evaluate)

        return largest_rates(server, targets, curves, relative_tolerance=1e-3)

    def concurrency(
        self,
        server: ServerModel,
        targets: Targets,
        statistic: Statistic = Statistic.MEAN,
        tolerance: float = 0.01,
    ) -> NDArray[np.int64]:
        return smallest_batch(self, server, targets, statistic, tolerance)

    def run(self, server: ServerModel, rate_rps: float) -> Run:
        """One run of one server at one rate above zero."""
        requests = draw(server, rate_rps, self.settings.requests, self.settings.seed)
        return serve(server, requests, self.settings.block_tokens)

    def _capacity(self, server: ServerModel) -> tuple[float, int]:
        """Requests per second served with a queue that never empties, and preemptions meanwhile."""
        count = max(self.settings.requests, FULL_BATCHES * int(server.limits.max_batch))
        requests = draw(server, 1.0, count, self.settings.seed)
        at_once = replace(requests, arrival_s=np.zeros(requests.arrival_s.size))
        endless = replace(server, limits=replace(server.limits, max_queue=float(requests.prompt.size)))
        run = serve(endless, at_once, self.settings.block_tokens)
        finish = np.sort(run.finish_s[~np.isnan(run.finish_s)])
        if not finish.size:
            raise ValueError(_none_served(count))
        # The run ends with a batch that empties: only what ends while the queue lasts is at full batch.
        last = int(np.searchsorted(finish, np.nanmax(run.admitted_s)))
        first = int(last * self.settings.warm_up_share)
        return (last - first) / (finish[last] - finish[first]), run.preemptions

    def _figures(self, server: ServerModel, rate_rps: float) -> Array:
        from services.perfmodel import engine

        capacity, preemptions = self._capacity(server)
        idle = rate_rps == 0.0
        run = self.run(server, capacity * 1e-4 if idle else rate_rps)
        requests = run.requests
        counted = np.arange(requests.arrival_s.size) >= int(
            requests.arrival_s.size * self.settings.warm_up_share
        )
        served = counted & ~np.isnan(run.finish_s)
        if not served.any():
            raise ValueError(_none_served(served.size))
        arrival, overhead = (
            requests.arrival_s,
            float(server.law.overhead_time(server.parameters, server.workload)),
        )
        span_s = arrival[-1] - arrival[counted][0] if arrival.size > 1 else 1.0
        wait = (run.admitted_s - arrival)[served]
        ttft = (run.first_token_s - arrival)[served] + overhead
        end_to_end = (run.finish_s - arrival)[served] + overhead
        decodes = np.maximum(requests.output - server.law.token_costs(server.parameters).prefill_tokens, 1)
        itl = ((run.finish_s - run.first_token_s) / decodes)[served]
        gap_share = np.cumsum(run.gaps) / max(run.gaps.sum(), 1.0)
        gap_quantiles = engine.gap_edges()[np.searchsorted(gap_share, np.array(PERCENTILES) / 100.0)]
        blocked = 1.0 - served.sum() / counted.sum()
        throughput = 0.0 if idle else rate_rps * (1.0 - blocked)
        service = float((run.finish_s - run.admitted_s)[served].mean())
        if not idle and span_s > 0:
            throughput = float(served.sum() / max(span_s, run.finish_s[served].max() - arrival[counted][0]))
        figures = [throughput, capacity, throughput * service, throughput * wait.mean(), blocked]
        figures.append(float(preemptions))
        for values, quantiles in (
            (wait, None),
            (ttft, None),
            (itl, gap_quantiles),
            (end_to_end, None),
        ):
            figures.append(float(values.mean()))
            figures.extend(np.percentile(values, PERCENTILES) if quantiles is None else quantiles)
        return np.array(figures)


FIGURES = 6 + 4 * 5


def _none_served(count: int) -> str:
    return (
        f"none of the {count} simulated requests was served after the warm-up: the KV memory or the queue is too "
        "small for them, or the run is too short"
    )


def _one(servers: ServerModel, row: int) -> ServerModel:
    """One of the servers along one axis, of shape ()."""
    taken = servers.take(np.array([row]))
    return taken.reshaped(())


def _gamma(rng: np.random.Generator, mean: float, scv: float, count: int) -> Array:
    """Gamma variates of a mean and a squared coefficient of variation; the mean itself where that is zero."""
    if scv <= 1e-12 or mean == 0.0:
        return np.full(count, mean)
    return rng.gamma(1.0 / scv, mean * scv, count)
