"""Compiled birth-death chains whose times are affine in the batch.

With T(B) = t₀ + dB and m iterations per request, μ(n) = n/(m·T(n)) up to n = N and μ(N) beyond. With a = t₀/d and
r = λmd the probabilities up to N are a truncated negative binomial NegBin(a+1, r), and beyond it a geometric tail
in x = λ/μ(N). Of its sums P = Σp_n, S₁ = Σnp_n, S₂ = Σn²p_n over n ≤ N only the first needs a special function,
the incomplete beta function, by the continued fraction of DLMF 8.17.22 on whichever side of the mean converges;
from (n+1)p_{n+1} = r(n+1+a)p_n follow

    S₁(1−r) = r[(1+a)(P − p_N) − N·p_N],    S₂(1−r) = r[(2+a)(S₁ − Np_N) + (1+a)(P − p_N) − N²p_N].

Those lose digits where the untruncated mean is far beyond N and are undefined for r ≥ 1; there, and for few places,
the terms are added from the mode outwards. Derivatives are covariances: d E[f]/d ln λ = Cov(f, n).
"""

import math

import numpy as np
from numba import njit

from services.perfmodel.law import Array
from services.perfmodel.root_finding import Rows

# Adding the terms is faster up to this many places.
SUMMED_PLACES = 96
# The recurrences lose this factor in accuracy at the most.
LARGEST_LOSS = 30.0
# Below the mean the fraction is evaluated at 1 − r, which must keep the digits of r.
SMALLEST_RATIO = 1e-4
# Beyond this a negative binomial is a Poisson distribution to the last digit.
LARGEST_SHAPE = 1e25
EPSILON = 1e-17

# Columns of a row of servers: m, t₀, d, `log_coefficient`, N, Q; then times affine in the batch, at 0 and by batch.
ROW = 10
PREFILL_AT_0, PREFILL_BY_BATCH, TOKEN_AT_0, TOKEN_BY_BATCH = 6, 7, 8, 9
# Columns of a state; see `states`.
STATE = 16
BATCH, BATCH_SQ, FOUND, WAITED, QUEUED, BLOCKED, IDLE, SLOPE_BATCH, SLOPE_WAITED, SLOPE_BLOCKED = range(10)
PREFILL, TOKEN, SERVICE, PROGRESS, SLOPE_PREFILL, SLOPE_TOKEN = range(10, STATE)


@njit(cache=True)
def _stirling(x: float) -> float:
    """ln Γ(x) less its leading terms (x−½)ln x − x + ½ln 2π, for x of at least 100."""
    inverse = 1.0 / x
    square = inverse * inverse
    return inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square / 1260.0))


@njit(cache=True)
def log_coefficient(shape: float, places: float) -> float:
    """ln Γ(N+a+1) − ln Γ(a+1) − ln Γ(N+1)."""
    if shape < 1000.0:
        return math.lgamma(places + shape + 1.0) - math.lgamma(shape + 1.0) - math.lgamma(places + 1.0)
    top = places + shape + 1.0
    ratio = (shape + 0.5) * math.log1p(places / (shape + 1.0)) + places * math.log(top) - places
    return ratio + _stirling(top) - _stirling(shape + 1.0) - math.lgamma(places + 1.0)


@njit(cache=True)
def log_coefficients(table: Array) -> Array:
    """`log_coefficient` of every row of a table, shape (S,), from its t₀, d and N."""
    found = np.empty(table.shape[0])
    for k in range(found.size):
        base, slope = table[k, 1], table[k, 2]
        shape = base / slope if base < slope * LARGEST_SHAPE else LARGEST_SHAPE
        found[k] = log_coefficient(shape, table[k, 4])
    return found


@njit(cache=True)
def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    tiny = 1e-300
    c = 1.0
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    found = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        d = 1.0 + even * d
        c = 1.0 + even / c
        d = 1.0 / (d if abs(d) > tiny else tiny)
        c = c if abs(c) > tiny else tiny
        found *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        d = 1.0 + odd * d
        c = 1.0 + odd / c
        d = 1.0 / (d if abs(d) > tiny else tiny)
        c = c if abs(c) > tiny else tiny
        step = d * c
        found *= step
        if abs(step - 1.0) < 1e-15:
            break
    return found


