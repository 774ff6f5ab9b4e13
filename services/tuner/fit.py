"""Maximum a posteriori fit of a law's parameters to a window of observations.

With θ the logarithms of the parameters that are not zero, and r the logarithms of observed over predicted ITL and
TTFT, it minimises  Σ w·ρ(r/σ(θ)) + ½ (θ − θ₀)ᵀ Λ₀ (θ − θ₀)  by damped Gauss–Newton (Levenberg–Marquardt) steps,
the robust loss ρ, Huber's or Cauchy's, by iterated weights.

Predictions are at the batch X that was observed, and not at the batch that a queueing model derives from the rate:
near the knee that one is off by many times the error of the law. Where X is not measured but is from Little's law,
λ·(time in service), what is left of the knee is noise. With s = ∂ln(time)/∂ln X, e the error of a latency and u that
of X, in which e is contained, and the error of the law itself,

    var r = law² + (1−s)²·var e + s²·var u,    var e = floor² + share²/n,    var u = min(1, X/n)/n,

of n requests: a window that is long against a stay knows its mean batch, a short one has a Poisson count. As σ moves
with θ, this is the regression with errors in both variables (Deming's), which noise in X does not bias. The TTFT has
the doubt of the waiting beside it, which grows as the batch fills up: see `WAITING_AT`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array, IterationLaw, Limits, Workload
from services.tuner.observation import Observation

# Both keep 95 % of the efficiency of least squares where the noise is normal.
HUBER, CAUCHY = 1.345, 2.385
DIFFERENCE = 1e-5
LONGEST_STEP = 1.0
CONVERGED = 5e-4
# What the law itself is off by, which no relation between the figures makes smaller.
LAW_SHARE = 0.006
# Share of the batch in use at which requests wait as long as they prefill, and how steeply it comes to that. In the
# published runs it is a few hundredths at 0.3, a quarter at 0.45, all of it at 0.55; no queueing model gets it right.
WAITING_AT, WAITING_POWER = 0.5, 6.0

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Window:
    """Observations as arrays of shape (n,).

    log_observed: shape (n, 2), ITL and TTFT; the TTFT is 0 where it has none.
    weighted: shape (n, 2), which of them there are.
    requests: how many requests each row rests on.
    served_rps: requests per second that were in service.
    decoding: mean requests that decode; measured: where that is exact, and not from the count of requests.
    full: where the batch was full, so that what arrives does not decide it.
    """

    rate_rps: Array
    workload: Workload
    limits: Limits
    log_observed: Array
    weighted: Mask
    requests: Array
    served_rps: Array
    decoding: Array
    measured: Mask
    full: Mask

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
                    o.served_rps,
                    o.decoding,
                )
                for o in observations
            ]
        ).T
        has_ttft = np.array([o.ttft_s is not None for o in observations])
        return cls(
            rate_rps=rows[0],
            workload=Workload(rows[1], rows[2]),
            limits=Limits(rows[3], 0.0, rows[4]),
            log_observed=np.log(rows[5:7].T),
            weighted=np.stack([np.ones_like(has_ttft), has_ttft], axis=1),
            requests=rows[7],
            served_rps=rows[8],
            decoding=rows[9],
            measured=np.array([o.decoding_measured for o in observations]),
            full=np.array([o.saturated for o in observations]),
        )


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a law says of a window, for m parameter sets, each of shape (m, n, 2): ITL and TTFT.

    log_times: logarithms of the times, without waiting.
    sensitivity: their derivatives by the logarithm of the batch.
    batch: shape (m, n), mean requests in service.
    """

    log_times: Array
    sensitivity: Array
    batch: Array


