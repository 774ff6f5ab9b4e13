"""A service as a process: exit codes and signals."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.topology import topology

SERVICE = """
import asyncio, sys
from services.runtime.process import main
from services.runtime.service import Service
from services.runtime.settings import RuntimeSettings

class Collector(Service):
    name = "collector"

    async def close(self):
        print("closing", flush=True)
        if "stuck" in sys.argv:
            await asyncio.Event().wait()

sys.exit(main(lambda settings: Collector(), RuntimeSettings))
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the service as a process with the given environment; what is left is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
        clean = {k: v for k, v in os.environ.items() if not k.startswith("STOKER_")}
        child = subprocess.Popen(
            [sys.executable, "-c", SERVICE, *arguments],
            env=clean | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def logged(child: "subprocess.Popen[str]", event: str) -> dict[str, object]:
    """Read the log up to an event."""
    assert child.stderr is not None
    for line in child.stderr:
        found: dict[str, object] = json.loads(line)
        if found["event"] == event:
            return found
    raise AssertionError(f"{event!r} was not logged")


@pytest.fixture
async def url(nats: EmbeddedServer, connect: Callable[..., Awaitable[Bus]]) -> str:
    await (await connect("collector")).apply(topology())
    return nats.url


def test_a_signal_ends_a_service_in_order_with_zero(start: Start, url: str):
    child = start(STOKER_BUS__URL=url)
    port = logged(child, "listening")["port"]
    logged(child, "running")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        assert json.load(answer)["ready"] is True
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=60)
    assert (child.returncode, said) == (0, "closing\n")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=1)


def test_a_second_signal_ends_it_at_once(start: Start, url: str):
    child = start("stuck", STOKER_BUS__URL=url)
    logged(child, "running")
    child.send_signal(signal.SIGINT)
    assert child.stdout is not None
    assert child.stdout.readline() == "closing\n"
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    assert time.monotonic() - began < 20


def test_settings_that_cannot_be_used_are_exit_code_two_without_a_traceback(start: Start):
    child = start(STOKER_LEASE_S="soon")
    said, told = child.communicate(timeout=60)
    assert (child.returncode, said) == (2, "")
    assert told.startswith("settings: lease_s: Input should be a valid number")
    assert "Traceback" not in told


def test_without_a_bus_the_exit_code_is_one_and_the_log_says_why(start: Start):
    child = start(STOKER_BUS__URL="nats://127.0.0.1:1", STOKER_BUS__CONNECT_TIMEOUT_S="0.2", STOKER_BUSS="x")
    assert logged(child, "unread environment")["variables"] == ["STOKER_BUSS"]
    assert "no NATS server at nats://127.0.0.1:1" in str(logged(child, "ended")["error"])
    assert child.wait(60) == 1


def test_a_bus_without_streams_is_told_with_what_would_help(start: Start, nats: EmbeddedServer):
    child = start(STOKER_BUS__URL=nats.url)
    assert "consumer collector of STATE does not exist; run `stoker bus apply`" in str(
        logged(child, "ended")["error"]
    )
    assert child.wait(60) == 1
