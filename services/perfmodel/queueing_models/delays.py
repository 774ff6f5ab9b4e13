"""What a birth-death chain leaves out of the time a request takes: variability, the iteration in progress, prompts.

With the batch full, each request takes V = K·(t₀/N + decode) + KV reads + prefill of the engine's time, whatever
the order, so the queue behaves as a single server's with service V, and its wait goes with (c_a² + c_V²)/2
(Allen and Cunneen; Allen, Probability, Statistics and Queueing Theory, 1990, §5.3.6). Moments of V beyond the
second of the lengths are taken from gamma distributions.

An arrival also waits for the iteration in progress. Prompts that arrive during one iteration are computed in the
next, so durations follow T' = T_d + w₁ + … over the arrivals in T, with w a prompt's work and ρ = λE[w], and the
mean residual is E[T]/2 + λE[w²]/(2(1−ρ²)). Prompts that fill the token budget queue for it instead, one after
the other: Pollaczek–Khinchine with the seconds that a prompt's share of the budget takes.

A time is a mixture of two gamma distributions, of requests that found a free place and of those that had to wait
for one, each with matched mean and variance.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from services.perfmodel.law import Array, TokenCosts, Values
from services.perfmodel.queueing import Distribution, ServerModel, Statistic
from services.perfmodel.queueing_models.chains import Chains
from services.perfmodel.queueing_models.tables import ChainStates
from services.perfmodel.root_finding import Rows, largest_below

LEVELS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
# The prompts' queue is not followed beyond this load: the engine is then overloaded anyway.
HIGHEST_PROMPT_LOAD = 0.98
QUANTILE_TOLERANCE = 1e-7
# A quantile below this share of the longest times is zero.
RESOLUTION = 1e-12
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Mixture:
    """A time in seconds, of two kinds of requests; arrays of shape (R,).

    share: of the second kind. mean, variance: of the first; mean_second, variance_second: of the second.
    """

    share: Array
    mean: Array
    variance: Array
    mean_second: Array
    variance_second: Array

    def overall_mean(self) -> Array:
        """The mean of all."""
        mean: Array = self.mean + self.share * (self.mean_second - self.mean)
        return mean

    def shifted(self, mean_s: Array, variance: Array) -> "Mixture":
        """The time and another that is independent of it and of the kind."""
        return Mixture(
            self.share,
            self.mean + mean_s,
            self.variance + variance,
            self.mean_second + mean_s,
            self.variance_second + variance,
        )

    def quantile(self, level: Values) -> Array:
        """The time that a share `level` of the requests do not exceed, of shape (R,)."""
        # A tenth of a second, which questions about means do without.
        from scipy.special import gammaincc

        largest = np.maximum(self.mean, self.mean_second)
        spread = np.sqrt(np.maximum(np.maximum(self.variance, self.variance_second), (1e-6 * largest) ** 2))
        levels = np.broadcast_to(level, largest.shape)
        parts = []
        for weight, mean, variance in (
            (1.0 - self.share, self.mean, self.variance),
            (self.share, self.mean_second, self.variance_second),
        ):
            mean = np.maximum(mean, TINY)
            variance = np.maximum(variance, (1e-6 * mean) ** 2)
            parts.append((weight, mean * mean / variance, mean / variance))

        def within(time: Array, rows: Rows) -> Array:
            missing: Array = 1.0 - levels[rows]
            for weight, shape, rate in parts:
                missing -= weight[rows] * gammaincc(shape[rows], time * rate[rows])
            return missing

        # By Cantelli's inequality no more than 1/(1 + 40²) of either kind are beyond this.
        high = largest + 40.0 * spread + TINY
        everything = np.arange(high.size)
        at_high = np.maximum(within(high, everything), TINY)
        nothing = np.zeros(high.size)
        return largest_below(within, nothing, high, -levels, at_high, QUANTILE_TOLERANCE, RESOLUTION * high)


def distributions(mixtures: Sequence[Mixture], statistics: Collection[Statistic]) -> list[Distribution]:
    """Means, and the percentiles that are wanted, of mixtures of the same shape, all found at once."""
    wanted = {name: level for name, level in LEVELS.items() if name in statistics}
    if not wanted:
        return [Distribution(mixture.overall_mean()) for mixture in mixtures]
    fields = [
        np.concatenate([np.tile(v, len(wanted)) for v in parts])
        for parts in zip(*map(_values, mixtures), strict=True)
    ]
    count = mixtures[0].share.size
    levels = np.tile(np.repeat(list(wanted.values()), count), len(mixtures))
    found = Mixture(*fields).quantile(levels).reshape(len(mixtures), len(wanted), count)
    return [
        Distribution(mixture.overall_mean(), **dict(zip(wanted, quantiles, strict=True)))
        for mixture, quantiles in zip(mixtures, found, strict=True)
    ]


def _values(mixture: Mixture) -> tuple[Array, ...]:
    return tuple(vars(mixture).values())


@dataclass(frozen=True, eq=False)
class Work:
    """Moments of what a request costs, for S servers along one axis.

    mean_s, scv: of V, the engine's seconds a request takes in a full batch, and its variability.
    prompt_s, prompt_sq, prompt_cube: moments of w, the work of a prompt in one piece.
    decode_s: seconds a decoding request adds to an iteration.
    """

    mean_s: Array
    scv: Array
    prompt_s: Array
    prompt_sq: Array
    prompt_cube: Array
    decode_s: Array
    costs: TokenCosts

    @classmethod
    def of(cls, servers: ServerModel) -> "Work":
        """The work of the servers' requests; prompt and output lengths vary independently beyond E[LK]."""
        costs, load = servers.law.token_costs(servers.parameters), servers.workload
        prompt, output = np.asarray(load.input_tokens), np.asarray(load.output_tokens)
        l1, l2, l3, l4 = _moments(prompt, np.asarray(load.input_second_moment))
        k1, k2, k3, k4 = _moments(output, np.asarray(load.output_second_moment))
        # V = a·K + b·L + g·LK + h·K² + s·L².
        a = costs.iteration_s / servers.limits.max_batch + costs.decode_s + costs.decode_read_s / 2.0
        b = costs.prefill_token_s * load.computed_share + costs.prefill_read_s
        g, h, s = costs.decode_read_s, costs.decode_read_s / 2.0, costs.prefill_square_s
        mean = a * k1 + b * l1 + g * l1 * k1 + h * k2 + s * l2
        square = a * a * k2 + b * b * l2 + g * g * l2 * k2 + h * h * k4 + s * s * l4
        square += 2.0 * (a * b * l1 * k1 + a * g * l1 * k2 + a * h * k3 + a * s * l2 * k1)
        square += 2.0 * (b * g * l2 * k1 + b * h * l1 * k2 + b * s * l3)
        square += 2.0 * (g * h * l1 * k3 + g * s * l3 * k1 + h * s * l2 * k2)
        w1 = b * l1 + s * l2
        w2 = b * b * l2 + 2.0 * b * s * l3 + s * s * l4
        return cls(
            mean,
            np.maximum(square / np.maximum(mean * mean, TINY) - 1.0, 0.0),
            w1,
            w2,
            _moments(w1, w2)[2],
            costs.decode_s + g * (np.asarray(load.product_moment) + (k2 + k1) / 2.0) / k1,
            costs,
        )


