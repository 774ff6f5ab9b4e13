"""CloudEvents 1.0 in binary mode over NATS headers, and the messages that services hand to each other.

A control cycle is one trace: its correlation id gives the trace id of ``traceparent``. Identifiers are
deterministic: the same fact published twice has the same id, so that a retry is a duplicate and not a second
fact.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.base import Contract, unit_stem
from schemas.topics import MAX_MESSAGE_BYTES, TOPIC_BY_PAYLOAD, Topic, topic_of_subject
from services.runtime.errors import Reject, TooLarge

SPEC_VERSION = "1.0"
_HEADER_BYTES_MAX = 8 * 1024


@dataclass(frozen=True)
class Emit:
    """A fact to publish.

    `identity` names the fact among all of its subject where its content does not (empty: the content does);
    `correlation_id` is the control cycle, `causation_id` the message that led to it.
    """

    payload: Contract
    identity: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    expires_at_s: float | None = None
    expected_last_sequence: int | None = None


@dataclass(frozen=True)
class Raw:
    """A message as the bus delivers it."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    stream: str = ""
    sequence: int = 0
    deliveries: int = 1
    token: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Event:
    """A validated message; `as_of_s` is the moment that it speaks of, `time_s` when it was published."""

    topic: Topic
    subject: str
    payload: Contract
    id: str
    source: str
    time_s: float
    as_of_s: float
    correlation_id: str = ""
    expires_at_s: float | None = None
    sequence: int = 0


@dataclass(frozen=True)
class Wire:
    """A message ready to be sent."""

    subject: str
    data: bytes
    headers: dict[str, str]
    id: str
    stream: str


def encode(emit: Emit, source: str, now_s: float, instance: str = "") -> Wire:
    """Write a fact as subject, body and headers.

    Parameters: source, the publishing service; now_s, Unix seconds; instance, which copy of the service.
    Raises TooLarge above 900 KiB.
    """
    topic = TOPIC_BY_PAYLOAD[type(emit.payload)]
    subject = topic.subject(emit.payload)
    data = emit.payload.model_dump_json(exclude_none=True).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLarge(f"{subject} has {len(data)} bytes: at most {MAX_MESSAGE_BYTES} are carried")
    identity = emit.identity.encode() or data
    message_id = hashlib.blake2b(subject.encode() + b"\0" + identity, digest_size=16).hexdigest()
    headers = {
        "ce-specversion": SPEC_VERSION,
        "ce-id": message_id,
        "ce-source": f"/stoker/{quote(source, safe='')}",
        "ce-type": topic.prefix,
        "ce-time": rfc3339(now_s),
        "content-type": "application/json",
        "Nats-Msg-Id": message_id,
    }
    if instance:
        headers["ce-instance"] = quote(instance, safe="/:-_.")
    if emit.correlation_id:
        headers["ce-correlationid"] = quote(emit.correlation_id, safe="/:-_.")
        trace = hashlib.blake2b(emit.correlation_id.encode(), digest_size=16).hexdigest()
        headers["ce-traceparent"] = f"00-{trace}-{message_id[:16]}-01"
    if emit.causation_id:
        headers["ce-causationid"] = quote(emit.causation_id, safe="/:-_.")
    if emit.expires_at_s is not None:
        headers["ce-expirytime"] = rfc3339(emit.expires_at_s)
    if emit.expected_last_sequence is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(emit.expected_last_sequence)
    return Wire(subject, data, headers, message_id, topic.stream)


def decode(raw: Raw) -> Event:
    """Validate a message whole: subject, attributes, body, and that the subject is the body's own.

    Raises Reject with a reason that names what is wrong.
    """
    topic = topic_of_subject(raw.subject)
    if topic is None:
        raise Reject(f"subject {raw.subject!r} belongs to no topic")
    if len(raw.data) > MAX_MESSAGE_BYTES:
        raise Reject(f"body of {len(raw.data)} bytes: at most {MAX_MESSAGE_BYTES} are read")
    headers = {name.lower(): value for name, value in raw.headers.items()}
    if sum(len(k) + len(v) for k, v in headers.items()) > _HEADER_BYTES_MAX:
        raise Reject(f"headers above {_HEADER_BYTES_MAX} bytes")
    if headers.get("ce-specversion") != SPEC_VERSION:
        raise Reject(f"ce-specversion is {headers.get('ce-specversion')!r}: expected {SPEC_VERSION!r}")
    if headers.get("ce-type") != topic.prefix:
        raise Reject(f"ce-type is {headers.get('ce-type')!r}: expected {topic.prefix!r}")
    for required in ("ce-id", "ce-source", "ce-time"):
        if not headers.get(required):
            raise Reject(f"{required} is missing")
    try:
        payload = topic.payload.model_validate_json(raw.data)
    except ValidationError as error:
        raise Reject(f"body is not a {topic.payload.__name__}: {problems(error)}") from None
    except ValueError as error:
        raise Reject(f"body is not a {topic.payload.__name__}: {error}") from None
    own = topic.subject(payload)
    if own != raw.subject:
        raise Reject(f"subject is {raw.subject!r}, but the body belongs to {own!r}")
    expiry = headers.get("ce-expirytime")
    return Event(
        topic=topic,
        subject=raw.subject,
        payload=payload,
        id=headers["ce-id"],
        source=unquote(headers["ce-source"]),
        time_s=_unix(headers["ce-time"], "ce-time"),
        as_of_s=topic.as_of_s(payload),
        correlation_id=unquote(headers.get("ce-correlationid", "")),
        expires_at_s=_earlier(
            _unix(expiry, "ce-expirytime") if expiry else None, vars(payload).get("expires_at_s")
        ),
        sequence=raw.sequence,
    )


def problems(error: ValidationError, most: int = 3) -> str:
    """What a validation found, in one line: where, what was expected, what was there."""
    details = error.errors(include_url=False, include_context=False)
    found = [
        f"{'.'.join(str(part)[:80] for part in e['loc']) or 'whole'}: {_expected(e)[:1000]}, "
        f"got {_short(e.get('input'))}"
        for e in details[:most]
    ]
    more = f"; and {len(details) - most} more" if len(details) > most else ""
    return "; ".join(found) + more


def _expected(detail: ErrorDetails) -> str:
    """What one error says; of a field that is missing, whether it is there in another unit."""
    given, name = detail["input"], str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] == "missing" and isinstance(given, Mapping):
        for other in given:
            if isinstance(other, str) and unit_stem(other) == unit_stem(name):
                return f"field {other!r} is in another unit: {name!r} is expected"
    return detail["msg"]


def rfc3339(unix_s: float) -> str:
    """Unix seconds as RFC 3339 in UTC, in microseconds."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _unix(text: str, header: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise Reject(f"{header} is {text[:100]!r}: expected an RFC 3339 time with a zone") from None


def _earlier(one: float | None, other: float | None) -> float | None:
    """The attribute may be left out or altered on the way; the body's own expiry holds all the same."""
    return min((moment for moment in (one, other) if moment is not None), default=None)


def _short(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return repr(text[:80])