@njit(cache=True)
def closed_sums(shape: float, ratio: float, places: float, log_coef: float) -> tuple[float, ...]:
    """(Σp_n, Σnp_n, Σn²p_n over n < N, p_N, p₀) of a negative binomial, on a common scale; 0 < ratio < 1.

    Outside its range of validity (see `is_closed`) the sums are inaccurate.
    """
    rest = math.log1p(-ratio)
    log_last = log_coef + places * math.log(ratio)
    if _beyond_the_mean(shape, ratio, places):
        last = math.exp(log_last + (shape + 1.0) * rest)
        beyond = ratio * (places + shape + 1.0) / (places + 1.0)
        total = 1.0 - last * beyond * _beta_fraction(places + 1.0, shape + 1.0, ratio)
        first = math.exp((shape + 1.0) * rest)
    else:
        last = 1.0
        total = ratio * (places + shape + 1.0) / (shape + 1.0)
        total *= _beta_fraction(shape + 1.0, places + 1.0, 1.0 - ratio)
        first = math.exp(-log_last)
    below = total - last
    odds = ratio / (1.0 - ratio)
    one = odds * ((1.0 + shape) * below - places * last) - places * last
    two = odds * ((2.0 + shape) * one + (1.0 + shape) * below - places * places * last)
    return below, one, two - places * places * last, last, first


@njit(cache=True)
def _beyond_the_mean(shape: float, ratio: float, places: float) -> bool:
    return ratio * (places + shape + 4.0) < places + 2.0


@njit(cache=True)
def is_closed(shape: float, ratio: float, places: float) -> bool:
    """Whether the closed form keeps at least eleven digits."""
    if not 0.0 < ratio < 1.0 or ratio * (1.0 + shape) > LARGEST_LOSS * places * (1.0 - ratio):
        return False
    return ratio > SMALLEST_RATIO or _beyond_the_mean(shape, ratio, places)


@njit(cache=True)
def added_sums(rate: float, iterations: float, base: float, slope: float, places: int) -> tuple[float, ...]:
    """The same sums by adding the terms from the mode outwards; any rate above zero."""
    work = rate * iterations * slope
    mode = places
    if work < 1.0:
        mode = int(min(float(places), rate * iterations * base / (1.0 - work)))
    below = one = two = 0.0
    last = term = 1.0
    if mode < places:
        below, one, two = 1.0, float(mode), float(mode) * mode
        for n in range(mode + 1, places + 1):
            term *= rate * iterations * (base + slope * n) / n
            last = term
            if n == places:
                break
            below += term
            one += n * term
            two += float(n) * n * term
            if term < EPSILON * below:
                last = 0.0
                break
    term = 1.0
    for n in range(mode, 0, -1):
        term *= n / (rate * iterations * (base + slope * n))
        below += term
        one += (n - 1.0) * term
        two += (n - 1.0) * (n - 1.0) * term
        if term < EPSILON * below:
            return below, one, two, last, 0.0
    return below, one, two, last, term


@njit(cache=True)
def waiting_sums(x: float, queue: int) -> tuple[float, float, float, float]:
    """Σxʲ, Σ(j+1)xʲ, Σ(j+1)²xʲ over j < Q, and x^Q, for 0 ≤ x ≤ 1, by doubling: no term cancels."""
    zero = one = two = 0.0
    power = 1.0
    length = 0
    for bit in range(62, -1, -1):
        if length > 0:
            two += power * (two + 2.0 * length * one + float(length) * length * zero)
            one += power * (one + length * zero)
            zero += power * zero
            power *= power
            length *= 2
        if (queue >> bit) & 1:
            two += power * (length + 1.0) * (length + 1.0)
            one += power * (length + 1.0)
            zero += power
            power *= x
            length += 1
    return zero, one, two, power


