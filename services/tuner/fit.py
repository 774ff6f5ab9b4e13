"""Maximum a posteriori fit of a law's parameters to a window of observations.

With θ the logarithms of the parameters that are not zero, and r the logarithms of observed over predicted ITL
and TTFT, it minimises  Σ huber(r/σ) + ½ Σ ((θ − θ₀)/σ₀)²  by damped Gauss–Newton (Levenberg–Marquardt) steps,
Huber's loss by iterated weights. Predictions are the means of the fluid model, which is cheap and right while
nothing waits; σ grows where the batch is nearly full, because waiting begins there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array, IterationLaw, Limits, Workload
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.fluid import FluidModel
from services.tuner.observation import Observation

HUBER = 1.345
DIFFERENCE = 1e-5
LONGEST_STEP = 1.0
CONVERGED = 1e-4
# Predicted share of the batch in use beyond which the noise no longer grows: the law still says something.
FULLEST = 0.9

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Window:
    """Observations as arrays of shape (n,).

    log_observed: shape (n, 2), ITL and TTFT; the TTFT is 0 where it has none.
    weighted: shape (n, 2), which of them there are.
    requests: how many requests each row rests on.
    full_batch: requests in the batch where it was full, else NaN.
    """

    rate_rps: Array
    workload: Workload
    limits: Limits
    log_observed: Array
    weighted: Mask
    requests: Array
    full_batch: Array

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> "Window":
        """The arrays of at least one observation."""
        rows = np.array(
            [
                (
                    o.rate_rps,
                    o.input_tokens,
                    o.output_tokens,
                    o.max_batch,
                    o.token_budget,
                    o.itl_s,
                    1.0 if o.ttft_s is None else o.ttft_s,
                    o.requests,
                    _full_batch(o),
                )
                for o in observations
            ]
        ).T
        has_ttft = np.array([o.ttft_s is not None for o in observations])
        return cls(
            rate_rps=rows[0],
            workload=Workload(rows[1], rows[2]),
            limits=Limits(rows[3], np.zeros_like(rows[3]), rows[4]),
            log_observed=np.log(rows[5:7].T),
            weighted=np.stack([np.ones_like(has_ttft), has_ttft], axis=1),
            requests=rows[7],
            full_batch=rows[8],
        )


def _full_batch(observation: Observation) -> float:
    if not observation.saturated:
        return float("nan")
    seen = observation.running if observation.running is not None else float(observation.max_batch)
    return min(max(seen, 1.0), float(observation.max_batch))


@dataclass(frozen=True, eq=False)
class Prediction:
    """Means that a law predicts for a window, for m parameter sets: shapes (m, n, 2) and (m, n)."""

    log_times: Array
    fullness: Array


def predict(law: IterationLaw, parameters: Array, window: Window) -> Prediction:
    """ITL and TTFT of every observation under parameters of shape (m, p)."""
    wide = parameters[:, None, :]
    metrics = FluidModel().analyze(ServerModel(law, wide, window.workload, window.limits), window.rate_rps)
    itl, ttft = metrics.itl_s.mean, metrics.ttft_s.mean
    fullness = metrics.occupancy / np.asarray(window.limits.max_batch)
    full = np.isfinite(window.full_batch)
    if full.any():
        batch = np.where(full, window.full_batch, 1.0)
        at_full = law.inter_token_time(wide, batch, window.workload, window.limits.token_budget)
        itl = np.where(full, at_full, itl)
        # The batch was seen full, so there is no doubt left about how full it is.
        fullness = np.where(full, 0.0, fullness)
    tiny = np.finfo(float).tiny
    return Prediction(np.log(np.maximum(np.stack([itl, ttft], axis=-1), tiny)), fullness)


def noise(window: Window, fullness: Array, floor_share: float, request_share: float) -> Array:
    """Standard deviation of the log residuals, shape (n, 2): σ² = floor² + share²/requests, over 1 − fullness.

    fullness: predicted share of the batch in use, shape (n,).
    floor_share: what remains however many requests there are; errors of the law itself.
    request_share: standard deviation of one request.
    """
    plain = np.sqrt(floor_share**2 + request_share**2 / window.requests)
    near_knee = 1.0 / (1.0 - np.minimum(fullness, FULLEST))
    return np.stack([plain * near_knee, plain * near_knee**2], axis=1)


@dataclass(frozen=True, eq=False)
class Problem:
    """A window, its noise and a Gaussian prior over the logarithms of the free parameters.

    free: shape (p,), which parameters are fitted; the others are held at zero.
    prior: shape (k,), centre of the logarithms of the free ones.
    prior_sd: their standard deviation.
    """

    law: IterationLaw
    window: Window
    sigma: Array
    free: Mask
    prior: Array
    prior_sd: float

    def parameters(self, theta: Array) -> Array:
        """Parameters of shape (..., p) of logarithms of shape (..., k)."""
        full = np.zeros((*theta.shape[:-1], self.free.size))
        full[..., self.free] = np.exp(theta)
        return full

    def residuals(self, theta: Array) -> Array:
        """Standardised log residuals of shape (m, n, 2), 0 where nothing was observed."""
        times = predict(self.law, self.parameters(theta), self.window).log_times
        scaled: Array = np.where(self.window.weighted, (self.window.log_observed - times) / self.sigma, 0.0)
        return scaled

    def linearise(self, theta: Array) -> tuple[Array, Array]:
        """Residuals of shape (2n,) and their derivatives by θ, shape (2n, k), by forward differences."""
        shifted = theta + np.vstack([np.zeros(theta.size), DIFFERENCE * np.eye(theta.size)])
        residuals = self.residuals(shifted).reshape(theta.size + 1, -1)
        return residuals[0], (residuals[1:] - residuals[0]).T / DIFFERENCE

    def loss(self, residuals: Array, theta: Array) -> float:
        """The objective."""
        return float(huber(residuals).sum() + 0.5 * np.sum(((theta - self.prior) / self.prior_sd) ** 2))


@dataclass(frozen=True, eq=False)
class Solution:
    """A minimum: logarithms, shape (k,), what the data and what data and prior know of them, shape (k, k)."""

    theta: Array
    data_information: Array
    information: Array
    converged: bool


def huber(residuals: Array) -> Array:
    """Huber's loss of standardised residuals."""
    size = np.abs(residuals)
    loss: Array = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
    return loss