def predict(law: IterationLaw, parameters: Array, window: Window, ttft_iterations: float) -> Prediction:
    """ITL and TTFT of every observation at its observed batch, under parameters of shape (m, p).

    ttft_iterations: decode iterations that the measured time to first token holds beyond the prefill.
    """
    wide, load, budget = parameters[:, None, :], window.workload, window.limits.token_budget
    places = np.asarray(window.limits.max_batch)
    alone = np.clip(window.decoding, 0.0, places)
    prefilling = window.served_rps * law.prefill_time(wide, alone + 1.0, load, budget)
    busy = np.clip(window.decoding + prefilling, 0.0, places)
    # An arrival joins the batch that it finds, unless that is full already.
    batch = np.where(window.full, np.maximum(busy, 1.0), np.minimum(busy + 1.0, places))
    # At the batch and at one request more, which tells the slope.
    question = (wide, np.stack([batch, batch + 1.0]), load, budget)
    itl, itl_slope = _with_slope(law.inter_token_time(*question))
    prefill, prefill_slope = _with_slope(law.prefill_time(*question))
    iteration, slope = _with_slope(law.iteration_time(*question))
    progress = -np.expm1(-busy) * (iteration - slope * batch) + slope * busy
    share = law.residual_share(wide)
    ttft = law.overhead_time(wide, load) + prefill + share * progress + ttft_iterations * itl
    ttft_slope = prefill_slope + share * slope + ttft_iterations * itl_slope
    tiny = np.finfo(float).tiny
    times = np.maximum(np.stack([itl, ttft], axis=-1), tiny)
    slopes = np.stack([itl_slope, ttft_slope], axis=-1)
    return Prediction(np.log(times), np.clip(slopes * busy[..., None] / times, 0.0, 1.0), busy)


def _with_slope(times: Array) -> tuple[Array, Array]:
    return times[0], times[1] - times[0]


def noise(window: Window, found: Prediction, floor_share: float, request_share: float) -> Array:
    """Standard deviation of the log residuals, shape (m, n, 2); the equation is in this module's docstring.

    floor_share: what remains of a latency's error however many requests there are.
    request_share: standard deviation of one request's latency.
    """
    latency = (floor_share**2 + request_share**2 / window.requests)[:, None]
    poisson = np.minimum(1.0, found.batch / window.requests) / window.requests
    count = np.where(window.measured, 0.0, poisson)[..., None]
    share = found.sensitivity
    own = np.where(window.measured[:, None], 1.0, 1.0 - share)
    deviation: Array = np.sqrt(LAW_SHARE**2 + own**2 * latency + share**2 * count)
    return deviation


def waiting(window: Window, found: Prediction) -> Array:
    """How far waiting leaves the logarithm of the TTFT in doubt, shape (m, n)."""
    doubt: Array = (found.batch / np.asarray(window.limits.max_batch) / WAITING_AT) ** WAITING_POWER
    return doubt


@dataclass(frozen=True, eq=False)
class Problem:
    """A window, its noise and a Gaussian prior over the logarithms of the free parameters.

    weight: shape (n,), how much each observation counts.
    scale: shape (2,), factors on the noise of ITL and TTFT.
    settled: whether outliers are left out, by Cauchy's loss, and not only held down, by Huber's.
    free: shape (p,), which parameters are fitted; the others are held at zero.
    prior, prior_information: shapes (k,) and (k, k), of the logarithms of the free ones.
    """

    law: IterationLaw
    window: Window
    ttft_iterations: float
    floor_share: float
    request_share: float
    weight: Array
    scale: Array
    settled: bool
    free: Mask
    prior: Array
    prior_information: Array

    def parameters(self, theta: Array) -> Array:
        """Parameters of shape (..., p) of logarithms of shape (..., k)."""
        full = np.zeros((*theta.shape[:-1], self.free.size))
        full[..., self.free] = np.exp(theta)
        return full

    def innovations(self, theta: Array) -> tuple[Array, Array]:
        """Log residuals and their standard deviations, shapes (m, n, 2); residual 0 where nothing was observed."""
        found = predict(self.law, self.parameters(theta), self.window, self.ttft_iterations)
        deviation = self.scale * noise(self.window, found, self.floor_share, self.request_share)
        deviation[..., 1] = np.hypot(deviation[..., 1], waiting(self.window, found))
        return np.where(self.window.weighted, self.window.log_observed - found.log_times, 0.0), deviation

    def calm(self, theta: Array) -> Mask:
        """Where waiting leaves no more doubt about the TTFT than its noise does, shape (n,)."""
        found = predict(self.law, self.parameters(theta[None]), self.window, self.ttft_iterations)
        plain = self.scale * noise(self.window, found, self.floor_share, self.request_share)
        quiet: Mask = (waiting(self.window, found) <= plain[..., 1])[0]
        return quiet

    def residuals(self, theta: Array) -> Array:
        """Standardised log residuals of shape (m, n, 2)."""
        residual, deviation = self.innovations(theta)
        return residual / deviation

    def linearise(self, theta: Array) -> tuple[Array, Array]:
        """Residuals of shape (2n,) and their derivatives by θ, shape (2n, k), by forward differences."""
        shifted = theta + np.vstack([np.zeros(theta.size), DIFFERENCE * np.eye(theta.size)])
        residuals = self.residuals(shifted).reshape(theta.size + 1, -1)
        return residuals[0], (residuals[1:] - residuals[0]).T / DIFFERENCE

    def loss(self, residuals: Array, theta: Array) -> float:
        """The objective."""
        away = theta - self.prior
        misfit = float(np.repeat(self.weight, 2) @ self.robust(residuals))
        return misfit + 0.5 * float(away @ self.prior_information @ away)

    def robust(self, residuals: Array) -> Array:
        """The loss of standardised residuals."""
        return cauchy(residuals) if self.settled else huber(residuals)