@njit(cache=True)
def queue_sums(x: float, queue: int) -> tuple[float, float, float, float, float]:
    """`waiting_sums` for any x, and the scale of what is below the queue beside them.

    Beyond x = 1 they are counted from the full queue down, on the scale of its last place, so that nothing overflows.
    """
    if x <= 1.0:
        zero, weighted, squared, end = waiting_sums(x, queue)
        return zero, weighted, squared, end, 1.0
    zero, weighted, squared, end = waiting_sums(1.0 / x, queue)
    top = queue + 1.0
    squared = top * top * zero - 2.0 * top * weighted + squared
    weighted = top * zero - weighted
    if queue == 0:
        return zero, weighted, squared, 1.0, 1.0
    return zero, weighted, squared, x, math.exp(-(queue - 1.0) * math.log(x))


@njit(cache=True)
def affine_state(rate: float, row: Array, state: Array) -> None:
    """Write what admitted arrivals find at a rate above zero of a row of servers; see `states`."""
    iterations, base, slope, log_coef = row[0], row[1], row[2], row[3]
    places, queue = int(row[4]), int(row[5])
    n = row[4]
    ratio = rate * iterations * slope
    shape = base / slope if base < slope * LARGEST_SHAPE else LARGEST_SHAPE
    if shape == LARGEST_SHAPE:
        ratio = rate * iterations * base / shape
    if places > SUMMED_PLACES and is_closed(shape, ratio, n):
        below, below_one, below_two, last, first = closed_sums(shape, ratio, n, log_coef)
    else:
        below, below_one, below_two, last, first = added_sums(rate, iterations, base, slope, places)

    x = rate * iterations * (base + slope * n) / n
    zero, weighted, squared, end, scale = queue_sums(x, queue)
    below, below_one, below_two, first = below * scale, below_one * scale, below_two * scale, first * scale
    zero, weighted, squared, end = zero * last, weighted * last, squared * last, end * last

    # Found: the number in system; from n = N + j an arrival waits for j + 1 departures.
    admitted = below + zero
    queue_found = (n - 1.0) * zero + weighted
    found = (below_one + queue_found) / admitted
    everything = admitted + end
    state[BATCH] = (below_one + below + n * zero) / admitted
    state[BATCH_SQ] = (below_two + 2.0 * below_one + below + n * n * zero) / admitted
    state[FOUND] = found
    state[WAITED] = weighted / admitted
    state[QUEUED] = zero / admitted
    state[BLOCKED] = end / everything
    state[IDLE] = first / admitted
    state[SLOPE_BATCH] = (below_two + below_one + n * queue_found) / admitted - state[BATCH] * found
    state[SLOPE_WAITED] = ((n - 1.0) * weighted + squared) / admitted - state[WAITED] * found
    state[SLOPE_BLOCKED] = n + queue - (found * admitted + (n + queue) * end) / everything
    batch = state[BATCH]
    state[PREFILL] = row[PREFILL_AT_0] + row[PREFILL_BY_BATCH] * batch
    state[TOKEN] = row[TOKEN_AT_0] + row[TOKEN_BY_BATCH] * batch
    state[SERVICE] = iterations * (base + slope * batch)
    # Who did not have to wait found one request fewer at work than the batch that it is served in.
    state[PROGRESS] = base * (1.0 - state[IDLE]) + slope * (batch - 1.0 + state[QUEUED])
    state[SLOPE_PREFILL] = row[PREFILL_BY_BATCH] * state[SLOPE_BATCH]
    state[SLOPE_TOKEN] = row[TOKEN_BY_BATCH] * state[SLOPE_BATCH]


@njit(cache=True)
def states(rates: Array, rows: Rows, table: Array) -> Array:
    """What admitted arrivals find, shape (R, STATE), at rates (R,) above zero in rows (R,) of a table (S, ROW).

    Columns of a state: mean and mean square of the batch an arrival is served in; mean number found; mean
    departures waited for; share that waits; share blocked; share that finds an idle server; derivatives of the
    batch, of the departures and of ln(share blocked) by ln(rate); mean prefill, inter-token and service time; mean
    duration of the iteration in progress, zero of an idle server; derivatives of prefill and inter-token time.
    """
    found = np.empty((rates.size, STATE))
    for k in range(rates.size):
        affine_state(rates[k], table[rows[k]], found[k])
    return found
