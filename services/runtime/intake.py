"""From a batch as the bus delivers it to the events that are worth handling. Pure.

Every message ends in exactly one place: handled, superseded by a newer one of its subject, a duplicate,
expired, or refused with a reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.topics import Delivery
from services.runtime.envelope import Event, Raw, decode
from services.runtime.errors import Reject

REMEMBERED = 50_000
_AHEAD_S = 300.0
"""A message of the far future would outlast all that follow; clocks do not differ by this much."""


@dataclass
class Sorted:
    """One batch, sorted."""

    good: list[tuple[Raw, Event]] = field(default_factory=list)
    done: list[tuple[Raw, str, str]] = field(default_factory=list)
    """Messages to acknowledge without handling: message, topic, outcome."""
    refused: list[tuple[Raw, str]] = field(default_factory=list)
    """Messages to park: message, reason."""


class Intake:
    """What one service, or one part of it, has seen.

    Parameters: remembered, newest messages that are known again, at least; more than are handled until one that was
    handled but not acknowledged is delivered again.
    """

    def __init__(self, service: str, remembered: int = REMEMBERED) -> None:
        self._service = service
        self._remembered = remembered
        # Hashes of source and id: two of 64 bits meet once in some thousand years of the busiest fleet.
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()
        self._newest: dict[str, int] = {}

    def sort(self, batch: Sequence[Raw], now_s: float) -> Sorted:
        """Sort a batch; nothing counts as seen before `remember` is told that it was handled."""
        found = Sorted()
        newest: dict[str, int] = {}
        ids: set[int] = set()
        for raw in batch:
            try:
                event = admitted(raw, self._service, now_s)
            except Reject as error:
                found.refused.append((raw, str(error)))
                continue
            topic, identity = event.topic, _identity(event)
            if identity in self._seen or identity in self._seen_before or identity in ids:
                found.done.append((raw, topic.name, "duplicate"))
                continue
            if event.expires_at_s is not None and event.expires_at_s < now_s:
                found.done.append((raw, topic.name, "expired"))
                continue
            if topic.consumers[self._service] is Delivery.NEWEST:
                if event.sequence <= self._newest.get(event.subject, 0):
                    found.done.append((raw, topic.name, "superseded"))
                    continue
                place = newest.get(event.subject)
                if place is not None:
                    older = found.good[place]
                    if older[1].sequence > event.sequence:
                        found.done.append((raw, topic.name, "superseded"))
                        continue
                    found.done.append((older[0], topic.name, "superseded"))
                    found.good[place] = (raw, event)
                    ids.add(identity)
                    continue
                newest[event.subject] = len(found.good)
            ids.add(identity)
            found.good.append((raw, event))
        return found

    def remember(self, events: Sequence[Event]) -> None:
        """Note events as handled."""
        for event in events:
            self._seen.add(_identity(event))
            if event.topic.consumers.get(self._service) is Delivery.NEWEST:
                self._newest[event.subject] = max(event.sequence, self._newest.get(event.subject, 0))
        if len(self._seen) > self._remembered:
            self._seen, self._seen_before = set(), self._seen


def _identity(event: Event) -> int:
    return hash((event.source, event.id))


def admitted(raw: Raw, service: str, now_s: float) -> Event:
    """A message that a service may act upon; raises Reject with a reason that names what is wrong."""
    event = decode(raw)
    if service not in event.topic.consumers:
        raise Reject(f"{service} does not read {event.topic.name}")
    if event.as_of_s > now_s + _AHEAD_S:
        raise Reject(f"{event.topic.as_of} is {event.as_of_s - now_s:.0f} s ahead of the clock")
    return event
