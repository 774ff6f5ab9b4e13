"""Compiled birth-death chains whose times are affine in the batch piece by piece: in O(N), and sizing of both kinds.

Prompts that need more chunks the fuller the batch is make the iterations per request a step function of the batch.
Between two steps all times are affine, so a server is a few segments, and its terms are added from the empty
system on, rescaled before they overflow.
"""

import math

import numpy as np
from numba import njit

from services.perfmodel.affine_kernels import (
    BATCH,
    BATCH_SQ,
    BLOCKED,
    FOUND,
    IDLE,
    PREFILL,
    PROGRESS,
    QUEUED,
    SERVICE,
    SLOPE_BATCH,
    SLOPE_BLOCKED,
    SLOPE_PREFILL,
    SLOPE_TOKEN,
    SLOPE_WAITED,
    STATE,
    TOKEN,
    WAITED,
    affine_state,
    queue_sums,
)
from services.perfmodel.law import Array
from services.perfmodel.root_finding import Rows

# Columns of a segment: its last batch, m, t₀, d, then prefill and inter-token time at 0 and by batch.
SEGMENT = 8
LARGEST_WEIGHT = 1e200
# Relative precision of a rate, and what a met target may exceed by rounding.
RATE_TOLERANCE = 1e-10
ROUNDING = 1e-12
CAPACITY, TTFT, ITL, BLOCKING = 0, 1, 2, 4


@njit(cache=True)
def segment_state(rate: float, row: Array, segments: Array, state: Array) -> None:
    """Write what admitted arrivals find at a rate above zero; see `affine_kernels.states`.

    row: of servers, of which N and Q are used. segments: shape (G, SEGMENT), by rising batch.
    """
    places, queue = int(row[4]), int(row[5])
    n = row[4]
    sums = np.zeros(10)
    # Over the free places: weights, found, batch², found·batch, iteration found; prefill, inter-token and service
    # time, and the first two times found.
    weight, found_iteration_s = 1.0, 0.0
    first = 1.0
    k = 0
    prefill = token = service = 0.0
    for found in range(places):
        batch = found + 1.0
        if batch > segments[k, 0]:
            k += 1
        iteration_s = segments[k, 2] + segments[k, 3] * batch
        prefill = segments[k, 4] + segments[k, 5] * batch
        token = segments[k, 6] + segments[k, 7] * batch
        service = segments[k, 1] * iteration_s
        sums[0] += weight
        sums[1] += weight * found
        sums[2] += weight * batch * batch
        sums[3] += weight * found * batch
        sums[4] += weight * found_iteration_s
        sums[5] += weight * prefill
        sums[6] += weight * token
        sums[7] += weight * service
        sums[8] += weight * prefill * found
        sums[9] += weight * token * found
        weight *= rate * service / batch
        found_iteration_s = iteration_s
        if weight > LARGEST_WEIGHT:
            sums /= weight
            first /= weight
            weight = 1.0
    full_s = service / n
    x = rate * full_s
    zero, weighted, squared, end, scale = queue_sums(x, queue)
    sums *= scale
    first *= scale
    zero, weighted, squared, end = zero * weight, weighted * weight, squared * weight, end * weight

    admitted = sums[0] + zero
    queue_found = (n - 1.0) * zero + weighted
    found_mean = (sums[1] + queue_found) / admitted
    everything = admitted + end
    state[BATCH] = (sums[1] + sums[0] + n * zero) / admitted
    state[BATCH_SQ] = (sums[2] + n * n * zero) / admitted
    state[FOUND] = found_mean
    state[WAITED] = weighted / admitted
    state[QUEUED] = zero / admitted
    state[BLOCKED] = end / everything
    state[IDLE] = first / admitted
    state[SLOPE_BATCH] = (sums[3] + n * queue_found) / admitted - state[BATCH] * found_mean
    state[SLOPE_WAITED] = ((n - 1.0) * weighted + squared) / admitted - state[WAITED] * found_mean
    state[SLOPE_BLOCKED] = n + queue - (found_mean * admitted + (n + queue) * end) / everything
    state[PREFILL] = (sums[5] + prefill * zero) / admitted
    state[TOKEN] = (sums[6] + token * zero) / admitted
    state[SERVICE] = (sums[7] + service * zero) / admitted
    state[PROGRESS] = (sums[4] + found_iteration_s * zero) / admitted
    state[SLOPE_PREFILL] = (sums[8] + prefill * queue_found) / admitted - state[PREFILL] * found_mean
    state[SLOPE_TOKEN] = (sums[9] + token * queue_found) / admitted - state[TOKEN] * found_mean


@njit(cache=True)
def _state(rate: float, row: Array, segments: Array, state: Array) -> None:
    if segments.shape[0] == 0:
        affine_state(rate, row, state)
    else:
        segment_state(rate, row, segments, state)


