"""The reference's arithmetic: its roundings to single precision, in its order of operations.

The weights of its chains are in double precision, all else in single precision and milliseconds. Where a curve is
flat, what its searches find depends on every rounding, so all of them are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array, Values
from services.perfmodel.laws.three_parameter import ThreeParameterLaw, chunk_counts
from services.perfmodel.queueing import Flags, ServerModel
from services.perfmodel.root_finding import Rows

Singles = NDArray[np.float32]

ONE, TWO, HALF = np.float32(1.0), np.float32(2.0), np.float32(0.5)
THOUSAND = np.float32(1000.0)
MS_PER_S = 1000.0
LOWEST_SHARE = np.float32(0.001)
HIGHEST_SHARE = ONE - LOWEST_SHARE
MOST_SINGLE = float(np.finfo(np.float32).max)
# Relative difference of two times that is none.
SAME = np.float32(1e-6)
HALVINGS = 100
# Weights that are held at once, without the compiled kernels.
MOST_WEIGHTS = 1 << 20
# Places of a server that are followed one by one.
MOST_PLACES = 2_000_000
# A rate of zero has no response time, and rates beyond single precision have none that is finite.
UNDEFINED = np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore")


@dataclass(frozen=True, eq=False)
class Figures:
    """What rates make of servers, shapes (R,): requests per millisecond, requests, milliseconds, a share."""

    throughput: Singles
    occupancy: Singles
    response: Singles
    wait: Singles
    ttft: Singles
    itl: Singles
    blocked_share: Singles


@dataclass(frozen=True, eq=False)
class CompatChain:
    """S servers along one axis as the reference knows them.

    alpha, beta, gamma, prompt, output: shape (S,), parameters in milliseconds.
    chunks: c(B), shape (S, N). rates: μ(B) per millisecond, shape (S, N). places: N and N + Q, shape (2, S).
    """

    alpha: Singles
    beta: Singles
    gamma: Singles
    prompt: Singles
    output: Singles
    chunks: Singles
    rates: Singles
    places: Rows

    @classmethod
    @UNDEFINED
    def of(cls, server: ServerModel) -> "CompatChain":
        """Servers along one axis; raises ValueError for those the reference refuses."""
        if not isinstance(server.law, ThreeParameterLaw):
            raise ValueError(f"birth-death-compat needs the law three-parameter, got {server.law.name}")
        batch = np.asarray(server.limits.max_batch).astype(np.intp)
        places = np.stack([batch, batch + np.asarray(server.limits.max_queue).astype(np.intp)])
        if np.any(places[1] < 2):
            raise ValueError("max_batch + max_queue must be at least 2 in birth-death-compat")
        if np.any(places[1] > MOST_PLACES):
            raise ValueError(
                f"max_batch + max_queue must be at most {MOST_PLACES:,} in birth-death-compat, "
                f"got {places[1].max():,}"
            )
        wide = server.columns()
        sizes = np.minimum(np.arange(1.0, batch.max(initial=1) + 1.0), batch[:, None])
        chunks = single(chunk_counts(sizes, wide.workload, wide.limits.token_budget))
        alpha, beta, gamma = (single(server.parameters[:, k] * MS_PER_S) for k in range(3))
        prompt, output = single(server.workload.input_tokens), single(server.workload.output_tokens)
        bare = cls(alpha, beta, gamma, prompt, output, chunks, chunks, places)
        everyone = np.arange(batch.size)[:, None]
        iteration = alpha[:, None] + single(sizes) * bare._slope(everyone, chunks)
        return replace(bare, rates=single(sizes) / ((chunks + output[:, None]) * iteration))

    @property
    def full_rate(self) -> Singles:
        """μ(N) per millisecond, shape (S,)."""
        rate: Singles = self.rates[np.arange(self.rates.shape[0]), self.places[0] - 1]
        return rate

    @property
    def least_rate(self) -> Singles:
        """Where searches begin, per millisecond; the reference keeps it per second, shape (S,)."""
        rate: Singles = self.rates[:, 0] * LOWEST_SHARE * THOUSAND / THOUSAND
        return rate

    @property
    def most_rate(self) -> Singles:
        """Where searches end, shape (S,)."""
        rate: Singles = self.full_rate * HIGHEST_SHARE * THOUSAND / THOUSAND
        return rate

    @UNDEFINED
    def figures(self, per_ms: Singles, rows: Rows) -> Figures:
        """What so many requests per millisecond, shape (R,), make of the servers `rows`."""
        in_system, present, blocked = single(_contents()(self.rates, self.places, rows, per_ms))
        throughput = per_ms * (ONE - blocked)
        response, service = in_system / throughput, present / throughput
        wait = np.maximum(response - service, np.float32(0.0))
        nearest = np.clip(np.nan_to_num(present + HALF).astype(np.intp), 1, self.places[0, rows])
        chunks = self.chunks[rows, nearest - 1]
        background = np.maximum(
            self.alpha[rows] + (present - ONE) * self._slope(rows, chunks), np.float32(0.0)
        )
        prefill = chunks * background + self._prefill_work(rows, chunks)
        token = (service - prefill) / self.output[rows]
        return Figures(throughput, present, response, wait, wait + prefill + token, token, blocked)

    @UNDEFINED
    def rate_for(self, target: Singles, figure: str, rows: Rows) -> Singles:
        """The rate per millisecond, shape (R,), at which a figure is at its target; negative where it never is.

        The reference halves the interval until the figure is the target but for `SAME`, which on a flat curve is
        visibly not the root. A figure that falls with the rate, or does not depend on it, has no root above its
        value at the lowest. A target of zero is none.
        """

        def at(rate: Singles, some: Rows) -> Singles:
            found: Singles = getattr(self.figures(rate, rows[some]), figure)
            return found

        low, high = self.least_rate[rows], self.most_rate[rows]
        everyone = np.arange(rows.size)
        at_low, at_high = at(low, everyone), at(high, everyone)
        rises = at_low < at_high
        below = np.where(rises, target < at_low, target > at_low)
        above = np.where(rises, target > at_high, target < at_high)
        middle = np.where(_same(at_low, target), low, high)
        none = target == 0
        known = none | _same(at_low, target) | _same(at_high, target)
        middle[none] = high[none]
        middle[~(high > 0) | (~known & below)] = -1.0
        active = np.flatnonzero(~known & ~below & ~above & (high > 0))
        for _ in range(HALVINGS):
            if not active.size:
                break
            middle[active] = HALF * (low[active] + high[active])
            found, wanted = at(middle[active], active), target[active]
            going = ~_same(found, wanted)
            down = np.where(rises[active], wanted < found, wanted > found)
            high[active[going & down]] = middle[active[going & down]]
            low[active[going & ~down]] = middle[active[going & ~down]]
            active = active[going]
        return middle

    def _prefill_work(self, rows: Rows, chunks: Singles) -> Singles:
        reads = self.gamma[rows] * (chunks + ONE) / TWO
        work: Singles = np.multiply(self.beta[rows] + reads, self.prompt[rows], dtype=np.float32)
        return work

    def _slope(self, rows: Rows, chunks: Singles) -> Singles:
        prompt, output = self.prompt[rows], self.output[rows]
        reads = self.gamma[rows] * output * (prompt + (output + ONE) / TWO)
        decode = self.beta[rows] * output + reads
        slope: Singles = (self._prefill_work(rows, chunks) + decode) / (chunks + output)
        return slope


def single(value: Values) -> Singles:
    """Values in single precision, at most its largest."""
    return np.clip(value, -MOST_SINGLE, MOST_SINGLE).astype(np.float32)


def _same(value: Singles, target: Singles) -> Flags:
    same: Flags = (value == target) | (np.abs((value - target) / target) <= SAME)
    return same


Contents = Callable[[Singles, Rows, Rows, Singles], Array]


@cache
def _contents() -> Contents:
    """`contents`, compiled where numba is installed."""
    try:
        from services.perfmodel.queueing_models import compat_kernels
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return contents
    compiled: Contents = compat_kernels.contents
    return compiled


def contents(rates: Singles, places: Rows, rows: Rows, per_ms: Singles) -> Array:
    """Mean requests in system and in service, and the share blocked, in double precision, shape (3, R).

    rates: μ(B) per millisecond, shape (S, N). places: N and N + Q, shape (2, S). rows: the server of each of the R.
    """
    found = np.empty((3, rows.size))
    step = max(1, MOST_WEIGHTS // int(places[1].max(initial=1) + 1))
    for first in range(0, rows.size, step):
        part = slice(first, first + step)
        found[:, part] = _contents_of(rates, places[:, rows[part]], rows[part], per_ms[part].astype(float))
    return found


@UNDEFINED
def _contents_of(rates: Singles, places: Rows, rows: Rows, rate: Array) -> Array:
    batch, most = places
    everyone = np.arange(rows.size)
    width = int(most.max())
    scale = np.finfo(float).max / most
    weights = np.zeros((width + 1, rows.size))
    weights[0] = 1.0
    for n in range(width):
        served = rates[rows, np.minimum(n, batch - 1)].astype(float)
        weights[n + 1] = np.where(n < most, weights[n] * rate / served, 0.0)
        while (large := np.flatnonzero(np.isinf(weights[n + 1]) & (weights[n] > 1.0))).size:
            weights[: n + 1, large] /= scale[large]
            weights[n + 1, large] = weights[n, large] * rate[large] / served[large]
    while (large := np.flatnonzero(np.isinf(np.cumsum(weights, axis=0)[-1]))).size:
        weights[:, large] /= scale[large]
    share = weights / np.cumsum(weights, axis=0)[-1]
    in_system = np.cumsum(np.arange(width + 1.0)[:, None] * share, axis=0)
    below = np.cumsum(share, axis=0)[batch, everyone]
    in_service = in_system[batch, everyone] + (1.0 - below) * batch
    return np.stack([in_system[-1], in_service, share[most, everyone]])
