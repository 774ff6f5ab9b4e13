"""Request sources: endless or finite iterators of (time_s, input_tokens, output_tokens) from time 0 on."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from heapq import merge
from itertools import pairwise
from math import ceil, fmod, log, log1p, sqrt
from pathlib import Path
from random import Random
from typing import NamedTuple

# Copies of a trace are shifted against one another by at most this: enough that their bursts do not
# coincide, little enough that the load over time keeps its shape.
COPY_SHIFT_S = 60.0


class Arrival(NamedTuple):
    """One request: when it reaches the gateway and how many tokens it brings and asks for."""

    time_s: float
    input_tokens: int
    output_tokens: int


class TraceError(ValueError):
    """A trace that cannot be read; names the file, the line, the value and what was expected."""


class Curve:
    """A piecewise-linear function of time through (time_s, value) points, constant before and after.

    With `repeat` the first point is at 0 and the last one is where it starts again.
    """

    def __init__(self, points: Sequence[tuple[float, float]], repeat: bool = False) -> None:
        self.points = list(points)
        self.repeat = repeat
        self._times_s = [time_s for time_s, _ in self.points]

    def at(self, time_s: float) -> float:
        """The value at a time in seconds."""
        if self.repeat:
            time_s = fmod(time_s, self._times_s[-1])
        after = bisect_right(self._times_s, time_s)
        if after == 0:
            return self.points[0][1]
        if after == len(self.points):
            return self.points[-1][1]
        (t0, v0), (t1, v1) = self.points[after - 1], self.points[after]
        return v0 + (v1 - v0) * (time_s - t0) / (t1 - t0)

    def highest(self) -> float:
        return max(value for _, value in self.points)


def read_azure_trace(path: Path) -> list[Arrival]:
    """Read a request log of the form TIMESTAMP,ContextTokens,GeneratedTokens; times from its first row.

    Timestamps carry fractions of any length (seven digits in the published traces). Raises TraceError on a file
    that cannot be read, on a row that does not parse, on time that runs backwards, and on a log of fewer than two
    requests.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8-sig").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: expected a readable text file: {error}") from None
    if header.strip() != "TIMESTAMP,ContextTokens,GeneratedTokens":
        raise TraceError(f"{path}:1: {header!r}: expected TIMESTAMP,ContextTokens,GeneratedTokens")
    arrivals: list[Arrival] = []
    origin_s = 0.0
    for number, line in enumerate(lines, start=2):
        text = line.strip()
        if not text:
            continue
        try:
            stamp, context, generated = text.split(",")
            time_s, inputs, outputs = _timestamp_s(stamp), int(context), int(generated)
        except (ValueError, TypeError):
            # A TypeError is a moment with its offset, of which the published traces have none.
            raise TraceError(
                f"{path}:{number}: {text!r}: expected a date and time and two whole numbers"
            ) from None
        if inputs < 1 or outputs < 1:
            raise TraceError(f"{path}:{number}: {text!r}: expected token counts of at least 1")
        if not arrivals:
            origin_s = time_s
        elif time_s - origin_s < arrivals[-1].time_s:
            raise TraceError(f"{path}:{number}: {stamp!r}: expected times that do not run backwards")
        arrivals.append(Arrival(time_s - origin_s, inputs, outputs))
    if len(arrivals) < 2 or arrivals[-1].time_s == 0.0:
        raise TraceError(f"{path}: {len(arrivals)} requests: expected at least two, at different times")
    return arrivals


def _timestamp_s(stamp: str) -> float:
    whole, _, fraction = stamp.partition(".")
    return (datetime.fromisoformat(whole) - datetime(2000, 1, 1)).total_seconds() + float(f"0.{fraction}0")


def replay(trace: Sequence[Arrival], scale: Curve, start_offset_s: float, rng: Random) -> Iterator[Arrival]:
    """Replay a trace from `start_offset_s` on, again and again, at `scale` times its rate.

    A scale below 1 keeps each request with that probability; above 1 it superposes copies shifted by up to
    COPY_SHIFT_S. The scale may vary over the time of the replay. Same generator state, same answer.
    """
    copies = max(1, ceil(scale.highest()))
    shifts_s = [0.0] + [rng.uniform(0.0, COPY_SHIFT_S) for _ in range(copies - 1)]
    streams = [_loop(trace, start_offset_s + shift_s) for shift_s in shifts_s]
    for arrival in merge(*streams):
        if rng.random() * copies < scale.at(arrival.time_s):
            yield arrival


