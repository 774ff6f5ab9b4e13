"""A partitioned service that finds more work than it can do at once keeps its leases and does nothing twice."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from echo import Echo, chassis_of, messages, running, sent, until, window

from schemas.subjects import PARTITIONS, partition_of
from schemas.telemetry import TelemetryObserved
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Event
from services.runtime.service import Outcome

WINDOWS = 80
WORK_S = 1e-3
LEASE_S = 1.5
"""All that is left behind takes several times as long as a lease lives, and a part of it not a tenth."""


class Slow(Echo):
    """Works on every window, and notes how often it did and how long it kept everything else from going on."""

    def __init__(self) -> None:
        super().__init__()
        self.worked: Counter[tuple[str, float]] = Counter()

    def handle(self, events: Sequence[Event]) -> Outcome:
        windows = [e.payload for e in events if isinstance(e.payload, TelemetryObserved)]
        time.sleep(WORK_S * len(windows))
        self.worked.update((w.server, w.window_end_s) for w in windows)
        return Outcome()


async def test_a_backlog_is_worked_off_without_losing_a_lease_or_working_twice(
    nats: EmbeddedServer, outside: Bus
) -> None:
    # One model for each partition.
    models = {partition_of(name): name for name in (f"model-{i}" for i in range(2_000))}
    assert len(models) == PARTITIONS
    for end_s in range(1, WINDOWS + 1):
        wires = [sent(window(float(end_s), f"server-{m}", m)) for m in models.values()]
        await asyncio.gather(*(outside.publish(wire) for wire in wires))
    slow = Slow()
    chassis = chassis_of(nats, slow, lease_s=LEASE_S)
    began = time.monotonic()
    async with running(chassis):
        await until(lambda: messages(chassis, "handled") >= WINDOWS * PARTITIONS, within_s=90)
        assert time.monotonic() - began > LEASE_S
        assert len(chassis.held) == PARTITIONS
        assert messages(chassis, "retried") == 0
    assert len(slow.worked) == WINDOWS * PARTITIONS
    assert set(slow.worked.values()) == {1}
