"""What a stranger may send: malformed and hostile messages made from the golden examples with a fixed seed."""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from schemas.base import UNITS, Contract, unit_stem
from schemas.topics import MAX_MESSAGE_BYTES, TOPICS, Topic
from services.runtime.envelope import Raw, rfc3339

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
SENSITIVE = ("fleet.declared", "plan.proposed", "plan.issued")
"""Topics of which a valid forgery would be an order: only permissions of the bus can refuse it."""
MEASURED = (
    "telemetry.observed",
    "inventory.observed",
    "capacity.observed",
    "parameters.estimated",
    "forecast.issued",
)
DAY_S = 86_400.0
MOMENTS = ("_at_s", "_start_s", "_end_s", "since_s", "until_s")
NOT_A_BODY = r"body is not a \w+: "
UNREADABLE = NOT_A_BODY + "whole: Invalid JSON"
CONTENT = f"{NOT_A_BODY}|but the body belongs to|ahead of the clock"


@dataclass(frozen=True)
class Shot:
    """One hostile message.

    reason: what the reason of its refusal must match; empty when the contracts accept it. block: the bytes to
    send for headers, where the library would not write them. stored: whether the server should keep it.
    """

    category: str
    subject: bytes
    data: bytes
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    block: bytes | None = None
    stored: bool = True


