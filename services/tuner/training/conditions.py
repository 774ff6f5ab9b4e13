"""Load points as arrays: what a law is asked, and what was measured there."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array, Workload
from services.tuner.sweeps.sweep import Sweep

Flags = NDArray[np.bool_]

# No engine's default batch limit is larger; it only bounds predictions for rates that a law cannot carry.
LARGEST_BATCH = 1024.0
# A closed loop whose requests spend more than this share of their time before the first token waits for slots.
WAITING_SHARE = 0.1
# Fewer requests per client than this, and the burst with which a closed loop begins is what was measured.
SETTLED_REQUESTS = 10.0
# From this share of what a closed loop reached in the same sweep on, an open load is saturated.
SATURATED_SHARE = 0.95


@dataclass(frozen=True, eq=False)
class Conditions:
    """Load points along one axis, shape (n,), in SI units; `LoadPoint` documents the fields.

    clients: NaN where arrivals are open.
    saturated: open loads so near to the sweep's closed-loop rate that no steady state was reached: their batch
        grows for as long as the run lasts, and a rate that is 1 % off changes it by tens of percent. So they are
        taken at the batch that was seen rather than at their rate.
    kv_tokens: tokens that the engine's KV cache holds, infinite where the sweeps do not show it.
    sweep: index of the file that a point is from.
    """

    rate_rps: Array
    input_tokens: Array
    output_tokens: Array
    input_tokens_sd: Array
    output_tokens_sd: Array
    clients: Array
    arrival_scv: Array
    duration_s: Array
    requests: Array
    kv_tokens_each: Array
    concurrency: Array
    saturated: Flags
    kv_tokens: float
    itl_s: Array
    ttft_s: Array
    ttft_p95_s: Array
    sweep: NDArray[np.int64]

    @classmethod
    def of(cls, sweeps: Sequence[Sweep], kv_tokens: float) -> "Conditions":
        """The points of sweeps, in order."""
        points = [(index, point) for index, one in enumerate(sweeps) for point in one.points]

        def column(name: str) -> Array:
            values = [getattr(point, name) for _, point in points]
            return np.array([np.nan if value is None else value for value in values])

        measured = [one.name for one in fields(cls) if one.name not in ("kv_tokens", "saturated", "sweep")]
        indices = np.array([index for index, _ in points], dtype=np.int64)
        saturated = np.concatenate([_saturated(one) for one in sweeps])
        columns = {name: column(name) for name in measured}
        return cls(**columns, saturated=saturated, kv_tokens=kv_tokens, sweep=indices)

    def take(self, mask: Flags) -> "Conditions":
        """The points of a mask."""
        held = vars(self)
        return Conditions(
            **{
                one.name: held[one.name] if one.name == "kv_tokens" else held[one.name][mask]
                for one in fields(self)
            }
        )

    def relabelled(self, itl_s: Array, ttft_s: Array) -> "Conditions":
        """The same loads with other latencies."""
        held = {one.name: vars(self)[one.name] for one in fields(self)}
        return Conditions(**{**held, "itl_s": itl_s, "ttft_s": ttft_s})

    @cached_property
    def workload(self) -> Workload:
        """Token lengths with the spread that was measured; prompts and outputs uncorrelated."""
        return Workload(
            self.input_tokens,
            self.output_tokens,
            output_tokens_sq=self.output_tokens**2 + self.output_tokens_sd**2,
            input_tokens_sq=self.input_tokens**2 + self.input_tokens_sd**2,
            arrival_scv=self.arrival_scv,
        )

    @cached_property
    def closed(self) -> Flags:
        """Where a closed loop keeps a number of requests in flight."""
        return np.isfinite(self.clients)

    @cached_property
    def batch_given(self) -> Flags:
        """Where the batch is known rather than the rate: closed loops and saturated loads."""
        return self.closed | self.saturated

    @cached_property
    def largest_batch(self) -> Array:
        """Requests that fit at once: those in flight, what the KV cache holds, or what any engine admits."""
        in_flight = np.where(self.saturated, self.concurrency, LARGEST_BATCH)
        in_flight = np.where(self.closed, self.clients, in_flight)
        return np.maximum(1.0, np.minimum(in_flight, self.kv_tokens / self.kv_tokens_each))

    @cached_property
    def ttft_counts(self) -> Flags:
        """Where the TTFT is that of a steady state.

        A closed loop begins with a burst. Where its clients wait for slots, or few requests followed the burst,
        the mean TTFT is of a transient and depends on the length of the run and the client's timeout more than on
        the engine: there only the ITL is used.
        """
        latency = self.ttft_s + (self.output_tokens - 1.0) * self.itl_s
        clients = np.where(self.closed, self.clients, np.where(self.saturated, self.concurrency, 1.0))
        waits = (self.ttft_s > WAITING_SHARE * latency) | (self.kv_tokens / self.kv_tokens_each < clients)
        settled = self.requests >= SETTLED_REQUESTS * clients
        return ~self.batch_given | (clients <= 1.0) | (settled & ~waits)

    def usual(self) -> Flags:
        """Points that published figures usually count: no burst, and not the two highest open loads of a sweep."""
        counted = ~self.closed | (self.clients <= 1.0)
        for index in np.unique(self.sweep):
            loads = np.flatnonzero((self.sweep == index) & ~self.closed)
            counted[loads[np.argsort(self.rate_rps[loads])[-2:]]] = False
        return counted


def _saturated(one: Sweep) -> Flags:
    reached = [point.rate_rps for point in one.points if point.clients is not None and point.clients > 1]
    threshold = SATURATED_SHARE * max(reached, default=np.inf)
    return np.array([point.clients is None and point.rate_rps >= threshold for point in one.points])


def kv_capacity(sweeps: Sequence[Sweep]) -> float:
    """Tokens that the KV cache holds, by Little's law from closed loops whose requests wait; else infinite.

    Of C clients rate · TTFT wait and the others are in service, each with `kv_tokens_each`. Runs shorter than
    three latencies have no steady state. The median over the points that tell.
    """
    held = [
        point.rate_rps * (point.latency_s - point.ttft_s) * point.kv_tokens_each
        for one in sweeps
        for point in one.points
        if point.clients is not None
        and point.clients > 1
        and point.ttft_s > WAITING_SHARE * point.latency_s
        and point.duration_s > 3.0 * point.latency_s
    ]
    return float(np.median(held)) if held else float("inf")