@dataclass(frozen=True, eq=False)
class Delays:
    """The distributions of the times of requests, at one rate for each element (R,)."""

    wait: Mixture
    ttft: Mixture
    gap: Mixture
    end_to_end: Mixture


def delays(chains: Chains, states: ChainStates, rate: Array, rows: Rows, long_prompts: bool) -> Delays:
    """What rates (R,) of the chains `rows` make of the times of requests.

    long_prompts: whether prompts queue for the token budget.
    """
    servers = chains.servers
    work = servers.once("work", lambda: Work.of(servers))
    load, limits, law = servers.workload, servers.limits, servers.law
    iteration_s = np.broadcast_to(work.costs.iteration_s, chains.full_rate.shape)[rows]
    prompt, prompt_sq = (
        np.broadcast_to(w, chains.full_rate.shape)[rows] for w in (work.prompt_s, work.prompt_sq)
    )
    prompt_cube, decode = (
        np.broadcast_to(w, chains.full_rate.shape)[rows] for w in (work.prompt_cube, work.decode_s)
    )
    queue = _queue(chains, states, rows, (np.asarray(load.arrival_variability) + work.scv) / 2.0)

    # The iteration in progress, and the prompts that are computed in it.
    served = states.throughput_rps
    share = 2.0 * np.broadcast_to(law.residual_share(servers.parameters), chains.full_rate.shape)[rows]
    prompt_load = np.minimum(served * prompt, HIGHEST_PROMPT_LOAD)
    burst = served * prompt_sq / (2.0 * (1.0 - prompt_load**2))
    residual = share * states.progress_s / 2.0 + burst
    residual_var = (share * states.progress_s) ** 2 / 12.0 + burst**2
    residual_var += served * prompt_cube / (3.0 * (1.0 - prompt_load))
    if long_prompts:
        left = np.asarray(limits.token_budget)[rows]
        computed = np.asarray(load.input_tokens * load.computed_share)[rows]
        spread = np.asarray(load.input_second_moment / np.maximum(load.input_tokens, TINY))[rows]
        alone = np.minimum(1.0, spread * np.asarray(load.computed_share) / left)
        # A prompt's share of full iterations, each of which carries the decoding batch along.
        stretch = 1.0 + (iteration_s + states.batch * decode) * computed / left / np.maximum(prompt, TINY)
        prefill_load = np.minimum(served * prompt * stretch, HIGHEST_PROMPT_LOAD)
        backlog = served * prompt_sq * stretch**2 / (2.0 * (1.0 - prefill_load))
        decoding = (1.0 - prefill_load) * (iteration_s + states.batch * decode) * share / 2.0
        in_turn = decoding + backlog
        in_turn_var = decoding**2 / 3.0 + backlog**2
        in_turn_var += served * prompt_cube * stretch**3 / (3.0 * (1.0 - prefill_load))
        residual, residual_var = (
            (1.0 - alone) * residual + alone * in_turn,
            (1.0 - alone) * residual_var + alone * in_turn_var,
        )
    wait = queue.shifted(residual, residual_var)

    # Prompts computed along with one's own: of those that arrive in an iteration an arrival sees more than the mean.
    beside = served * prompt * 2.0 * burst
    batch_var = np.maximum(states.batch_sq - states.batch**2, 0.0)
    slope = (chains.iteration_slope_s[rows]) ** 2 * batch_var
    own_var = np.maximum(prompt_sq - prompt**2, 0.0)
    ttft = wait.shifted(chains.overhead_s[rows] + states.prefill_s + beside, own_var + slope)

    # Token gaps: iterations with and without prompts in them.
    gap_s = states.inter_token_s
    arrivals = served * gap_s
    with_prompts = -np.expm1(-arrivals)
    decode_only = np.maximum(gap_s - arrivals * prompt, iteration_s)
    ratio = np.where(arrivals > 0, arrivals / np.maximum(with_prompts, TINY), 1.0)
    gap = Mixture(
        with_prompts,
        decode_only,
        slope,
        decode_only + ratio * prompt,
        slope + ratio * prompt_sq,
    )

    output = np.asarray(load.output_tokens)[rows]
    length_var = np.maximum(np.asarray(load.output_second_moment)[rows] - output**2, 0.0)
    service_var = length_var * gap_s**2 + own_var + slope * output**2
    end_to_end = wait.shifted(chains.overhead_s[rows] + states.service_s, service_var)
    return Delays(wait, ttft, gap, end_to_end)


