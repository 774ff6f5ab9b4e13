"""From telemetry to observations: one replica over one window, if it says something about its engine."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.base import Quality
from schemas.fleet import ModelProfile
from schemas.telemetry import Latency, ReplicaTelemetry, TelemetryObserved
from services.tuner.settings import ObservationSettings


class Excluded(StrEnum):
    """Why a replica's window, or a whole window, teaches nothing."""

    WARMING_UP = "warming_up"
    QUALITY = "quality"
    EPOCH_CHANGED = "epoch_changed"
    TOO_FEW_REQUESTS = "too_few_requests"
    INCOMPLETE = "incomplete"
    NOT_POSITIVE = "not_positive"
    UNDECLARED = "undeclared"
    TRANSIENT = "transient"


@dataclass(frozen=True)
class Observation:
    """One replica over one window.

    rate_rps: requests offered per second; where that is unknown, requests completed.
    input_tokens, output_tokens: means of its requests.
    ttft_s: mean time to first token; None where requests waited, which no steady state explains: the queue says so,
        or, where it is unknown, that by Little's law there were more requests than places.
    itl_s: mean inter-token latency.
    requests: how many requests both means rest on.
    saturated: whether the batch was full, so that the rate does not determine it.
    decoding: mean requests that decode.
    decoding_measured: whether that is exact, the sum of all gaps over the window or the batch limit; else it is from
        Little's law on the requests, or, where the batch was full, the requests in it at the end.
    served_rps: requests per second that passed through the engine: completed ones where it was full, else those
        offered, of which none is missing at the edges of the window.
    """

    server: str
    replica: str
    window_end_s: float
    epoch: str
    rate_rps: float
    input_tokens: float
    output_tokens: float
    ttft_s: float | None
    itl_s: float
    requests: float
    saturated: bool
    decoding: float
    decoding_measured: bool
    served_rps: float
    max_batch: int
    token_budget: int


def observations(
    telemetry: TelemetryObserved,
    profiles: Mapping[str, ModelProfile],
    settings: ObservationSettings,
    previous_epoch: str | None = None,
) -> tuple[tuple[tuple[str, Observation], ...], Counter[Excluded]]:
    """The observations of a window, each with its accelerator, and how many were left out for which reason.

    profiles: declared profiles of the model by accelerator; a replica on any other is left out.
    previous_epoch: epoch of the server's window before; where it differs, this window may hold some of both.
    """
    excluded: Counter[Excluded] = Counter()
    if telemetry.quality is not Quality.OK and telemetry.quality is not Quality.PARTIAL:
        excluded[Excluded.QUALITY] += max(1, len(telemetry.replicas))
        return (), excluded
    if previous_epoch is not None and previous_epoch != telemetry.epoch:
        excluded[Excluded.EPOCH_CHANGED] += max(1, len(telemetry.replicas))
        return (), excluded
    found: list[tuple[str, Observation]] = []
    for replica in telemetry.replicas:
        profile = profiles.get(replica.accelerator)
        seen = Excluded.UNDECLARED if profile is None else _observation(telemetry, replica, profile, settings)
        if isinstance(seen, Observation):
            found.append((replica.accelerator, seen))
        else:
            excluded[seen] += 1
    return tuple(found), excluded


