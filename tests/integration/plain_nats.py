"""The plain library beside the bus, and messages to send through either."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats as plain
from nats.aio.client import Client

from schemas.base import Quality
from schemas.subjects import partition_of
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.runtime.bus import Bus, Pull
from services.runtime.embedded import EmbeddedServer
from services.runtime.envelope import Emit, Raw, Wire, encode
from services.runtime.topology import consumer_of_partition

Connect = Callable[..., Awaitable[Bus]]
TUNER_TELEMETRY = consumer_of_partition("tuner", partition_of("m"))


def window(end_s: float, server: str = "s") -> Wire:
    payload = TelemetryObserved(
        server=server, model="m", window_start_s=0, window_end_s=end_s, quality=Quality.OK
    )
    return encode(Emit(payload), "collector", 1.0)


def stock(at_s: float, server: str = "s", **emit: Any) -> Wire:
    payload = InventoryObserved(server=server, model="m", observed_at_s=at_s, quality=Quality.OK)
    return encode(Emit(payload, **emit), "collector", 1.0)


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def library(server: EmbeddedServer, **options: Any) -> AsyncIterator[Client]:
    async def ignore(_: Exception) -> None: ...

    client = await plain.connect(server.url, error_cb=ignore, **options)
    try:
        yield client
    finally:
        await client.close()


async def next_within(pull: Pull, seconds: float = 10.0) -> list[Raw]:
    return await asyncio.wait_for(pull.next(), seconds)