def _queue(chains: Chains, states: ChainStates, rows: Rows, variability: Array) -> Mixture:
    """The wait for a place: none, or exponential with what is left of the chain's mean.

    A queue that is nearly full leaves the wait no room to vary: its mean goes to Q/μ(N) whatever the variability.
    """
    longest = np.asarray(chains.servers.limits.max_queue)[rows] / chains.full_rate[rows]
    factor = np.broadcast_to(variability, chains.full_rate.shape)[rows]
    filled = np.where(longest > 0, np.minimum(states.wait_s / np.maximum(longest, TINY), 1.0), 1.0)
    mean = states.wait_s * factor / (1.0 + (factor - 1.0) * filled)
    share = np.clip(states.waiting_share, 0.0, 1.0)
    of_those = np.where(share > 0, mean / np.maximum(share, TINY), 0.0)
    nothing = np.zeros(rows.size)
    return Mixture(share, nothing, nothing, of_those, (of_those * (1.0 - filled)) ** 2)


def _moments(mean: Array, square: Array) -> tuple[Array, Array, Array, Array]:
    """The first four moments of the gamma distribution with these two."""
    scv = np.maximum(square / np.maximum(mean * mean, TINY) - 1.0, 0.0)
    third = square * mean * (1.0 + 2.0 * scv)
    return mean, square, third, third * mean * (1.0 + 3.0 * scv)
