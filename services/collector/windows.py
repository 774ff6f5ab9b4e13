"""From cumulative readings to windows: what happened on one server between two polls.

A window's rates are sums of the replicas' own rates, each over the interval between its own two samples,
since sources sample replicas at different moments. Its end is the newest sample's time, and for a window
in which nothing new was seen the time of the poll; ends only grow, so that a consumer can tell the newest.

A window in which the configuration changed carries the epoch of its end and is partial.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from schemas.base import Quality
from schemas.telemetry import OfferedFrom, TelemetryObserved
from services.collector.deltas import MOST_RPS, bounded, mean, telemetry
from services.collector.histograms import add, latency
from services.collector.population import Measured, ServerRecord, ServerView, measure, silent
from services.collector.settings import CollectorSettings
from services.collector.source import (
    GatewayReading,
    ReplicaReading,
    ReplicaStatus,
    ServerInventory,
)


@dataclass(frozen=True, slots=True)
class Window:
    """One window and what goes with it.

    `newest_s` is the newest sample's time, `silent` the replicas that should have reported but have not for
    longer than a sample may age, `skipped` the replicas that fit no contract.
    """

    record: ServerRecord
    observed: TelemetryObserved
    newest_s: float | None
    silent: tuple[str, ...]
    skipped: int


def difference(
    previous: ServerRecord | None, view: ServerView, now_s: float, settings: CollectorSettings
) -> Window:
    """The window of one server from its record and a new poll at control time `now_s`.

    `now_s` must lie after the record's last window. Readings that are not newer than the record are ignored,
    so nothing is counted twice; what a poll missed is in the difference of the next one that does not.
    """
    status = {one.name: one for one in view.inventory.replicas} if view.inventory else {}
    record = previous or ServerRecord(now_s - settings.cycle_s, now_s - settings.cycle_s)
    readings = {name: _complete(one, view.inventory, status, record) for name, one in view.replicas.items()}
    newer = {
        name: one
        for name, one in readings.items()
        if name not in record.replicas or one.sampled_at_s > record.replicas[name].sampled_at_s
    }
    gateway = view.gateway if _advanced(record.gateway, view.gateway) else None
    arrived = _gateway_rate(record.gateway, gateway)
    if previous is None:
        measured = Measured(record.recorded_to_s, (), (), frozenset(), 1.0)
    else:
        measured = measure(record, newer, view.inventory, status, now_s, settings, arrived is not None)

    newest_s = _newest_s(newer, gateway)
    has_figures = bool(measured.all) or arrived is not None
    recorded_to_s = record.recorded_to_s
    if has_figures or previous is None:
        recorded_to_s = now_s if newest_s is None else min(newest_s, now_s)
    end_s = recorded_to_s if has_figures and recorded_to_s > record.window_end_s else now_s
    replicas = _kept(record.replicas, status, now_s, settings) | newer
    epoch = _epoch(view.inventory, replicas, now_s, settings) or record.epoch
    changed = record.epoch is not None and epoch != record.epoch

    if not (view.replicas or view.gateway):
        quality = Quality.MISSING
    elif newest_s is None:
        quality = Quality.STALE
    elif not has_figures:
        quality = Quality.MISSING
    elif now_s - newest_s > settings.stale_after_s:
        quality = Quality.STALE
    elif measured.share < 1.0 or changed:
        quality = Quality.PARTIAL
    else:
        quality = Quality.OK
    parts = [telemetry(one) for one in measured.all]
    figures = _figures(measured, newer, gateway, arrived) if has_figures else {}
    observed = TelemetryObserved(
        server=view.server,
        model=view.model,
        window_start_s=max(0.0, measured.start_s if has_figures else record.window_end_s),
        window_end_s=end_s,
        epoch=epoch or "0",
        quality=quality,
        reporting_share=measured.share if has_figures else 0.0,
        replicas=tuple(part for part in parts if part is not None),
        **figures,
    )
    return Window(
        record=ServerRecord(recorded_to_s, end_s, epoch, replicas, gateway or record.gateway, observed),
        observed=observed,
        newest_s=_newest_s(readings, view.gateway),
        silent=silent(measured.expected, replicas, status, now_s, settings),
        skipped=parts.count(None),
    )


def _figures(
    measured: Measured,
    newer: Mapping[str, ReplicaReading],
    gateway: GatewayReading | None,
    arrived: float | None,
) -> dict[str, Any]:
    """A server's figures; each is absent where it could not be had."""
    completed = measured.rate(lambda one: one.completed)
    offered, offered_from = arrived, OfferedFrom.GATEWAY
    if arrived is None:
        offered, offered_from = measured.rate(lambda one: one.offered), OfferedFrom.COUNTERS
    if offered is None:
        offered, offered_from = completed, OfferedFrom.COMPLETIONS
    offered = bounded(offered, MOST_RPS)
    waiting = measured.gauge(newer, "waiting")
    if gateway is not None and gateway.waiting is not None:
        # Without engines nothing waits in them; with some it may not be known.
        within = waiting if measured.expected or newer else 0.0
        waiting = None if within is None else within + gateway.waiting
    # A replica that warms up is slow for reasons of its own; its load is real, its figures teach nothing.
    warm = [one for one in measured.all if not one.warming_up]
    return {
        "offered_rate_rps": offered,
        "offered_from": None if offered is None else offered_from,
        "completed_rate_rps": bounded(completed, MOST_RPS),
        "input_tokens": _mean((one.input_tokens, one.prompts) for one in warm),
        "output_tokens": _mean((one.output_tokens, one.completed) for one in warm),
        "ttft": latency(add([one.ttft for one in warm if one.ttft is not None])),
        "itl": latency(add([one.itl for one in warm if one.itl is not None])),
        "running": measured.gauge(newer, "running"),
        "waiting": waiting,
    }


