"""What a law says that a benchmark measures: the observation function of the fit.

Open loads of rate λ are at the fixed point of the batch, closed loops at the batch that their clients make:

    seven-parameter   T = a + n·d + λT·p, n = λKT, so T = a/(1 − λKδ);  ITL = T,
                      TTFT = h + r·R·(1−e^{−n}) + a + n·d + (1 + j)·p;  alone (n = 0): ITL = a + d, TTFT = h + a + p
    any other law     the fluid model's ITL and TTFT, and the law's own at a given batch; three-parameter counts
                      the decode iteration that sends the first token, TTFT = prefill + ITL

With x = λT arrivals in an iteration, R = a + n·d + m·p is the iteration that an arrival finds in progress, with m
prefills in it, and j are the other prefills that share its own. Poisson arrivals find the mean iteration and share
with x others: m = j = x. At a constant rate those who came k gaps before are met when they came in the iteration
before the one in progress, whose age is uniform: m = Σₖ max(0, x − |k − x|)/x, none up to x = ½. The N arrivals of an
iteration are one of the two whole numbers about x, so j = E[N²]/x − 1, none up to x = 1. In between both are
interpolated by the squared coefficient of variation between arrivals.

A benchmark begins empty and stops. Of requests that stay for S = K·T in a run of D, those that arrive in the last S
are not counted as completed, and those in the first S meet a batch that is still growing. So with s = S/D the rate
that the batch of completed requests belongs to is the completed one times (1 − s/(6(1−s)))/(1 − s).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from services.perfmodel.law import Array, IterationLaw, Limits, Workload
from services.perfmodel.laws.seven_parameter import SevenParameterLaw, decode_work, prefill_work
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.fluid import FluidModel
from services.tuner.training.conditions import Conditions

# Beyond this share of the run in service the correction for its edges is extrapolation.
_LONGEST_STAY = 0.4
_ROUNDS = 14
_QUADRATURE = 32


@dataclass(frozen=True, eq=False)
class Predicted:
    """Mean latencies in seconds, shape (m, n) for m parameter sets and n load points."""

    itl_s: Array
    ttft_s: Array


class Observation(Protocol):
    """How a law is seen in a benchmark."""

    @property
    def law(self) -> IterationLaw: ...

    @property
    def starts(self) -> Array:
        """Parameter sets to start a fit from, shape (k, p) in SI units."""
        ...

    def predict(self, parameters: Array, at: Conditions) -> Predicted:
        """Mean ITL and TTFT under parameters of shape (m, p)."""
        ...


def observation_of(law: IterationLaw) -> Observation:
    """The observation function of a law."""
    if isinstance(law, SevenParameterLaw):
        return SevenParameterObservation(law)
    return FluidObservation(law, ttft_iterations=1 if isinstance(law, ThreeParameterLaw) else 0)


@dataclass(frozen=True)
class _Batch:
    """Where the loads of a benchmark put the engine under the seven-parameter law; arrays of shape (m, n)."""

    iteration_s: Array
    others: Array
    busy: Array
    found_s: Array
    shared: Array
    decode_s: Array
    prefill_s: Array


@dataclass(frozen=True)
class SevenParameterObservation:
    """The seven-parameter law with its overhead and residual iteration."""

    law: SevenParameterLaw

    @property
    def starts(self) -> Array:
        """From a small fast engine to a large slow one: orders of magnitude on today's accelerators."""
        return np.array(
            [
                (6e-3, 2e-5, 3e-5, 5e-8, 1e-9, 5e-3, 0.8),
                (2e-2, 1e-4, 1e-4, 2e-7, 1e-8, 1e-2, 1.0),
                (2e-3, 5e-6, 1e-5, 1e-8, 1e-10, 2e-3, 0.5),
            ]
        )

    def predict(self, parameters: Array, at: Conditions) -> Predicted:
        wide = parameters[:, None, :]
        state = self._batch(wide, at)
        residual = wide[..., 6] * state.found_s * state.busy
        ttft = wide[..., 5] + residual + wide[..., 0] + state.others * state.decode_s
        ttft = ttft + (1.0 + state.shared) * state.prefill_s
        alone = at.closed & (at.clients <= 1.0)
        itl = np.where(alone, wide[..., 0] + state.decode_s, state.iteration_s)
        return Predicted(itl, ttft)

    def ttft_p95(self, parameters: Array, at: Conditions) -> Array:
        """The 95th percentile of TTFT in seconds, shape (n,), under parameters of shape (p,).

        The iteration in progress leaves a uniform share of itself, on top of what the engine schedules ahead
        (r − ½ of it), and prompts are uniform about their mean with the measured spread; both independent. The
        batch's own fluctuation is left out, so near capacity this is too low.
        """
        wide = parameters[None, None, :]
        state = self._batch(wide, at)
        middle = (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE
        prompt = at.input_tokens[:, None] + at.input_tokens_sd[:, None] * np.sqrt(3.0) * (2.0 * middle - 1.0)
        prefill = prefill_work(wide, Workload(np.maximum(prompt, 0.0), 1.0))
        found = (state.found_s * state.busy)[0, :, None]
        residual = found * (parameters[6] - 0.5 + middle)
        sums = (prefill[:, :, None] + residual[:, None, :]).reshape(len(prompt), -1)
        rest = wide[..., 5] + wide[..., 0] + state.others * state.decode_s + state.shared * state.prefill_s
        quantiles: Array = np.quantile(sums, 0.95, axis=1) + rest[0]
        return quantiles

    def _batch(self, wide: Array, at: Conditions) -> _Batch:
        base, decode, prefill = wide[..., 0], decode_work(wide, at.workload), prefill_work(wide, at.workload)
        slope = decode + prefill / at.output_tokens
        full = base + at.largest_batch * slope
        # The stay enters the rate that enters the stay; averaging two rounds keeps that from oscillating.
        iteration = base + np.zeros_like(slope)
        for _ in range(_ROUNDS):
            load = settled_rate(at, at.output_tokens * iteration) * at.output_tokens * slope
            reached = base / np.maximum(1.0 - load, 1e-9)
            iteration = 0.5 * (iteration + np.minimum(reached, full))
        iteration = np.where(at.batch_given, full, iteration)
        alone = at.closed & (at.clients <= 1.0)
        others = np.where(alone, 0.0, (iteration - base) / slope)
        decoding = base + others * decode
        arrivals = at.rate_rps * iteration
        found = decoding + prefills_met(arrivals, at.arrival_scv) * prefill
        shared = np.where(alone, 0.0, prefills_shared(arrivals, at.arrival_scv))
        return _Batch(iteration, others, 1.0 - np.exp(-others), found, shared, decode, prefill)


@dataclass(frozen=True)
class FluidObservation:
    """Any law, seen through the fluid model; iterations between the prefill and the first token are added."""

    law: IterationLaw
    ttft_iterations: int = 0

    @property
    def starts(self) -> Array:
        """An iteration's base, a token computed and a token read, as laws order them; the rest like the last."""
        scale = [6e-3, 2e-5, 2e-7]
        first = np.array([scale[min(k, 2)] for k in range(len(self.law.parameter_names))])
        starts: Array = first * np.array([[1.0], [3.0], [0.3]])
        return starts

    def predict(self, parameters: Array, at: Conditions) -> Predicted:
        wide = parameters[:, None, :]
        batch = np.maximum(1.0, np.floor(at.largest_batch))
        server = ServerModel(self.law, wide, at.workload, Limits(batch, np.zeros_like(batch)))
        begun = FluidModel().analyze(server, at.rate_rps)
        rate = settled_rate(at, at.output_tokens * begun.itl_s.mean)
        metrics = FluidModel().analyze(server, rate)
        question = (wide, batch, at.workload)
        at_batch = self.law.overhead_time(wide, at.workload) + self.law.prefill_time(*question)
        itl = np.where(at.batch_given, self.law.inter_token_time(*question), metrics.itl_s.mean)
        ttft = np.where(at.batch_given, at_batch, metrics.ttft_s.mean)
        return Predicted(itl, ttft + self.ttft_iterations * itl)


def prefills_met(arrivals_per_iteration: Array, arrival_scv: Array) -> Array:
    """Mean number of prefills in the iteration that an arrival finds in progress, m of the module's docstring."""
    arrivals = np.maximum(arrivals_per_iteration, 1e-9)
    # The triangle rises as k up to x and falls as 2x − k from there to 2x; both ends summed in closed form.
    rising, last = np.floor(arrivals), np.floor(2.0 * arrivals)
    area = rising * (rising + 1.0) + 2.0 * arrivals * (last - rising) - last * (last + 1.0) / 2.0
    return _between(area / arrivals, arrivals, arrival_scv)


def prefills_shared(arrivals_per_iteration: Array, arrival_scv: Array) -> Array:
    """Mean number of other prefills in the iteration of an arrival's own, j of the module's docstring."""
    arrivals = np.maximum(arrivals_per_iteration, 1e-9)
    fewer = np.floor(arrivals)
    # N is ⌊x⌋ or one more, so E[N²] is linear between the squares of the two.
    square = fewer**2 + (arrivals - fewer) * (2.0 * fewer + 1.0)
    return _between(square / arrivals - 1.0, arrivals, arrival_scv)


def _between(regular: Array, random: Array, arrival_scv: Array) -> Array:
    share = np.minimum(arrival_scv, 1.0)
    mixed: Array = (1.0 - share) * regular + share * random
    return mixed


def settled_rate(at: Conditions, stay_s: Array) -> Array:
    """Requests per second that the batch of the completed requests belongs to, for stays of shape (m, n)."""
    share = np.clip(stay_s / at.duration_s, 0.0, _LONGEST_STAY)
    rate: Array = at.rate_rps * (1.0 - share / (6.0 * (1.0 - share))) / (1.0 - share)
    return rate