def minimise(problem: Problem, start: Array, most_steps: int) -> Solution:
    """The minimum near a start, by at most so many Gauss–Newton steps; each accepted one lowers the loss."""
    theta, damping, converged = start, 1e-3, False
    residuals, slope = problem.linearise(theta)
    loss = problem.loss(residuals, theta)
    prior_information = np.eye(theta.size) / problem.prior_sd**2
    for _ in range(most_steps):
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-12))
        data = (slope * weight[:, None]).T @ slope
        gradient = slope.T @ (weight * residuals) + prior_information @ (theta - problem.prior)
        damped = data + prior_information + damping * np.diag(np.diag(data) + np.diag(prior_information))
        step = -np.linalg.solve(damped, gradient)
        step *= min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), 1e-300))
        tried_residuals, tried_slope = problem.linearise(theta + step)
        tried = problem.loss(tried_residuals, theta + step)
        if tried <= loss:
            theta, residuals, slope, loss = theta + step, tried_residuals, tried_slope, tried
            damping = max(damping / 10.0, 1e-9)
        else:
            damping *= 10.0
        if float(np.abs(step).max()) < CONVERGED:
            converged = True
            break
    weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-12))
    data = (slope * weight[:, None]).T @ slope
    return Solution(theta, data, data + prior_information, converged)


def first_guess(law: IterationLaw, window: Window, occupancy: Array) -> Array | None:
    """Parameters of which each alone would explain an equal part of what was observed, shape (p,).

    occupancy: mean requests in service of each observation by Little's law, shape (n,).

    For every parameter, the other ones at zero, the largest value that keeps both the median ITL and the
    median TTFT at or below the observed ones, over the number of parameters. None where a parameter alone
    makes no time, so that this says nothing.
    """
    batch = occupancy + 1.0
    units = np.eye(len(law.parameter_names))[:, None, :]
    question = (units, batch, window.workload, window.limits.token_budget)
    times = np.stack([law.inter_token_time(*question), law.prefill_time(*question)], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.exp(window.log_observed) / times
    share = np.where(window.weighted & (times > 0), share, np.nan)
    if np.isnan(share).all(axis=1).any():
        return None
    guess: Array = np.nanmin(np.nanmedian(share, axis=1), axis=-1) / units.shape[0]
    return guess if np.all(np.isfinite(guess) & (guess > 0)) else None
