"""The birth-death chain by its definition, term by term in fifty digits: what the kernels are held against."""

from collections.abc import Sequence
from dataclasses import dataclass

import mpmath
import numpy as np

from services.perfmodel.queueing import ServerModel

DIGITS = 50
# A step of ln(rate) for central differences: their error is its square, their cancellation 10⁻⁵⁰ over it.
STEP = mpmath.mpf(10) ** -15


@dataclass(frozen=True)
class ExactState:
    """What admitted arrivals find; the meaning of the fields is that of the columns of `affine_kernels.states`.

    batch_share: the share of them that is served in a batch of 1 … N.
    """

    batch_share: list[mpmath.mpf]
    batch: mpmath.mpf
    batch_sq: mpmath.mpf
    found: mpmath.mpf
    waited: mpmath.mpf
    queued: mpmath.mpf
    blocked: mpmath.mpf
    idle: mpmath.mpf


def service_times(iterations: float, base: float, slope: float, places: int) -> list[mpmath.mpf]:
    """τ(B) of B = 1 … N in seconds, for times affine in the batch."""
    m, t, d = mpmath.mpf(iterations), mpmath.mpf(base), mpmath.mpf(slope)
    return [m * (t + d * batch) for batch in range(1, places + 1)]


def weights(rate: mpmath.mpf, service: Sequence[mpmath.mpf]) -> list[mpmath.mpf]:
    """λⁿ/∏ μ(1…n) for n = 0 … N with μ(n) = n/τ(n)."""
    found = [mpmath.mpf(1)]
    for number, time in enumerate(service, start=1):
        found.append(found[-1] * rate * time / number)
    return found


def exact_state(rate: mpmath.mpf, service: Sequence[mpmath.mpf], queue: int) -> ExactState:
    """The state at a rate, by adding up every number in system from 0 to N + Q."""
    with mpmath.workdps(DIGITS):
        places = len(service)
        share = weights(rate, service)
        ratio = rate * service[-1] / places
        waiting = share[places:]
        while len(waiting) < queue + 1:
            waiting.append(waiting[-1] * ratio)
        blocked = waiting.pop()
        below = share[:places]
        admitted = mpmath.fsum(below) + mpmath.fsum(waiting)
        in_full = mpmath.fsum(waiting)
        departures = mpmath.fsum((ahead + 1) * one for ahead, one in enumerate(waiting))
        found = mpmath.fsum(n * one for n, one in enumerate(below)) + (places - 1) * in_full + departures
        served = [one / admitted for one in below]
        served[-1] += in_full / admitted
        return ExactState(
            served,
            mpmath.fsum((n + 1) * one for n, one in enumerate(served)),
            mpmath.fsum((n + 1) ** 2 * one for n, one in enumerate(served)),
            found / admitted,
            departures / admitted,
            in_full / admitted,
            blocked / (admitted + blocked),
            below[0] / admitted,
        )


def exact_slopes(
    rate: mpmath.mpf, service: Sequence[mpmath.mpf], queue: int
) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """Derivatives by ln(rate) of the batch, of the departures waited for and of ln(share blocked)."""
    with mpmath.workdps(DIGITS):
        less, more = (
            exact_state(mpmath.mpf(rate) * mpmath.exp(step), service, queue) for step in (-STEP, STEP)
        )
        return (
            (more.batch - less.batch) / (2 * STEP),
            (more.waited - less.waited) / (2 * STEP),
            (mpmath.log(more.blocked) - mpmath.log(less.blocked)) / (2 * STEP),
        )


@dataclass(frozen=True)
class ExactServer:
    """What the law says of one server, batch by batch from 1 to N, and its waiting room."""

    service: list[mpmath.mpf]
    prefill: list[mpmath.mpf]
    inter_token: list[mpmath.mpf]
    overhead: mpmath.mpf
    queue: int

    @classmethod
    def of(cls, server: ServerModel) -> "ExactServer":
        """The only server of a model of shape (1,)."""
        law, limits = server.law, server.limits
        batch = np.arange(1.0, float(np.asarray(limits.max_batch)[0]) + 1.0)
        question = (server.parameters, batch, server.workload, limits.token_budget)
        iterations = map(mpmath.mpf, law.iterations_per_request(*question))
        with mpmath.workdps(DIGITS):
            times = zip(iterations, map(mpmath.mpf, law.iteration_time(*question)), strict=True)
            return cls(
                [count * time for count, time in times],
                [mpmath.mpf(value) for value in law.prefill_time(*question)],
                [mpmath.mpf(value) for value in law.inter_token_time(*question)],
                mpmath.mpf(law.overhead_time(server.parameters, server.workload)[0]),
                int(np.asarray(limits.max_queue)[0]),
            )

    @property
    def capacity(self) -> mpmath.mpf:
        """μ(N)."""
        with mpmath.workdps(DIGITS):
            return len(self.service) / self.service[-1]

    def figures(self, rate: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
        """Mean TTFT, mean inter-token time and share blocked at a rate."""
        with mpmath.workdps(DIGITS):
            found = exact_state(rate, self.service, self.queue)
            prefill = mpmath.fsum(p * t for p, t in zip(found.batch_share, self.prefill, strict=True))
            token = mpmath.fsum(p * t for p, t in zip(found.batch_share, self.inter_token, strict=True))
            return self.overhead + found.waited / self.capacity + prefill, token, found.blocked
