"""Compiled contents of the reference's chains; `compat_chain` says what they are and has the same on NumPy alone."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from services.perfmodel.law import Array
from services.perfmodel.root_finding import Rows

# Weights that span more than so many times the range of a double are those of no engine.
MOST_RESCALINGS = 64


@njit(cache=True, error_model="numpy")
def contents(rates: NDArray[np.float32], places: Rows, rows: Rows, per_ms: NDArray[np.float32]) -> Array:
    """See `compat_chain.contents`."""
    found = np.zeros((3, rows.size))
    weights = np.zeros(places[1].max() + 1)
    for r in range(rows.size):
        batch, most = places[0, rows[r]], places[1, rows[r]]
        scale = np.finfo(np.float64).max / most
        last = _weigh(rates[rows[r]], batch, most, np.float64(per_ms[r]), scale, weights)
        total = _total(weights, last, scale)
        share = weights[0] / total
        below, in_system, in_service = share, 0.0, 0.0
        for n in range(1, last + 1):
            share = weights[n] / total
            in_system += n * share
            below += share
            if n == batch:
                in_service = in_system + (1.0 - below) * batch
        if last < batch:
            in_service = in_system + (1.0 - below) * batch
        found[0, r], found[1, r] = in_system, in_service
        found[2, r] = share if last == most else 0.0
    return found


@njit(cache=True, error_model="numpy")
def _weigh(
    rates: NDArray[np.float32], batch: int, most: int, rate: float, scale: float, weights: Array
) -> int:
    """Write the weights of 0 … N + Q requests; the last that is not zero."""
    weights[0] = 1.0
    for n in range(most):
        served = np.float64(rates[min(n, batch - 1)])
        weights[n + 1] = weights[n] * rate / served
        for _ in range(MOST_RESCALINGS):
            if np.isfinite(weights[n + 1]):
                break
            for i in range(n + 1):
                weights[i] /= scale
            weights[n + 1] = weights[n] * rate / served
        if weights[n + 1] == 0.0:
            return n
    return most


@njit(cache=True, error_model="numpy")
def _total(weights: Array, last: int, scale: float) -> float:
    """The sum of the weights, made smaller where it is beyond a double."""
    total = 0.0
    for _ in range(MOST_RESCALINGS):
        total = 0.0
        for n in range(last + 1):
            total += weights[n]
        if np.isfinite(total):
            break
        for n in range(last + 1):
            weights[n] /= scale
    return total