@dataclass(frozen=True, eq=False)
class Solution:
    """A minimum: logarithms, shape (k,); what the data and what data and prior know of them, and their covariance,
    each of shape (k, k)."""

    theta: Array
    loss: float
    data_information: Array
    information: Array
    covariance: Array


def huber(residuals: Array) -> Array:
    """Huber's loss of standardised residuals: one minimum only, which outliers still pull at."""
    size = np.abs(residuals)
    loss: Array = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
    return loss


def cauchy(residuals: Array) -> Array:
    """Cauchy's loss of standardised residuals: what is far off, such as one bad replica, no longer counts."""
    loss: Array = 0.5 * CAUCHY**2 * np.log1p((residuals / CAUCHY) ** 2)
    return loss


def minimise(problem: Problem, start: Array, most_steps: int) -> Solution:
    """The minimum near a start, by at most so many Gauss–Newton steps; each accepted one lowers the loss."""
    theta, damping = start, 1e-3
    residuals, slope = problem.linearise(theta)
    loss = problem.loss(residuals, theta)
    for _ in range(most_steps):
        weight = _weights(problem, residuals)
        data = (slope * weight[:, None]).T @ slope
        gradient = slope.T @ (weight * residuals) + problem.prior_information @ (theta - problem.prior)
        damped = data + problem.prior_information
        damped = damped + damping * np.diag(np.diag(damped))
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
            break
    weight = _weights(problem, residuals)
    data = (slope * weight[:, None]).T @ slope
    information = data + problem.prior_information
    # An observation that counts half is not one of twice the variance: the estimate is better than its weights say.
    scatter = (slope * weight[:, None] ** 2).T @ slope + problem.prior_information
    inverse = np.linalg.pinv(information) if np.isfinite(information).all() else information
    return Solution(theta, loss, data, information, inverse @ scatter @ inverse)


def _weights(problem: Problem, residuals: Array) -> Array:
    if problem.settled:
        robust = 1.0 / (1.0 + (residuals / CAUCHY) ** 2)
    else:
        robust = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-12))
    weights: Array = np.repeat(problem.weight, 2) * robust
    return weights


def first_guess(law: IterationLaw, window: Window) -> Array | None:
    """Parameters of which each alone would explain an equal part of what was observed, shape (p,).

    For every parameter, the other ones at zero, the largest value that keeps both the median ITL and the
    median TTFT at or below the observed ones, over the number of parameters. None where a parameter alone
    makes no time, so that this says nothing.
    """
    units = np.eye(len(law.parameter_names))[:, None, :]
    batch = np.minimum(window.decoding, np.asarray(window.limits.max_batch)) + 1.0
    question = (units, batch, window.workload, window.limits.token_budget)
    times = np.stack([law.inter_token_time(*question), law.prefill_time(*question)], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.exp(window.log_observed) / times
    share = np.where(window.weighted & (times > 0), share, np.nan)
    if np.isnan(share).all(axis=1).any():
        return None
    guess: Array = np.nanmin(np.nanmedian(share, axis=1), axis=-1) / units.shape[0]
    return guess if np.all(np.isfinite(guess) & (guess > 0)) else None
