"""Fixtures of the tests against real servers: each test has a NATS server of its own on a free port."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest_asyncio

from services.runtime import logs
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.settings import BusSettings, LogSettings
from services.runtime.topology import topology

Connect = Callable[..., Awaitable[Bus]]
# As every process does: the logger's own defaults take seconds over an exception, in which nothing else happens.
logs.configure(LogSettings(format="text"))


@pytest_asyncio.fixture
async def nats(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A NATS server with JetStream, empty; `kill` and `start` again keep its streams and its port."""
    async with EmbeddedServer(folder=tmp_path / "nats") as server:
        yield server


@pytest_asyncio.fixture
async def connect(nats: EmbeddedServer) -> AsyncIterator[Connect]:
    """Connects to the server as a service; settings of the bus may be given. Disconnects after the test."""
    async with AsyncExitStack() as stack:

        async def as_service(service: str = "tuner", **settings: object) -> Bus:
            defaults: dict[str, object] = {"url": nats.url, "storage": "memory", "connect_timeout_s": 30}
            bus = await Bus.connect(BusSettings.model_validate(defaults | settings), service)
            stack.push_async_callback(bus.close)
            return bus

        yield as_service


@pytest_asyncio.fixture
async def bus(connect: Connect) -> Bus:
    """A connection to a server that has every stream, consumer and bucket of the topic table."""
    connected = await connect("tuner")
    await connected.apply(topology())
    return connected


@pytest_asyncio.fixture
async def outside(connect: Connect) -> Bus:
    """Everybody else: feeds a service and looks at what it published."""
    connected = await connect("collector", storage="file")
    await connected.apply(topology())
    return connected
