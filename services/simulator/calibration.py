"""Sweeps on a replica of its own: what a proposed calibration measures, without any user's request in it."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from random import Random

from schemas.base import Quality
from schemas.parameters import CalibrationPoint
from schemas.telemetry import Latency, ReplicaTelemetry, TelemetryObserved
from services.simulator.arrivals import Arrival, Curve, Lengths, Shape, generate
from services.simulator.replica import Engine, Request

WARM_UP_S = 60.0
POINT_S = 240.0
LONGEST = 1_000_000


def sweep_s(points: int) -> float:
    """How long a sweep of so many points takes."""
    return points * (WARM_UP_S + POINT_S)


def sweep(
    new_engine: Callable[[], Engine],
    model: str,
    accelerator: str,
    points: Sequence[CalibrationPoint],
    end_s: float,
    seed: str,
) -> TelemetryObserved:
    """One window with a replica for every point: Poisson arrivals of equal requests, after a warm-up.

    new_engine: an idle one for every point.
    end_s: when the sweep ends, in Unix seconds.
    """
    found = [
        _measured(new_engine(), f"point {number}", accelerator, point, Random(f"{seed}/{number}"))
        for number, point in enumerate(points, start=1)
    ]
    return TelemetryObserved(
        server=f"calibration of {model} on {accelerator}",
        model=model,
        window_start_s=end_s - POINT_S,
        window_end_s=end_s,
        epoch="calibration",
        quality=Quality.OK,
        replicas=tuple(found),
        calibration=True,
    )


def _measured(
    engine: Engine, name: str, accelerator: str, point: CalibrationPoint, rng: Random
) -> ReplicaTelemetry:
    inputs, outputs = (
        Lengths(max(1.0, mean), 1.0, LONGEST, Shape.FIXED)
        for mean in (point.input_tokens, point.output_tokens)
    )
    arrivals = generate(Curve([(0.0, point.rate_rps)]), 1.0, inputs, outputs, rng)
    ends_s = WARM_UP_S + POINT_S
    due = list(takewhile(lambda arrival: arrival.time_s < ends_s, arrivals))
    before = _advanced(engine, [arrival for arrival in due if arrival.time_s < WARM_UP_S], WARM_UP_S)
    after = _advanced(engine, [arrival for arrival in due if arrival.time_s >= WARM_UP_S], ends_s)
    finished, ttft, ttft_s, gaps, gaps_s = (late - early for late, early in zip(after, before, strict=True))
    return ReplicaTelemetry(
        replica=name,
        accelerator=accelerator,
        max_batch=engine.max_batch,
        offered_rate_rps=point.rate_rps,
        completed_rate_rps=finished / POINT_S,
        input_tokens=float(round(inputs.mean)),
        output_tokens=float(round(outputs.mean)),
        ttft=Latency(count=ttft, mean_s=ttft_s / ttft) if ttft else None,
        itl=Latency(count=gaps, mean_s=gaps_s / gaps) if gaps else None,
        running=float(engine.running),
        waiting=float(len(engine.waiting)),
    )


def _advanced(engine: Engine, arrivals: Sequence[Arrival], until_s: float) -> tuple[float, ...]:
    """The engine's counters after these arrivals, at a time."""
    for arrival in arrivals:
        engine.submit(Request(*arrival), arrival.time_s)
    engine.advance(until_s)
    return (engine.requests_total, engine.ttft.count, engine.ttft.sum, engine.itl.count, engine.itl.sum)
