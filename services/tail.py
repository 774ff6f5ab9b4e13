"""Messages of the bus for those who look on: what is kept since a time, then what is published, each as a line."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from schemas.actuation import ActuationApplied, ActuationFailed
from schemas.alert import AlertRaised
from schemas.base import Contract
from schemas.decision import DecisionMade
from schemas.topics import ROOT, TOPICS, Stream, topic_of_subject
from services.live import allocated
from services.runtime.bus import Bus
from services.runtime.envelope import Raw

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def start_of(text: str, now: datetime) -> datetime:
    """A moment from words: an age such as 15m, or an ISO time, in UTC where it names no zone; raises ValueError."""
    if match := _AGO.fullmatch(text.strip()):
        return now - timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"--from is {text!r}: expected an age such as 90s, 15m, 2h, 1d, or an ISO time"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def filters_of(subject: str) -> dict[Stream, list[str]]:
    """For each stream the subjects kept in it that a wildcard reaches; raises ValueError where there are none."""
    found: dict[Stream, list[str]] = {}
    for stream, kept in [*((t.stream, t.filter) for t in TOPICS), (Stream.DLQ, f"{ROOT}.dlq.*.*")]:
        common = _common(subject.split("."), kept.split("."))
        if common is not None and ".".join(common) not in found.get(stream, []):
            found.setdefault(stream, []).append(".".join(common))
    if not found:
        raise ValueError(f"{subject!r} reaches nothing that is kept: expected a subject under {ROOT}")
    return found


def _common(one: Sequence[str], other: Sequence[str]) -> list[str] | None:
    """The tokens of the subject that matches what both match; None where nothing does."""
    tokens: list[str] = []
    for k, token in enumerate(other):
        if k < len(one) and one[k] == ">":
            return [*tokens, *other[k:]]
        if k >= len(one) or not (one[k] == token or "*" in (one[k], token)):
            return None
        tokens.append(token if one[k] == "*" else one[k])
    return tokens if len(one) == len(other) else None


async def messages(
    bus: Bus, subject: str, filters: Mapping[Stream, Sequence[str]], start: datetime | None, follow: bool
) -> AsyncGenerator[Raw, None]:
    """What is kept since `start`, in the order in which it was published, then what comes; none twice.

    Parameters: filters, the kept subjects by stream, as `filters_of` gives them; empty without a start.
    To be closed before the bus by whoever stops listening.
    """
    live = bus.listen(subject)
    # Subscribed before the past is read, on the same connection, so that nothing falls in between.
    coming: asyncio.Future[Raw] | None = asyncio.ensure_future(anext(live)) if follow else None
    await asyncio.sleep(0)
    shown: set[tuple[str, str]] = set()
    try:
        if start is not None:
            past = [
                raw for stream, kept in filters.items() for raw in await bus.since(stream.value, kept, start)
            ]
            for raw in sorted(past, key=lambda one: _header(one, "ce-time")):
                shown.add((raw.subject, _header(raw, "ce-id")))
                yield raw
        while coming is not None:
            raw = await coming
            coming = asyncio.ensure_future(anext(live))
            if (raw.subject, _header(raw, "ce-id")) not in shown:
                yield raw
    finally:
        if coming is not None:
            # One is always waited for, whether it is wanted or not.
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


def is_about(raw: Raw, server: str) -> bool:
    """Whether a message is about one server: its own facts, and alerts that concern it."""
    try:
        data: Any = json.loads(raw.data)
    except ValueError:
        return False
    return isinstance(data, dict) and server in (data.get("server"), data.get("subject"))


def text_of(raw: Raw) -> str:
    """One message as a line for people: when, what, whom, and what it says where it is part of the audit trail."""
    topic = topic_of_subject(raw.subject)
    when = _header(raw, "ce-time")[:19].replace("T", " ") or "-"
    try:
        payload = topic.payload.model_validate_json(raw.data) if topic else None
    except ValidationError:
        payload = None
    if topic is None or payload is None:
        return f"{when}  {raw.subject}  {len(raw.data)} bytes"
    keys = " ".join(str(getattr(payload, key)) for key in topic.keys if key != "partition")
    return "  ".join(part for part in (when, topic.name, keys, _says(payload)) if part)


def _says(payload: Contract) -> str:
    match payload:
        case DecisionMade():
            change = f"{allocated(payload.current)} → {allocated(payload.gated)}"
            return f"{payload.verdict.value} by {payload.rule}: {change}; {' '.join(payload.reason.split())}"
        case ActuationApplied():
            return f"{payload.target}: {'changed' if payload.changed else 'as it was'}"
        case ActuationFailed():
            return f"{payload.target}: {payload.reason.value}: {' '.join(payload.message.split())}"
        case AlertRaised():
            return f"{payload.subject}: {'over: ' if payload.resolved else ''}{' '.join(payload.message.split())}"
    return ""


def _header(raw: Raw, name: str) -> str:
    return next((value for key, value in raw.headers.items() if key.lower() == name), "")