def _newest_s(replicas: Mapping[str, ReplicaReading], gateway: GatewayReading | None) -> float | None:
    times = [one.sampled_at_s for one in replicas.values()] + ([gateway.sampled_at_s] if gateway else [])
    return max(times, default=None)


def _mean(totals: Iterable[tuple[float | None, float | None]]) -> float | None:
    known = [(tokens, requests) for tokens, requests in totals if tokens is not None and requests is not None]
    return mean(sum(tokens for tokens, _ in known), sum(requests for _, requests in known)) if known else None


def _advanced(earlier: GatewayReading | None, later: GatewayReading | None) -> bool:
    return later is not None and (earlier is None or later.sampled_at_s > earlier.sampled_at_s)


def _gateway_rate(earlier: GatewayReading | None, later: GatewayReading | None) -> float | None:
    """Requests per second that reached the gateway between two readings; a fallen counter began anew."""
    if earlier is None or later is None or earlier.requests is None or later.requests is None:
        return None
    fell = later.requests < earlier.requests
    arrived = later.requests if fell else later.requests - earlier.requests
    return arrived / (later.sampled_at_s - earlier.sampled_at_s)


def _complete(
    reading: ReplicaReading,
    inventory: ServerInventory | None,
    status: Mapping[str, ReplicaStatus],
    record: ServerRecord,
) -> ReplicaReading:
    """The reading with its accelerator and batch limit, from the inventory or else from what was known."""
    known, before = status.get(reading.replica), record.replicas.get(reading.replica)
    accelerator = (
        reading.accelerator or (known and known.accelerator) or (before and before.accelerator) or None
    )
    limits = {v.accelerator: v.max_batch for v in inventory.variants} if inventory else {}
    limit = reading.max_batch or limits.get(accelerator or "") or (before and before.max_batch) or None
    return replace(reading, accelerator=accelerator, max_batch=limit)


def _kept(
    replicas: Mapping[str, ReplicaReading],
    status: Mapping[str, ReplicaStatus],
    now_s: float,
    settings: CollectorSettings,
) -> dict[str, ReplicaReading]:
    return {
        name: one
        for name, one in replicas.items()
        if (not status or name in status) and now_s - one.sampled_at_s <= settings.forget_after_s
    }


def _epoch(
    inventory: ServerInventory | None,
    replicas: Mapping[str, ReplicaReading],
    now_s: float,
    settings: CollectorSettings,
) -> str | None:
    """Digest of the accelerators and batch limits in service; None when nothing is."""
    if inventory is not None:
        pairs = {(v.accelerator, v.max_batch) for v in inventory.variants if v.ready}
    else:
        pairs = {
            (one.accelerator or "", one.max_batch)
            for one in replicas.values()
            if now_s - one.sampled_at_s <= settings.stale_after_s
        }
    if not pairs:
        return None
    return sha256(json.dumps(sorted(pairs, key=str)).encode()).hexdigest()[:12]
