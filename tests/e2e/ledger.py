"""What the streams say happened, for checks after a run."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from schemas.topics import ROOT
from services.runtime.bus import Bus
from services.runtime.envelope import Event, decode
from services.runtime.errors import Reject


@dataclass
class Ledger:
    """Every valid message kept, by topic, in the order of its stream; and those parked."""

    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    parked: list[Any] = field(default_factory=list)

    def payloads(self, topic: str) -> list[Any]:
        return [event.payload for event in self.events[topic]]

    def windows(self) -> dict[str, list[Any]]:
        """Telemetry by server."""
        found: dict[str, list[Any]] = defaultdict(list)
        for window in self.payloads("telemetry.observed"):
            found[window.server].append(window)
        return found

    def repeated(self, topic: str) -> list[tuple[str, int]]:
        """(server, generation) that occur more than once."""
        counts = Counter((one.server, one.generation) for one in self.payloads(topic))
        return [key for key, count in counts.items() if count > 1]


async def read_ledger(bus: Bus) -> Ledger:
    """Everything that the streams still hold."""
    ledger = Ledger()
    # What follows is read before what it follows from, of which more comes meanwhile.
    for stream in ("DECISIONS", "STATE", "TELEMETRY"):
        for raw in await bus.everything(stream, [f"{ROOT}.>"]):
            try:
                event = decode(raw)
            except Reject:
                continue
            ledger.events[event.topic.name].append(event)
    ledger.parked = await bus.everything("DLQ", [f"{ROOT}.dlq.>"])
    return ledger
