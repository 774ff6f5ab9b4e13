"""The image builds and the compose file comes up, decides and goes down, under whatever engine there is.

Where podman cannot pull, `tests/containers/images.sh` makes what the files begin with.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PROJECT = "stoker-test"
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
DECLARED = yaml.safe_load((REPOSITORY / "services/simulator/demo/fleet.yaml").read_text())["servers"]


@dataclass(frozen=True)
class Engine:
    """A container engine and the program that runs compose files with it."""

    program: str
    compose: tuple[str, ...]

    def run(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        return self._run((self.program, *arguments), timeout_s)

    def composed(self, *arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        return self._run((*self.compose, "-p", PROJECT, *arguments), timeout_s)

    def _run(self, command: tuple[str, ...], timeout_s: float) -> subprocess.CompletedProcess[str]:
        own = {"CONTAINERS_CONF": str(HERE / "containers.conf")} if self.program == "podman" else {}
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="module")
def engine() -> Engine:
    beside = Path(sys.executable).parent / "podman-compose"
    composer = shutil.which("podman-compose") or (str(beside) if beside.exists() else None)
    reasons = []
    for one, needs in (
        (Engine("docker", ("docker", "compose")), shutil.which("docker")),
        (Engine("podman", (composer or "podman-compose",)), shutil.which("podman") and composer),
    ):
        if not needs:
            reasons.append(f"{one.program} with its compose is not installed")
        elif (answer := one.run("info")).returncode != 0:
            reasons.append(f"{one.program} does not answer: {answer.stderr.strip()[-200:]}")
        else:
            return one
    pytest.skip("no container engine: " + "; ".join(reasons))


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    """The image of the services, built from the Dockerfile as it is."""
    if engine.program == "podman":
        base = (REPOSITORY / "Dockerfile").read_text().split("\nFROM ")[-1].split()[0]
        wanted = [f"docker.io/library/{base}", COMPOSE["nats"]["image"], COMPOSE["prometheus"]["image"]]
        for name in wanted:
            there = engine.run("image", "exists", name).returncode == 0
            if not there and engine.run("pull", name, timeout_s=300).returncode != 0:
                pytest.skip(f"podman has no {name} and cannot pull it; run tests/containers/images.sh")
    built = engine.run("build", "-t", COMPOSE["optimizer"]["image"], ".", timeout_s=800)
    assert built.returncode == 0, built.stderr[-3000:]
    return str(COMPOSE["optimizer"]["image"])


@pytest.fixture
def fleet_up(engine: Engine, image: str) -> Iterator[None]:
    started = engine.composed("up", "-d", "--no-build")
    try:
        assert started.returncode == 0, started.stderr[-3000:]
        yield
    finally:
        ended = engine.composed("down", "-v")
        assert ended.returncode == 0, ended.stderr[-3000:]


def test_the_image_runs_the_program_as_nobody(engine: Engine, image: str) -> None:
    ran = engine.run("run", "--rm", image, "plugins", "--json")
    assert ran.returncode == 0, ran.stderr
    assert {"stoker.solvers", "stoker.targets"} <= set(str(json.loads(ran.stdout)).replace("'", " ").split())
    who = engine.run("run", "--rm", "--entrypoint", "id", image, "-u")
    assert who.stdout.strip() == "65532"


@pytest.mark.usefixtures("fleet_up")
def test_the_compose_file_comes_up_decides_and_goes_down(engine: Engine) -> None:
    tail = ("bus", "tail", "stoker.v1.decision.made.>", "--from", "1h", "--count", "1", "--json")
    shown = subprocess.run(
        (str(Path(sys.executable).parent / "stoker"), *tail),
        env=os.environ | {"STOKER_BUS__URL": "nats://127.0.0.1:4222", "STOKER_BUS__CONNECT_TIMEOUT_S": "120"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    decision = json.loads(shown.stdout)["data"]
    assert decision["server"] in {server["name"] for server in DECLARED}
    assert decision["gated"]
    down = engine.composed("down", "-v")
    assert down.returncode == 0, down.stderr[-3000:]
    left = engine.run("ps", "-a", "--format", "{{.Names}}").stdout
    assert PROJECT not in left