class Forge:
    """Makes shots; the same seed, time and captured messages make the same.

    Parameters: now_s, control time, Unix seconds; captured, messages of the running loop to replay and age.
    """

    def __init__(self, seed: int, now_s: float, captured: Sequence[Raw]) -> None:
        self.rng = random.Random(seed)
        self.now_s = now_s
        self._captured = captured
        self._made = 0
        self._golden = {
            topic.name: [
                json.loads(path.read_text()) for path in sorted(EXAMPLES.glob(f"{topic.name}/v1/*.json"))
            ]
            for topic in TOPICS
        }

    def shots(self, count: int) -> Iterator[Shot]:
        """So many shots, category by category, topic by topic in turn."""
        makers = self._makers()
        turn = 0
        while self._made < count:
            make, topic = makers[turn % len(makers)], TOPICS[turn // len(makers) % len(TOPICS)]
            turn += 1
            if (shot := make(topic)) is not None:
                self._made += 1
                yield shot

    def _makers(self) -> list[Callable[[Topic], Shot | None]]:
        return [
            self.truncated,
            self.wrong_type,
            self.missing_field,
            self.wrong_unit,
            self.not_finite,
            self.huge_number,
            self.duplicate_key,
            self.deep_nesting,
            self.not_utf8,
            self.lone_surrogate,
            self.empty,
            self.header_missing,
            self.header_wrong,
            self.header_oversized,
            self.wrong_subject,
            self.future,
            self.past,
            self.stranger,
            self.expired,
            partial(self.replay, "same Nats-Msg-Id"),
            partial(self.replay, "no Nats-Msg-Id"),
            partial(self.replay, "other Nats-Msg-Id"),
            self.server_header,
            self.unknown_subject,
        ]

    # What a good message looks like, of servers that nobody declared.

    def body(self, topic: Topic) -> dict[str, Any]:
        """A golden example of a topic as if it had been made just now."""
        golden = self.rng.choice(self._golden[topic.name])
        body = _moved(golden, self.now_s - self.rng.uniform(1, 100) - golden[topic.as_of])
        for key in ("server", "model", "type"):
            if key in topic.keys or (key == "model" and "partition" in topic.keys):
                body[key] = f"hostile/{self.rng.randrange(200)}"
        return body

    def headers(self, topic: Topic) -> dict[str, str]:
        """Attributes in order."""
        return {
            "ce-specversion": "1.0",
            "ce-id": f"hostile-{self._made}-{self.rng.getrandbits(32):x}",
            "ce-source": "/stoker/stranger",
            "ce-type": topic.prefix,
            "ce-time": rfc3339(self.now_s),
        }

    def _shot(self, category: str, topic: Topic, body: dict[str, Any], data: bytes, reason: str) -> Shot:
        return Shot(category, subject_of(topic, body), data, self.headers(topic), reason)

    def _judged(self, category: str, topic: Topic, body: dict[str, Any], data: bytes) -> Shot | None:
        """A shot whose body only the contract can judge; none where it would be a valid order."""
        subject = subject_of(topic, body)
        try:
            accepted = topic.subject(topic.payload.model_validate_json(data)).encode() == subject
        except ValueError:
            accepted = False
        if accepted and topic.name in SENSITIVE:
            return None
        return Shot(category, subject, data, self.headers(topic), "" if accepted else CONTENT)

    # Bodies.

    def truncated(self, topic: Topic) -> Shot:
        text = _text(body := self.body(topic))
        return self._shot("truncated", topic, body, text[: self.rng.randrange(1, len(text))], UNREADABLE)

    def wrong_type(self, topic: Topic) -> Shot:
        broken = _copy(body := self.body(topic))
        holder, key = self.rng.choice(list(_places(broken)))
        holder[key] = [{"x": None}] if isinstance(holder[key], (int, float, str)) else 12_345
        return self._shot("wrong type", topic, body, _text(broken), NOT_A_BODY)

    def missing_field(self, topic: Topic) -> Shot:
        broken = _copy(body := self.body(topic))
        contracts = list(_contracts(topic.payload.model_validate(body), broken))
        part, held = self.rng.choice(contracts)
        required = [n for n in held if type(part).model_fields[n].is_required()]
        if not required:
            part, held = contracts[0]
            required = [n for n in held if type(part).model_fields[n].is_required()]
        lost = self.rng.choice(required)
        del held[lost]
        return self._shot(
            "missing field", topic, body, _text(broken), f"{NOT_A_BODY}.*{lost}: Field required"
        )

    def wrong_unit(self, topic: Topic) -> Shot | None:
        broken = _copy(body := self.body(topic))
        found = [
            (part, held, name)
            for part, held in _contracts(topic.payload.model_validate(body), broken)
            for name in held
            if unit_stem(name) != name
        ]
        part, held, name = self.rng.choice(found)
        other = unit_stem(name) + self.rng.choice(UNITS)
        if other in type(part).model_fields:
            return None
        held[other] = held[name] if self.rng.random() < 0.5 else held.pop(name)
        return self._shot("wrong unit", topic, body, _text(broken), f"{other}.*another unit: '{name}'")

    def not_finite(self, topic: Topic) -> Shot:
        literal = self.rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "-1e999"))
        body, data = self._with_number(topic, literal)
        return self._shot("NaN or infinity", topic, body, data, NOT_A_BODY)

    def huge_number(self, topic: Topic) -> Shot | None:
        literal = self.rng.choice(("1e308", "-1e308", "9" * 400, "1" + "0" * 5000, "-9223372036854775809"))
        return self._judged("huge number", topic, *self._with_number(topic, literal))

    def _with_number(self, topic: Topic, literal: str) -> tuple[dict[str, Any], bytes]:
        """A good body, and its text with a literal in the place of one of its numbers."""
        broken = _copy(body := self.body(topic))
        holder, key = self.rng.choice([(h, k) for h, k in _places(broken) if type(h[k]) in (int, float)])
        holder[key] = "PLACE"
        return body, _text(broken).replace(b'"PLACE"', literal.encode())

    def duplicate_key(self, topic: Topic) -> Shot | None:
        body = self.body(topic)
        name = self.rng.choice(list(body))
        again = json.dumps({name: self.rng.choice((body[name], None, [], "x", -1, {"x": 1}))})[1:-1].encode()
        text = _text(body)
        first = self.rng.random() < 0.5
        data = b"{" + again + b", " + text[1:] if first else text[:-1] + b", " + again + b"}"
        return self._judged("duplicate key", topic, body, data)

    def deep_nesting(self, topic: Topic) -> Shot:
        body, depth = self.body(topic), self.rng.choice((2_000, 20_000, 100_000))
        opening, closing = self.rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        nested = opening * depth + b"1" + closing * depth
        data = nested if self.rng.random() < 0.5 else _text(body)[:-1] + b', "note": ' + nested + b"}"
        return self._shot("deep nesting", topic, body, data, UNREADABLE)

    def not_utf8(self, topic: Topic) -> Shot:
        body = self.body(topic)
        odd = self.rng.choice((b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"))
        data = _text(body | {"note": "PLACE"}).replace(b"PLACE", odd)
        return self._shot("not UTF-8", topic, body, data, UNREADABLE)

    def lone_surrogate(self, topic: Topic) -> Shot | None:
        broken = _copy(body := self.body(topic))
        texts = [(h, k) for h, k in _places(broken) if isinstance(h[k], str)]
        holder, key = self.rng.choice(texts or [(broken, "note")])
        holder[key] = "\ud800" + self.rng.choice(("", "\x00", "\u202e", "x" * 300))
        return self._judged("lone surrogate", topic, body, _text(broken))

    def empty(self, topic: Topic) -> Shot:
        data = self.rng.choice(
            (b"", b" ", b"null", b"[]", b"{}", b'""', b"0", b"true", b"\x00" * 64, b"[{}]")
        )
        return self._shot("empty", topic, self.body(topic), data, NOT_A_BODY)

    def large(self, number: int) -> Shot:
        """Bodies around 900 KiB: valid, cut off, above the limit."""
        topic = next(t for t in TOPICS if t.name == MEASURED[number % 2])
        body = self.body(topic)
        text = _text(body | {"note": "x" * (MAX_MESSAGE_BYTES - 2_000)})
        data, reason = (
            (text, ""),
            (text[:-1], UNREADABLE),
            (text + b" " * 20_000, f"at most {MAX_MESSAGE_BYTES} are read"),
        )[number // 2 % 3]
        return self._shot("large", topic, body, data, reason)

    # Attributes, subjects, times.

    def header_missing(self, topic: Topic) -> Shot:
        shot = self._shot("header missing", topic, body := self.body(topic), _text(body), "")
        lost = self.rng.choice((*shot.headers, "all"))
        kept = {} if lost == "all" else {n: v for n, v in shot.headers.items() if n != lost}
        reason = (
            r"is None: expected" if lost in ("ce-specversion", "ce-type", "all") else f"{lost} is missing"
        )
        return Shot(shot.category, shot.subject, shot.data, kept, reason)

    def header_wrong(self, topic: Topic) -> Shot:
        shot = self._shot("header wrong", topic, body := self.body(topic), _text(body), "")
        name, value = self.rng.choice(
            (
                ("ce-specversion", "0.3"),
                ("ce-specversion", "1.0\t1.0"),
                ("ce-type", self.rng.choice([t for t in TOPICS if t is not topic]).prefix),
                ("ce-type", "постой"),
                ("ce-time", "yesterday"),
                ("ce-time", "2026-01-01T00:00:00"),
                ("ce-time", "275760-09-13T00:00:00Z"),
                ("ce-time", "-1"),
                ("ce-time", "NaN"),
                ("ce-expirytime", "never"),
                ("ce-expirytime", "1e308"),
            )
        )
        return Shot(shot.category, shot.subject, shot.data, shot.headers | {name: value}, f"{name} is '")

    def header_oversized(self, topic: Topic) -> Shot:
        shot = self._shot("header oversized", topic, body := self.body(topic), _text(body), "")
        name = self.rng.choice(("ce-id", "ce-source", "ce-correlationid", "x-" + "y" * 60))
        headers = shot.headers | {name: "z" * self.rng.choice((9_000, 60_000))}
        return Shot(shot.category, shot.subject, shot.data, headers, "headers above 8192 bytes")

    def wrong_subject(self, topic: Topic) -> Shot:
        body = self.body(topic)
        tokens = subject_of(topic, body).split(b".")
        if not topic.keys:
            other = self.rng.choice([t for t in TOPICS if t is not topic])
            return self._shot("wrong subject", topic, body, _text(self.body(other)), NOT_A_BODY)
        at = -1 if self.rng.random() < 0.5 else -len(topic.keys)
        tokens[at] = self.rng.choice((b"99", b"other", b"=20", b"=ZZ", b"a" * 1000, "ü".encode(), b"$JS"))
        reason = "but the body belongs to"
        return Shot("wrong subject", b".".join(tokens), _text(body), self.headers(topic), reason)

    def future(self, topic: Topic) -> Shot:
        ahead_s = self.rng.choice((DAY_S, 365 * DAY_S, 9e10, 1e12, 1e300))
        body = self.body(topic)
        late = _moved(body, ahead_s)
        return self._shot("far future", topic, body, _text(late), f"{NOT_A_BODY}|ahead of the clock")

    def past(self, _: Topic) -> Shot | None:
        """A measurement of a real server that says the worst, of long ago: valid, and of no consequence."""
        found = [raw for raw in self._captured if _topic(raw).name in MEASURED]
        raw = self.rng.choice(found)
        topic = _topic(raw)
        body = _moved(json.loads(raw.data), -self.rng.choice((DAY_S, 365 * DAY_S)))
        body |= {"variants": []} if "variants" in body else {}
        body |= {"offered_rate_rps": 0.0} if "offered_rate_rps" in body else {}
        if "types" in body:
            body["types"] = [t | {"total": 0, "free": 0} for t in body["types"]]
        if "rate" in body:
            body["rate"] = [{"quantile": 0.5, "rate_rps": 0.0}]
        if "values" in body:
            body["values"] = dict.fromkeys(body["values"], 1e6)
        return self._shot("far past", topic, body, _text(body), "")

    def stranger(self, topic: Topic) -> Shot | None:
        """A valid message of a server or model that nobody declared."""
        if topic.name not in ("telemetry.observed", "inventory.observed", "parameters.estimated"):
            return None
        body = self.body(topic)
        return self._shot("undeclared server", topic, body, _text(body), "")

    def expired(self, topic: Topic) -> Shot | None:
        if topic.name not in MEASURED:
            return None
        shot = self._shot("expired", topic, body := self.body(topic), _text(body), "")
        headers = shot.headers | {"ce-expirytime": rfc3339(self.now_s - DAY_S)}
        return Shot(shot.category, shot.subject, shot.data, headers)

    def replay(self, how: str, _: Topic) -> Shot:
        raw = self.rng.choice(self._captured)
        headers = {
            n: v for n, v in raw.headers.items() if how.startswith("same") or not n.startswith("Nats-")
        }
        if how.startswith("other"):
            headers["Nats-Msg-Id"] = f"hostile-{self._made}"
        stored = not how.startswith("same")
        return Shot(f"replay, {how}", raw.subject.encode(), raw.data, headers, stored=stored)

    def server_header(self, topic: Topic) -> Shot:
        """Headers that speak to the server, which refuses them, or pretend to come from it."""
        shot = self._shot("server header", topic, body := self.body(topic), _text(body)[:-1], UNREADABLE)
        name, value, stored = self.rng.choice(
            (
                ("Nats-Rollup", "all", False),
                ("Nats-Expected-Stream", "OTHER", False),
                ("Nats-Expected-Last-Sequence", "1", False),
                ("Nats-TTL", "1s", False),
                ("Status", "404", True),
                ("Status", "100", True),
                ("KV-Operation", "PURGE", True),
                ("Nats-Sequence", "1", True),
            )
        )
        return Shot(
            shot.category, shot.subject, shot.data, shot.headers | {name: value}, shot.reason, stored=stored
        )

    def unknown_subject(self, topic: Topic) -> Shot:
        body = self.body(topic)
        subject = self.rng.choice(
            (
                subject_of(topic, body) + b".more",
                b"stoker.v1.telemetry",
                b"stoker.v2." + topic.name.encode(),
                b"stoker.v1.nothing.known",
                b"stoker.v1.svc.tuner.explode",
                b"stoker.v1.svc",
            )
        )
        return Shot("unknown subject", subject, _text(body), self.headers(topic), stored=False)

    def broken_frame(self, number: int) -> Shot:
        """What only a client that speaks the protocol itself can send."""
        topic = next(t for t in TOPICS if t.name == MEASURED[number % 2])
        body = self.body(topic)
        subject, data = subject_of(topic, body), _text(body)
        tail, block = (
            (b"\xff\xfe", None),
            (b"a\x0bb", None),
            (b"a\x0cb", b"NATS/1.0\r\nce-id: 1\r\n\r\n"),
            (b"", b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
            (b"", b"NATS/1.0 503 \xff\xff\r\n\r\n"),
            (b"", b"NATS/1.0"),
            (b"", b"NA"),
            (b"", b"HTTP/1.1 200 OK\r\nce-id"),
            (b"", b"NATS/1.0\r\nce-id: \xff\r\n\xff: 1\r\nce-specversion\r\n\r\n"),
            (b"", b"NATS/1.0 404\r\n\r\n"),
        )[number // 2 % 10]
        return Shot("broken frame", subject + tail, data, {}, "ce-specversion is None", block or b"")

    def asked(self) -> bytes:
        """The body of a request; what little of it is valid names nothing that is there."""
        return self.rng.choice(
            (
                b"{",
                b"[]",
                b"null",
                b'"x"',
                b"\xff\xfe",
                b"[" * 100_000,
                b'{"a":' * 5_000,
                b'{"server": NaN, "servers": NaN, "solver": NaN, "model": NaN}',
                b'{"server": 5, "servers": 5, "solver": [], "model": {}, "accelerator": 1}',
                b'{"server": "", "servers": [""], "solver": "", "model": ""}',
                b'{"server": "\\u0000", "servers": ["\\u0000"], "solver": "\\n", "model": "\\n"}',
                b'{"server": "\\ud800", "servers": ["\\ud800"], "solver": "\\ud800", "model": "\\ud800"}',
                json.dumps(dict.fromkeys(("server", "solver", "model"), "x" * 254)).encode(),
                json.dumps({"server": "nobody", "servers": ["nobody"], "solver": "none"}).encode(),
                b'{"server": "' + b"x" * 100_000 + b'", "servers": ["a", 5], "model": "' + b"y" * 300 + b'"}',
            )
        )


def subject_of(topic: Topic, body: dict[str, Any]) -> bytes:
    """The subject that a valid body belongs to."""
    return topic.subject(topic.payload.model_validate(body)).encode()


def _topic(raw: Raw) -> Topic:
    return next(t for t in TOPICS if raw.subject == t.prefix or raw.subject.startswith(f"{t.prefix}."))


def _text(body: Any) -> bytes:
    return json.dumps(body).encode()


def _copy(body: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(body)))


def _moved(value: Any, by_s: float) -> Any:
    """With every moment moved."""
    if isinstance(value, dict):
        return {k: v + by_s if k.endswith(MOMENTS) else _moved(v, by_s) for k, v in value.items()}
    return [_moved(v, by_s) for v in value] if isinstance(value, list) else value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a body."""
    for key, held in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(held, (dict, list)):
            yield from _places(held)


def _contracts(part: Contract, held: dict[str, Any]) -> Iterator[tuple[Contract, dict[str, Any]]]:
    """Every contract within a contract, beside the JSON object that it was read from."""
    yield part, held
    for name, value in held.items():
        inner = getattr(part, name)
        inners, values = (inner, value) if isinstance(inner, tuple) else ((inner,), (value,))
        for one, raw in zip(inners, values, strict=True):
            if isinstance(one, Contract):
                yield from _contracts(one, raw)


def matches(reason: str, pattern: str) -> bool:
    """Whether a parked message's reason says what was wrong."""
    return re.search(pattern, reason) is not None
