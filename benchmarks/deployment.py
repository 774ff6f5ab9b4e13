"""The services of docker-compose.yml as processes of this machine, with the addresses of this machine.

An instance is named by its service, or, where there are several, by service and number: ``tuner``, ``tuner.2``.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
STOKER = str(Path(sys.executable).parent / "stoker")
SERVICES = ("simulator", "collector", "tuner", "predictor", "optimizer", "actuator")


class Deployment:
    """Starts, kills and watches the processes.

    Parameters: bus_url; folder, for logs, fleet and plant; speed, control seconds per wall second; cycle_s;
    lease_s, wall seconds; more, settings of the processes by environment variable.
    """

    def __init__(
        self,
        bus_url: str,
        folder: Path,
        fleet: str,
        plant: str,
        speed: float,
        cycle_s: float,
        lease_s: float = 1.5,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.speed = speed
        self.anchor_s = time.time()
        (folder / "fleet.yaml").write_text(fleet)
        (folder / "plant.yaml").write_text(plant)
        self._compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
        self._ports: defaultdict[str, int] = defaultdict(_free_port)
        self._starts: Counter[str] = Counter()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._own = {
            "STOKER_BUS__URL": bus_url,
            "STOKER_HTTP__HOST": "127.0.0.1",
            "STOKER_CLOCK__SPEED": str(speed),
            "STOKER_CLOCK__ANCHOR_S": str(self.anchor_s),
            "STOKER_COLLECTOR__FLEET": str(folder / "fleet.yaml"),
            "STOKER_COLLECTOR__CYCLE_S": str(cycle_s),
            "STOKER_COLLECTOR__SOURCES": '["endpoints", "simulated"]',
            "STOKER_COLLECTOR__SOURCE_SETTINGS": json.dumps(
                {
                    "endpoints": {"urls": [f"{self.url('simulator')}/metrics"]},
                    "simulated": {"url": self.url("simulator")},
                }
            ),
            "STOKER_ACTUATOR__TARGET_SETTINGS": json.dumps({"url": self.url("simulator")}),
            "STOKER_SIMULATOR__PLANT": str(folder / "plant.yaml"),
            "STOKER_LEASE_S": str(lease_s),
            **(more or {}),
        }

    def url(self, instance: str) -> str:
        return f"http://127.0.0.1:{self._ports[instance]}"

    def now_s(self) -> float:
        """Control time."""
        return self.anchor_s + (time.time() - self.anchor_s) * self.speed

    def apply_bus(self) -> None:
        command = [STOKER, *self._compose["bus-apply"]["command"]]
        subprocess.run(
            command, env=self._environment("bus-apply", 0), check=True, capture_output=True, timeout=30
        )

    def start(self, instance: str) -> None:
        """Start a process under a name of its own, as a pod that replaces another has one."""
        self._starts[instance] += 1
        command = [STOKER, *self._compose[service_of(instance)]["command"]]
        with (self.folder / f"{instance}.log").open("ab") as log:
            self._running[instance] = subprocess.Popen(
                command,
                env=self._environment(service_of(instance), self._ports[instance])
                | {"STOKER_INSTANCE": self.name(instance)},
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )

    def name(self, instance: str) -> str:
        """What the process that was started last calls itself in its messages and leases."""
        return f"{instance}-{self._starts[instance]}"

    def pid(self, instance: str) -> int:
        return self._running[instance].pid

    def kill(self, instance: str) -> None:
        """SIGKILL: no chance to say goodbye."""
        process = self._running.pop(instance)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self, instance: str) -> int:
        """SIGTERM; returns the exit code."""
        process = self._running.pop(instance)
        process.terminate()
        return _exit_code(process)

    def revive(self) -> dict[str, str]:
        """Start what has ended by itself, as the compose file's restart policy does; the last words of each."""
        ended = [instance for instance, process in self._running.items() if process.poll() is not None]
        words = {instance: self.log(instance).strip().rsplit("\n", 1)[-1] for instance in ended}
        for instance in ended:
            self.start(instance)
        return words

    def freeze(self, instance: str) -> None:
        """SIGSTOP: it does nothing, and knows nothing of that."""
        self._running[instance].send_signal(signal.SIGSTOP)

    def thaw(self, instance: str) -> None:
        """SIGCONT: it goes on in the middle of whatever it did."""
        self._running[instance].send_signal(signal.SIGCONT)

    def alive(self, instance: str) -> bool:
        return self._running[instance].poll() is None

    def stop(self) -> dict[str, int]:
        """SIGTERM to all; returns the exit codes."""
        for process in self._running.values():
            process.terminate()
        codes = {name: _exit_code(process) for name, process in self._running.items()}
        self._running.clear()
        return codes

    def ready(self, instance: str) -> bool:
        path = "/livez" if instance == "simulator" else "/readyz"
        try:
            with urllib.request.urlopen(self.url(instance) + path, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def inventory(self) -> dict[str, dict[str, int]]:
        """Desired replicas by server and accelerator, as the fleet has them."""
        with urllib.request.urlopen(self.url("simulator") + "/inventory", timeout=10) as answer:
            servers = json.load(answer)["servers"]
        return {s["name"]: {v["accelerator"]: v["desired"] for v in s["variants"]} for s in servers}

    def log(self, instance: str) -> str:
        return (self.folder / f"{instance}.log").read_text(errors="replace")

    def _environment(self, service: str, port: int) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("STOKER_") or k == "STOKER_DATA"}
        declared: dict[str, Any] = self._compose[service]["environment"]
        return inherited | declared | self._own | {"STOKER_HTTP__PORT": str(port)}


def service_of(instance: str) -> str:
    """The service that an instance is of."""
    return instance.partition(".")[0]


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