@njit(cache=True)
def states(rates: Array, rows: Rows, table: Array, segments: Array, starts: Rows) -> Array:
    """What admitted arrivals find, shape (R, STATE), at rates (R,) above zero in rows (R,) of a table (S, ROW).

    segments: those of all servers, one server after the other; none of a server that is affine throughout.
    starts: shape (S + 1,), where each server's begin, and the end.
    """
    found = np.empty((rates.size, STATE))
    for k in range(rates.size):
        row = rows[k]
        _state(rates[k], table[row], segments[starts[row] : starts[row + 1]], found[k])
    return found


@njit(cache=True)
def _excess(
    rate: float,
    row: Array,
    segments: Array,
    overhead: float,
    full: float,
    ttft: float,
    itl: float,
    blocked: float,
    state: Array,
) -> tuple[float, float, int]:
    """The largest ln(value / target), its derivative by ln(rate), and which target it is."""
    _state(rate, row, segments, state)
    worst, slope, cause = -np.inf, 1.0, CAPACITY
    if ttft < np.inf:
        value = overhead + state[WAITED] / full + state[PREFILL]
        found = math.log(value / ttft)
        if found > worst:
            worst, cause = found, TTFT
            slope = (state[SLOPE_WAITED] / full + state[SLOPE_PREFILL]) / value
    if itl < np.inf:
        found = math.log(state[TOKEN] / itl)
        if found > worst:
            worst, cause, slope = found, ITL, state[SLOPE_TOKEN] / state[TOKEN]
    if state[BLOCKED] > 0.0:
        found = math.log(state[BLOCKED] / blocked)
        if found > worst:
            worst, cause, slope = found, BLOCKING, state[SLOPE_BLOCKED]
    return worst, slope, cause


@njit(cache=True)
def _first_guess(row: Array, ttft: float, itl: float, overhead: float, full: float) -> float:
    """The fluid answer: the rate whose mean batch is the one that meets the targets, a little below capacity."""
    batch = row[4]
    if itl < np.inf and row[9] > 0.0:
        batch = min(batch, (itl - row[8]) / row[9])
    if ttft < np.inf and row[7] > 0.0:
        batch = min(batch, (ttft - overhead - row[6]) / row[7])
    batch = max(batch - 1.0, 0.02)
    guess: float = min(batch / (row[0] * (row[1] + row[2] * (batch + 1.0))), 0.97 * full)
    return guess


@njit(cache=True)
def size(
    table: Array,
    segments: Array,
    starts: Rows,
    overheads: Array,
    capacities: Array,
    rows: Rows,
    ttft: Array,
    itl: Array,
    blocked: Array,
) -> tuple[Array, Rows, Array]:
    """The largest rates that meet the targets of elements (E,), what stops them, and what they find there.

    table, segments, starts: servers, see `states`; overheads, capacities: (S,), seconds outside the engine and μ(N).
    rows: (E,), which of the servers an element is.
    ttft, itl, blocked: (E,), bounds; NaN is none. Returns rates (E,), 0 where infeasible, causes (E,), and
    states (E, STATE) at the rates. Newton's method in ln(rate), kept in its bracket.
    """
    count = rows.size
    rates = np.zeros(count)
    causes = np.zeros(count, dtype=np.int64)
    found = np.zeros((count, STATE))
    for k in range(count):
        which_row = rows[k]
        row, overhead, full, state = table[which_row], overheads[which_row], capacities[which_row], found[k]
        pieces = segments[starts[which_row] : starts[which_row + 1]]
        # An idle server: nobody waits and everyone is alone.
        if overhead + row[6] + row[7] > ttft[k] * (1.0 + ROUNDING):
            causes[k] = TTFT
            continue
        if row[8] + row[9] > itl[k] * (1.0 + ROUNDING):
            causes[k] = ITL
            continue
        low, high = 0.0, full
        rate = _first_guess(row, ttft[k], itl[k], overhead, full)
        met = 0.0
        cause = CAPACITY
        for _ in range(200):
            worst, slope, which = _excess(
                rate, row, pieces, overhead, full, ttft[k], itl[k], blocked[k], state
            )
            if worst <= ROUNDING:
                met = low = rate
            else:
                high = rate
                cause = which
            if low == high:
                break
            step = -worst / slope if slope > 0.0 else -np.inf
            if abs(step) < 0.3 * RATE_TOLERANCE:
                if worst <= ROUNDING:
                    cause = which
                    break
                # From just above: step over to the side on which the targets are met.
                rate = max(low, rate * (1.0 + step - 0.5 * RATE_TOLERANCE))
                if rate == low:
                    break
                continue
            ahead = rate * math.exp(min(step, 5.0)) if step > -700.0 else 0.0
            if ahead >= full and high == full:
                ahead = full
            elif not low < ahead < high:
                ahead = 0.5 * (low + high) if low > 0.0 else 0.1 * high
            if high < 1e-12 * full:
                break
            if high - low <= 0.5 * RATE_TOLERANCE * high:
                break
            rate = ahead
        rates[k] = met
        causes[k] = cause
        if met > 0.0 and met != rate:
            _state(met, row, pieces, state)
        if met == full:
            causes[k] = CAPACITY
    return rates, causes, found