def _observation(
    telemetry: TelemetryObserved,
    replica: ReplicaTelemetry,
    profile: ModelProfile,
    settings: ObservationSettings,
) -> Observation | Excluded:
    if replica.warming_up:
        return Excluded.WARMING_UP
    if replica.quality is not Quality.OK:
        return Excluded.QUALITY
    offered, completed = replica.offered_rate_rps, replica.completed_rate_rps
    rate = offered if offered is not None else completed
    input_tokens = replica.input_tokens if replica.input_tokens is not None else telemetry.input_tokens
    output_tokens = replica.output_tokens if replica.output_tokens is not None else telemetry.output_tokens
    itl, ttft = replica.itl, replica.ttft
    if rate is None or input_tokens is None or output_tokens is None or itl is None:
        return Excluded.INCOMPLETE
    requests = _requests(telemetry, itl, ttft, completed)
    if requests < settings.min_requests:
        return Excluded.TOO_FEW_REQUESTS
    if rate <= 0 or itl.mean_s <= 0 or output_tokens < 1 or (ttft is not None and ttft.mean_s <= 0):
        return Excluded.NOT_POSITIVE
    max_batch = replica.max_batch if replica.max_batch is not None else profile.max_batch
    waiting = _waiting(telemetry, replica)
    saturated = _saturated(telemetry, replica, waiting, max_batch, settings)
    queued = saturated or (
        waiting >= 1.0
        if waiting is not None
        else ttft is not None and rate * (ttft.mean_s + output_tokens * itl.mean_s) >= max_batch
    )
    served = completed if saturated and completed is not None else rate
    measured = _mean_decoding(telemetry, itl, requests, output_tokens)
    if measured is not None:
        decoding = measured
    elif saturated and replica.running is not None:
        decoding = replica.running
    else:
        decoding = served * output_tokens * itl.mean_s
    if replica.running is not None and _moved(min(decoding, float(max_batch)), replica.running):
        return Excluded.TRANSIENT
    return Observation(
        server=telemetry.server,
        replica=replica.replica,
        window_end_s=telemetry.window_end_s,
        epoch=telemetry.epoch,
        rate_rps=rate,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        ttft_s=None if ttft is None or queued else ttft.mean_s,
        itl_s=itl.mean_s,
        requests=requests,
        saturated=saturated,
        decoding=min(decoding, float(max_batch)),
        decoding_measured=measured is not None or decoding >= max_batch,
        served_rps=served,
        max_batch=max_batch,
        token_budget=profile.token_budget,
    )


def _requests(
    telemetry: TelemetryObserved, itl: Latency, ttft: Latency | None, completed: float | None
) -> float:
    """Requests behind the means: ITL may be counted by token, and tokens of one request are no new evidence."""
    counts = [itl.count]
    if ttft is not None:
        counts.append(ttft.count)
    if completed is not None:
        counts.append(completed * (telemetry.window_end_s - telemetry.window_start_s))
    return min(counts)


def _mean_decoding(
    telemetry: TelemetryObserved, itl: Latency, requests: float, output_tokens: float
) -> float | None:
    """The sum of the gaps over the window, where they are counted by token and not by request."""
    if output_tokens < 2.0 or itl.count < 0.5 * requests * (output_tokens - 1.0):
        return None
    return itl.count * itl.mean_s / (telemetry.window_end_s - telemetry.window_start_s)


def _moved(mean: float, at_the_end: float) -> bool:
    """Whether a window ended at another load than it had: beyond three deviations of a Poisson count, and twofold."""
    low, high = sorted((mean, at_the_end))
    return high - low > 3.0 * math.sqrt(max(mean, 1.0)) and high + 1.0 > 2.0 * (low + 1.0)


def _waiting(telemetry: TelemetryObserved, replica: ReplicaTelemetry) -> float | None:
    if replica.waiting is not None or telemetry.waiting is None:
        return replica.waiting
    return telemetry.waiting / len(telemetry.replicas)


def _saturated(
    telemetry: TelemetryObserved,
    replica: ReplicaTelemetry,
    waiting: float | None,
    max_batch: int,
    settings: ObservationSettings,
) -> bool:
    if waiting is not None:
        return waiting >= max(1.0, settings.waiting_share * max_batch)
    offered, completed = replica.offered_rate_rps, replica.completed_rate_rps
    if offered is None or completed is None:
        return False
    arrivals = offered * (telemetry.window_end_s - telemetry.window_start_s)
    excess = arrivals * (1.0 - completed / offered) if offered > 0 else 0.0
    return excess > max(settings.excess_share * arrivals, 3.0 * math.sqrt(arrivals))
