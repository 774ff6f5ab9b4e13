"""The container engine of this machine, and whether it does what the tests ask of it.

Podman is taken as the machine configures it; only where that does not run a container whose network has names, as in
a virtual machine without systemd, it is asked with `containers.conf` from here.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
BASE = "docker.io/library/" + (REPOSITORY / "Dockerfile").read_text().split("FROM ")[1].split()[0]
# What nobody here builds. Podman has them from a registry or from images.sh.
FOREIGN = (BASE, COMPOSE["nats"]["image"], COMPOSE["prometheus"]["image"])

Done = subprocess.CompletedProcess[str]


class Refused(Exception):
    """An engine does not do what the tests need."""


@dataclass(frozen=True)
class Engine:
    """A container engine, the program that runs compose files with it, and podman's configuration if not its own."""

    program: str
    compose: tuple[str, ...]
    configuration: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        own = {} if self.configuration is None else {"CONTAINERS_CONF": str(self.configuration)}
        return os.environ | own

    def run(self, *arguments: str, timeout_s: float = 60.0, given: str | None = None) -> Done:
        """The engine's answer to a command, which reads ``given``."""
        return self._run((self.program, *arguments), self.environment, timeout_s, given)

    def composed(self, *arguments: str, timeout_s: float = 300.0, **environment: str) -> Done:
        """What the compose file of the repository does, with ``environment`` for its variables."""
        return self._run((*self.compose, *arguments), self.environment | environment, timeout_s)

    @contextmanager
    def network(self) -> Iterator[str]:
        """The name of a network that nothing else is on."""
        name = f"stoker-{uuid.uuid4().hex[:8]}"
        created = self.run("network", "create", name)
        if created.returncode != 0:
            raise Refused(_last_line(created))
        try:
            yield name
        finally:
            self.run("network", "rm", name)

    def check(self) -> None:
        """Runs a container on a network and asks there for a name, as the services of the compose file do.

        Raises:
            Refused: with the reason for which this engine is of no use here.
        """
        for program in (self.program, self.compose[0]):
            if shutil.which(program) is None:
                raise Refused(f"{program} is not installed")
        for answer in (self.run("info"), self.composed("version", timeout_s=60)):
            if answer.returncode != 0:
                raise Refused(f"does not answer: {_last_line(answer)}")
        for image in FOREIGN:
            if self.run("image", "inspect", image).returncode != 0:
                pulled = self.run("pull", image, timeout_s=300)
                if pulled.returncode != 0:
                    raise Refused(
                        f"no image {image}, which images.sh makes without a registry: {_last_line(pulled)}"
                    )
        ask = ("python3", "-c", "import socket; socket.getaddrinfo('me', None)")
        with self.network() as network:
            asked = self.run("run", "--rm", "--network", network, "--network-alias", "me", BASE, *ask)
        if asked.returncode != 0:
            raise Refused(f"runs no container on a network with names: {_last_line(asked)}")

    @staticmethod
    def _run(
        command: tuple[str, ...], environment: dict[str, str], timeout_s: float, given: str | None = None
    ) -> Done:
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


CANDIDATES = (
    Engine("docker", ("docker", "compose")),
    Engine("podman", ("podman-compose",)),
    Engine("podman", ("podman-compose",), HERE / "containers.conf"),
)


def engine_of_this_machine() -> Engine:
    """The first engine that does what the tests need.

    Raises:
        Refused: with the reason of each.
    """
    reasons = []
    for one in CANDIDATES:
        try:
            one.check()
        except (Refused, subprocess.TimeoutExpired) as refused:
            reasons.append(f"{one.program}{' with containers.conf' if one.configuration else ''}: {refused}")
        else:
            return one
    raise Refused("; ".join(reasons))


def _last_line(done: Done) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