def _loop(trace: Sequence[Arrival], offset_s: float) -> Iterator[Arrival]:
    # The gap over the seam is the trace's mean gap.
    period_s = trace[-1].time_s * len(trace) / (len(trace) - 1)
    offset_s = fmod(offset_s, period_s)
    first = bisect_right(trace, offset_s, key=lambda arrival: arrival.time_s)
    if first and trace[first - 1].time_s == offset_s:
        first -= 1
    base_s = -offset_s
    while True:
        for index in range(first, len(trace)):
            time_s, inputs, outputs = trace[index]
            yield Arrival(base_s + time_s, inputs, outputs)
        base_s, first = base_s + period_s, 0


class Shape(StrEnum):
    """The distribution that token counts are drawn from."""

    LOGNORMAL = "lognormal"
    UNIFORM = "uniform"
    EXPONENTIAL = "exponential"
    FIXED = "fixed"


# A uniform distribution from zero to twice its mean.
UNIFORM_MOST_CV = 1.0 / sqrt(3.0)


class Lengths(NamedTuple):
    """Token counts with a mean and a coefficient of variation, at least 1 and at most `highest`.

    The exponential and the fixed ones have a coefficient of variation of their own.
    """

    mean: float
    cv: float
    highest: int
    shape: Shape = Shape.LOGNORMAL

    def draw(self, rng: Random) -> int:
        match self.shape:
            case Shape.LOGNORMAL:
                variance = log1p(self.cv**2)
                drawn = rng.lognormvariate(log(self.mean) - variance / 2.0, sqrt(variance))
            case Shape.UNIFORM:
                half = self.mean * self.cv / UNIFORM_MOST_CV
                drawn = rng.uniform(self.mean - half, self.mean + half)
            case Shape.EXPONENTIAL:
                drawn = rng.expovariate(1.0 / self.mean)
            case Shape.FIXED:
                drawn = self.mean
        return min(self.highest, max(1, round(drawn)))


def generate(
    rate_rps: Curve, interarrival_cv: float, inputs: Lengths, outputs: Lengths, rng: Random
) -> Iterator[Arrival]:
    """Generate a Gamma renewal process whose rate follows a curve, with lognormal lengths.

    Gaps of a unit-rate process with the given coefficient of variation (1 is Poisson, above 1 is bursty) are
    stretched so that the expected number of arrivals by t is the integral of the rate up to t. Ends when
    the rate is zero for ever.
    """
    shape = 1.0 / interarrival_cv**2
    target, passed = rng.gammavariate(shape, 1.0 / shape), 0.0
    for start_s, end_s, rate, slope in _segments(rate_rps):
        length_s = end_s - start_s
        area = length_s * rate if slope == 0.0 else length_s * (rate + slope * length_s / 2.0)
        while target - passed < area:
            needed = target - passed
            offset_s = 2.0 * needed / (rate + sqrt(max(0.0, rate * rate + 2.0 * slope * needed)))
            yield Arrival(start_s + min(offset_s, length_s), inputs.draw(rng), outputs.draw(rng))
            target += rng.gammavariate(shape, 1.0 / shape)
        passed += area


def _segments(curve: Curve) -> Iterator[tuple[float, float, float, float]]:
    """Consecutive (start_s, end_s, value at start, slope), the last one endless unless the curve repeats."""
    base_s, (first_s, first_value) = 0.0, curve.points[0]
    if first_s > 0.0:
        yield 0.0, first_s, first_value, 0.0
    while True:
        for (t0, v0), (t1, v1) in pairwise(curve.points):
            yield base_s + t0, base_s + t1, v0, (v1 - v0) / (t1 - t0)
        last_s, last_value = curve.points[-1]
        if not curve.repeat:
            if last_value > 0.0:
                yield last_s, float("inf"), last_value, 0.0
            return
        base_s += last_s
