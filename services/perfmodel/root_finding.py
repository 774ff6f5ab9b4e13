"""Roots of many one-dimensional functions at once, each kept in its bracket."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array

Rows = NDArray[np.intp]


def largest_below(
    function: Callable[[Array, Rows], Array],
    low: Array,
    high: Array,
    value_low: Array,
    value_high: Array,
    relative_tolerance: float = 1e-10,
    resolution: Array | float = 0.0,
) -> Array:
    """For each row the largest x of a narrow bracket of its root at which the function is not above zero.

    function: values of shape (R,) for points of shape (R,) and the rows they belong to.
    low, high, value_low, value_high: shape (S,), with value_low <= 0 < value_high.
    relative_tolerance: width of the final bracket over its position.
    resolution: width of a bracket that is as good as a point, wherever it is; shape (S,) or one for all.

    Inverse quadratic interpolation where it is safe, else bisection, so no row takes more steps than a
    small multiple of bisection: T. R. Chandrupatla, Advances in Engineering Software 28 (1997) 145-149.
    """
    result = low.copy()
    rows = np.arange(low.size)
    newest, other, oldest = high.copy(), low.copy(), high.copy()
    f_newest, f_other, f_oldest = value_high.copy(), value_low.copy(), value_high.copy()
    fraction = np.full(low.size, 0.5)
    narrow = np.broadcast_to(np.maximum(resolution, np.finfo(float).tiny), low.shape)
    while rows.size:
        point = newest + fraction * (other - newest)
        value = function(point, rows)
        same_side = (value > 0) == (f_newest > 0)
        oldest = np.where(same_side, newest, other)
        f_oldest = np.where(same_side, f_newest, f_other)
        other = np.where(same_side, other, newest)
        f_other = np.where(same_side, f_other, f_newest)
        newest, f_newest = point, value

        below = np.where(f_newest > 0, other, newest)
        result[rows] = below
        width = np.abs(other - newest)
        step = 0.5 * relative_tolerance * np.abs(np.where(np.abs(f_newest) < np.abs(f_other), newest, other))
        # The bracket can be as narrow as two neighbouring numbers.
        open_rows = (width > 2.0 * step) & (
            width > 4.0 * np.finfo(float).eps * np.maximum(abs(newest), abs(other))
        )
        open_rows &= (f_newest != 0) & (width > narrow[rows])
        if not open_rows.any():
            break
        if not open_rows.all():
            rows, newest, other, oldest = (
                rows[open_rows],
                newest[open_rows],
                other[open_rows],
                oldest[open_rows],
            )
            f_newest, f_other, f_oldest = f_newest[open_rows], f_other[open_rows], f_oldest[open_rows]
            width, step = width[open_rows], step[open_rows]
        fraction = _next_fraction(newest, other, oldest, f_newest, f_other, f_oldest)
        edge = step / width
        fraction = np.clip(fraction, edge, 1.0 - edge)
    return result


def _next_fraction(
    newest: Array, other: Array, oldest: Array, f_newest: Array, f_other: Array, f_oldest: Array
) -> Array:
    """How far from the newest point towards the other end of the bracket the next point lies."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        xi = (newest - other) / (oldest - other)
        phi = (f_newest - f_other) / (f_oldest - f_other)
        safe = (phi**2 < xi) & ((1.0 - phi) ** 2 < 1.0 - xi)
        interpolated = f_newest / (f_other - f_newest) * f_oldest / (f_other - f_oldest) + (
            oldest - newest
        ) / (other - newest) * f_newest / (f_oldest - f_newest) * f_other / (f_oldest - f_other)
    fraction: Array = np.where(safe & np.isfinite(interpolated), interpolated, 0.5)
    return fraction
