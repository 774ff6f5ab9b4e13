"""Weighted, robust least squares of a law's parameters in their logarithms (Levenberg–Marquardt).

With e the relative errors of ITL and TTFT it minimises Σ ρ(w·e), ρ(x) = 2c²(√(1+(x/c)²) − 1): squares up to about c
and linear beyond. So the few points where the law is far off do not pull the parameters, and the sum is close to the
absolute errors that WAPE measures. Levenberg–Marquardt needs a sum of squares, which sign(x)·√ρ(x) is.

Weights: an open load's time is T = a/(1−ρ), so a relative error ε of the rate makes one of (T/a − 1)·ε in T, and an
average over few requests is uncertain. The same holds the fullest batches of closed loops back, where a law that is
affine in the batch is furthest from engines.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from services.perfmodel.law import Array
from services.tuner.training.conditions import Conditions
from services.tuner.training.observation import Observation

# Relative error of a measured latency, and where errors begin to count linearly.
NOISE = 0.03
# Relative error of a measured rate.
RATE_NOISE = 0.015
# Requests at which the error of an average is as large as the noise; of the order of (spread / NOISE)².
FEW_REQUESTS = 20.0
# Logarithms stay within the parameters that a float can hold.
_LOWEST, _HIGHEST = -60.0, 10.0
_DIFFERENCE = 1e-6
_FAR = 1e3
# A parameter known to a factor of e at two standard errors.
LARGEST_STANDARD_ERROR = 0.5
LARGEST_CONDITION = 1e8


@dataclass(frozen=True, eq=False)
class Estimate:
    """Parameters and how well the points tell them.

    parameters: shape (p,) in SI units, in the order of the law's names.
    standard_errors: of their logarithms, so relative for small ones; infinite where the points say nothing.
    condition_number: of the information matrix in logarithms.
    """

    parameters: Array
    standard_errors: Array
    condition_number: float
    cost: float

    @property
    def identified(self) -> bool:
        """Whether the points tell every parameter."""
        known = bool(np.all(self.standard_errors <= LARGEST_STANDARD_ERROR))
        return known and self.condition_number <= LARGEST_CONDITION


def estimate(observation: Observation, at: Conditions, starts: Array | None = None) -> Estimate:
    """The best fit over several starts, those of the observation function by default.

    Raises ValueError when there are fewer measurements than parameters.
    """
    parameters = len(observation.law.parameter_names)
    measured = len(at.itl_s) + int(np.count_nonzero(at.ttft_counts))
    if measured < parameters:
        raise ValueError(f"{measured} measurements for {parameters} parameters of {observation.law.name}")
    problem = _Problem(observation, at, weights(at))
    best = None
    for start in observation.starts if starts is None else starts:
        found = least_squares(
            problem.residuals,
            np.log(start),
            jac=problem.jacobian,
            method="lm",
            xtol=1e-6,
            ftol=1e-8,
            max_nfev=100,
        )
        if best is None or found.cost < best.cost:
            best = found
    if best is None:
        raise ValueError("no start to fit from")
    return _estimate(best.x, best.jac, float(best.cost), measured)


def weights(at: Conditions) -> Array:
    """Weights of the points, shape (n,)."""
    steepness = at.itl_s / at.itl_s.min() - 1.0
    rate_error = steepness * RATE_NOISE / NOISE
    found: Array = np.sqrt(at.requests / (at.requests + FEW_REQUESTS) / (1.0 + rate_error**2))
    return found


def _estimate(logs: Array, jacobian: Array, cost: float, measured: int) -> Estimate:
    information = jacobian.T @ jacobian
    eigenvalues, vectors = np.linalg.eigh(information)
    smallest, largest = eigenvalues[0], eigenvalues[-1]
    condition = float(largest / smallest) if smallest > 0 else float("inf")
    variance = 2.0 * cost / max(measured - len(logs), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(eigenvalues > largest * 1e-14, 1.0 / eigenvalues, np.inf)
        # A direction that the points do not tell leaves the parameters alone that it hardly moves.
        diagonal = np.where(vectors**2 < 1e-6, 0.0, vectors**2 * inverse).sum(axis=1)
    return Estimate(np.exp(logs), np.sqrt(variance * diagonal), condition, cost)


@dataclass(frozen=True, eq=False)
class _Problem:
    observation: Observation
    at: Conditions
    weights: Array

    def residuals(self, logs: Array) -> Array:
        """Shape (measurements,) for logarithms of shape (p,)."""
        values: Array = self._of(logs[None])[0]
        return values

    def jacobian(self, logs: Array) -> Array:
        """Derivatives of the residuals by forward differences, all at once, shape (measurements, p)."""
        steps = np.vstack([np.zeros((1, len(logs))), np.eye(len(logs)) * _DIFFERENCE])
        values = self._of(logs + steps)
        derivatives: Array = (values[1:] - values[0]).T / _DIFFERENCE
        return derivatives

    def _of(self, logs: Array) -> Array:
        predicted = self.observation.predict(np.exp(np.clip(logs, _LOWEST, _HIGHEST)), self.at)
        counts = self.at.ttft_counts
        errors = np.concatenate(
            [
                self.weights * (predicted.itl_s / self.at.itl_s - 1.0),
                (self.weights * (predicted.ttft_s / self.at.ttft_s - 1.0))[:, counts],
            ],
            axis=1,
        )
        errors = np.clip(np.nan_to_num(errors, nan=_FAR, posinf=_FAR), -_FAR, _FAR)
        scaled = errors / NOISE
        robust: Array = np.sign(scaled) * NOISE * np.sqrt(2.0 * (np.sqrt(1.0 + scaled**2) - 1.0))
        return robust
