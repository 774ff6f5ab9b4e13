"""What one replica did between two readings of it."""

from dataclasses import dataclass

from pydantic import ValidationError

from schemas.base import Quality
from schemas.telemetry import ReplicaTelemetry
from services.collector.histograms import latency, subtract
from services.collector.source import HistogramReading, ReplicaReading

COUNTERS = ("completed", "input_tokens", "output_tokens")
MOST_RPS = 1e7
MOST_TOKENS = 1e9


@dataclass(frozen=True, slots=True)
class Delta:
    """Counts over `span_s` seconds that end at the reading's sample time; None where there is no figure.

    `offered` counts the requests that reached the replica: completed, plus the change of those it holds.
    `mixed` says that the batch limit changed in between.
    """

    reading: ReplicaReading
    span_s: float
    completed: float
    offered: float | None
    prompts: float | None
    input_tokens: float | None
    output_tokens: float | None
    ttft: HistogramReading | None
    itl: HistogramReading | None
    warming_up: bool
    mixed: bool


def delta(
    earlier: ReplicaReading | None, later: ReplicaReading, span_s: float, warming_up: bool
) -> Delta | None:
    """What a replica did since an earlier reading, or since it started when there is none.

    A counter that fell means that the engine restarted: everything since then counts, and the replica was
    warming up. None without a count of completions on both sides.
    """
    restarted = earlier is not None and any(
        after is not None and before is not None and after < before
        for after, before in ((getattr(later, name), getattr(earlier, name)) for name in COUNTERS)
    )
    base = None if restarted else earlier
    completed = _since(base, later, "completed")
    if completed is None:
        return None
    held = _held(later)
    held_before = 0.0 if base is None else _held(base)
    ttft = _histogram_since(base, later, "ttft")
    return Delta(
        reading=later,
        span_s=span_s,
        completed=completed,
        offered=None if held is None or held_before is None else max(0.0, completed + held - held_before),
        # A prompt's tokens are counted with its first token, which may be a window before its completion.
        prompts=completed if ttft is None else ttft.count,
        input_tokens=_since(base, later, "input_tokens"),
        output_tokens=_since(base, later, "output_tokens"),
        ttft=ttft,
        itl=_histogram_since(base, later, "itl"),
        warming_up=warming_up or restarted,
        mixed=earlier is not None
        and None not in (earlier.max_batch, later.max_batch)
        and earlier.max_batch != later.max_batch,
    )


def telemetry(one: Delta) -> ReplicaTelemetry | None:
    """The replica's part of a window; None where its names or figures fit no contract."""
    reading = one.reading
    try:
        return ReplicaTelemetry(
            replica=reading.replica,
            accelerator=reading.accelerator or "",
            max_batch=reading.max_batch,
            quality=Quality.PARTIAL if one.mixed else Quality.OK,
            warming_up=one.warming_up,
            offered_rate_rps=None if one.offered is None else bounded(one.offered / one.span_s, MOST_RPS),
            completed_rate_rps=bounded(one.completed / one.span_s, MOST_RPS),
            input_tokens=mean(one.input_tokens, one.prompts),
            output_tokens=mean(one.output_tokens, one.completed),
            ttft=latency(one.ttft),
            itl=latency(one.itl),
            running=reading.running,
            waiting=reading.waiting,
            kv_used_share=bounded(reading.kv_used_share, 1.0),
        )
    except ValidationError:
        return None


def mean(total_tokens: float | None, requests: float | None) -> float | None:
    """Mean tokens of a request; None without requests."""
    if total_tokens is None or not requests:
        return None
    return bounded(total_tokens / requests, MOST_TOKENS)


def bounded(value: float | None, most: float) -> float | None:
    """The value where it lies within 0 and `most`, which its contract allows."""
    return value if value is not None and 0 <= value <= most else None


def _since(base: ReplicaReading | None, later: ReplicaReading, name: str) -> float | None:
    after: float | None = getattr(later, name)
    before: float | None = 0.0 if base is None else getattr(base, name)
    return None if after is None or before is None else after - before


def _histogram_since(
    base: ReplicaReading | None, later: ReplicaReading, name: str
) -> HistogramReading | None:
    after: HistogramReading | None = getattr(later, name)
    if after is None:
        return None
    if base is None:
        return after
    before: HistogramReading | None = getattr(base, name)
    return None if before is None else subtract(after, before)


def _held(reading: ReplicaReading) -> float | None:
    return None if reading.running is None or reading.waiting is None else reading.running + reading.waiting
