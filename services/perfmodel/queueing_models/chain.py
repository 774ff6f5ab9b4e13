"""Birth-death chains on the number in system, many at once, with the waiting room in closed form.

A chain is fed at rate λ, serves n requests at rate μ(n) for n ≤ N and at μ(N) beyond, and holds at most
N + Q. An admitted arrival finds n requests, n < N + Q, with probability proportional to λⁿ/∏ μ(1…n), and is
served in a batch of min(n+1, N) once it starts. By Little's law the mean of τ(min(n+1, N)) over admitted
arrivals, τ(B) = B/μ(B), is the mean time in service, so all means here are means over what they find.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array

# Below this Q·|ln x| the closed form of the waiting sum cancels more than its series leaves out.
SERIES_LIMIT = 1e-3


@dataclass(frozen=True, eq=False)
class Found:
    """What admitted arrivals find at one rate, per row.

    batch_share: shape (R, N), the share that is served in a batch of 1 … N.
    queued_before: shape (R,), mean number of departures an arrival waits for.
    waiting_share: shape (R,), share that finds every place taken.
    blocked_share: shape (R,), share of all arrivals that find the system full.
    throughput: shape (R,), admitted arrivals per second.
    """

    batch_share: Array
    queued_before: Array
    waiting_share: Array
    blocked_share: Array
    throughput: Array

    def mean(self, by_batch: Array) -> Array:
        """The mean over admitted arrivals of a quantity given for every batch, shape (R, N)."""
        mean: Array = np.einsum("ij,ij->i", self.batch_share, by_batch)
        return mean


@dataclass(frozen=True, eq=False)
class Chain:
    """S chains padded to the largest N.

    log_service: shape (S, N), ln ∏ μ(1…n) for n = 0 … N−1, infinite from n = a chain's own N on.
    log_full_product: shape (S,), ln ∏ μ(1…N).
    full_rate: shape (S,), μ(N).
    max_batch, max_queue: shape (S,), N and Q.
    """

    log_service: Array
    log_full_product: Array
    full_rate: Array
    max_batch: Array
    max_queue: Array

    @classmethod
    def from_rates(cls, service_rate: Array, max_batch: Array, max_queue: Array) -> "Chain":
        """The chains with service rates μ(1 … N) of shape (S, N); any beyond a chain's N are ignored."""
        count = service_rate.shape[1]
        products = np.cumsum(np.log(service_rate), axis=1)
        last = max_batch.astype(np.intp)[:, None] - 1
        log_service = np.zeros_like(products)
        log_service[:, 1:] = products[:, :-1]
        log_service[np.arange(count) > last] = np.inf
        return cls(
            log_service,
            np.take_along_axis(products, last, axis=1)[:, 0],
            np.take_along_axis(service_rate, last, axis=1)[:, 0],
            max_batch,
            max_queue,
        )

    def found_at(self, rate: Array, rows: NDArray[np.intp]) -> Found:
        """What arrivals at rates of shape (R,) find in the chains `rows`; zero is an idle server."""
        log_rate = np.log(np.maximum(rate, np.finfo(float).tiny))
        batch, queue = self.max_batch[rows], self.max_queue[rows]
        weight: Array = log_rate[:, None] * np.arange(self.log_service.shape[1], dtype=np.float64)
        weight -= self.log_service if _is_all(rows, len(self.full_rate)) else self.log_service[rows]

        log_full = batch * log_rate - self.log_full_product[rows]
        log_ratio = log_rate - np.log(self.full_rate[rows])
        step = np.abs(log_ratio)
        growth = np.maximum(log_ratio, 0.0)
        log_last = log_full + growth * (queue - 1.0)
        peak = np.maximum(weight.max(axis=1), np.where(queue > 0, log_last, -np.inf))
        weight -= peak[:, None]
        np.exp(weight, out=weight)

        scale = np.where(queue > 0, np.exp(log_last - peak), 0.0)
        states, places = geometric_sums(step, queue)
        # Past saturation the sums run down from the full queue, so that nothing overflows.
        places = np.where(log_ratio > 0, (queue + 1.0) * states - places, places)
        weight[np.arange(rows.size), batch.astype(np.intp) - 1] += scale * states
        admitted = weight.sum(axis=1)
        weight /= admitted[:, None]

        # Relative to the peak, so that the size of the logarithms does not cost digits.
        log_blocked = log_last - peak + np.where(log_ratio > 0, log_ratio, queue * log_ratio)
        log_total = np.logaddexp(np.log(admitted), log_blocked)
        throughput = np.where(rate > 0, np.exp(log_rate + np.log(admitted) - log_total), 0.0)
        return Found(
            weight,
            scale * places / admitted,
            scale * states / admitted,
            np.exp(log_blocked - log_total),
            throughput,
        )


def geometric_sums(step: Array, count: Array) -> tuple[Array, Array]:
    """Σ y^j and Σ (j+1) y^j over j = 0 … count−1, for y = exp(−step) and step ≥ 0, exact as y → 1."""
    product = step * count
    near = product < SERIES_LIMIT
    safe = np.where(near, 1.0, step)
    # y underflows harmlessly for large steps; 1 − y is then one.
    one_less = -np.expm1(-safe)
    plain = -np.expm1(-np.where(near, 0.0, product)) / one_less
    weighted = (plain - count * np.exp(-product)) / one_less

    n, u = count, step
    series_plain = (
        n - u * n * (n - 1) / 2 + u**2 * (n - 1) * n * (2 * n - 1) / 12 - u**3 * (n * (n - 1)) ** 2 / 24
    )
    first = n * (n + 1) / 2
    second = (n - 1) * n * (n + 1) / 3
    third = (n - 1) * n * (n + 1) * (3 * n - 2) / 12
    fourth = n * (n - 1) * (n + 1) * (n * (12 * n - 15) + 2) / 60
    series_weighted = first - u * second + u**2 * third / 2 - u**3 * fourth / 6
    return np.where(near, series_plain, plain), np.where(near, series_weighted, weighted)


def _is_all(rows: NDArray[np.intp], count: int) -> bool:
    return rows.size == count and bool((rows == np.arange(count)).all())
