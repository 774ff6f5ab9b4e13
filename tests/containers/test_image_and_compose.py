"""The image builds and the compose file comes up, decides and goes down, under whatever engine there is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import socket

import pytest
import yaml
from container_engine import COMPOSE, REPOSITORY, Engine

# The first build installs some eighty packages.
pytestmark = pytest.mark.timeout(900)

STOKER = str(Path(sys.executable).parent / "stoker")
PROJECT = "stoker-test"
DECLARED = yaml.safe_load((REPOSITORY / "services/simulator/demo/fleet.yaml").read_text())["servers"]
# The root of the deployed containers is read-only, and they have a volume at /tmp.
DEPLOYED = ("run", "--rm", "--interactive", "--network", "none", "--read-only", "--tmpfs", "/tmp")
PROBLEM = {
    "RPS": 1.0,
    "maxBatchSize": 48,
    "AvgInputTokens": 128,
    "AvgOutputTokens": 512,
    "alpha": 6.958,
    "beta": 0.042,
    "gamma": 0.002,
    "maxQueueSize": 128,
}
IMPORT_ALL = """
import importlib, pkgutil, services
def missing(name): raise ImportError(name)
names = [m.name for m in pkgutil.walk_packages(services.__path__, "services.", onerror=missing)]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    """The image of the services, built from the Dockerfile as it is."""
    name: str = COMPOSE["optimizer"]["image"]
    # The package index is reached as this machine reaches it, and no bridge is between.
    built = engine.run("build", "--network", "host", "-t", name, ".", timeout_s=800)
    assert built.returncode == 0, built.stderr[-3000:]
    return name


@pytest.fixture
def ports(engine: Engine, image: str) -> Iterator[dict[str, str]]:
    """The ports at which the fleet of the compose file, which is up, answers on this machine."""
    with socket() as nats, socket() as prometheus:
        nats.bind(("127.0.0.1", 0))
        prometheus.bind(("127.0.0.1", 0))
        free = {"NATS_PORT": str(nats.getsockname()[1]), "PROMETHEUS_PORT": str(prometheus.getsockname()[1])}
    started = engine.composed("-p", PROJECT, "up", "-d", "--no-build", **free)
    try:
        assert started.returncode == 0, started.stderr[-3000:]
        yield free
    finally:
        ended = engine.composed("-p", PROJECT, "down", "-v")
        # Old versions of podman-compose leave it.
        engine.run("network", "rm", f"{PROJECT}_default")
        assert ended.returncode == 0, ended.stderr[-3000:]


def message(url: str, kind: str) -> dict[str, object]:
    """The data of the first message of a kind on a bus, waited for."""
    shown = subprocess.run(
        (STOKER, "bus", "tail", f"stoker.v1.{kind}.>", "--from", "1h", "--count", "1", "--json"),
        env=os.environ | {"STOKER_BUS__URL": url, "STOKER_BUS__CONNECT_TIMEOUT_S": "120"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    data: dict[str, object] = json.loads(shown.stdout)["data"]
    return data


def containers(engine: Engine, *which: str) -> set[str]:
    """The services of the compose file that have a container: a running one, or any with -a."""
    shown = engine.run("ps", *which, "--format", "{{.Names}}").stdout.split()
    # One version joins the words by a hyphen, the other by an underscore; the last is the container's number.
    return {name.removeprefix(PROJECT)[1:-2] for name in shown if name.startswith(PROJECT)}


def test_the_image_runs_the_program_as_nobody(engine: Engine, image: str) -> None:
    ran = engine.run(*DEPLOYED, image, "plugins", "--json")
    assert ran.returncode == 0, ran.stderr
    assert {"stoker.solvers", "stoker.targets"} <= set(str(json.loads(ran.stdout)).replace("'", " ").split())
    who = engine.run(*DEPLOYED, "--entrypoint", "id", image, "-u")
    assert who.stdout.strip() == "65532"


def test_the_image_has_what_every_module_of_the_services_imports(engine: Engine, image: str) -> None:
    ran = engine.run(*DEPLOYED, "--entrypoint", "python", image, "-c", IMPORT_ALL, timeout_s=120)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stdout) > 100


def test_the_image_answers_with_compiled_kernels_what_the_program_answers_here(
    engine: Engine, image: str
) -> None:
    asked = ("analyze", "-", "--model", "interference", "--json")
    ran = engine.run(*DEPLOYED, image, *asked, given=json.dumps(PROBLEM), timeout_s=120)
    assert ran.returncode == 0, ran.stderr
    here = subprocess.run(
        (STOKER, *asked), input=json.dumps(PROBLEM), capture_output=True, text=True, check=True
    )
    # Rounding of another Python and other libraries of mathematics.
    assert json.loads(ran.stdout) == pytest.approx(json.loads(here.stdout), rel=1e-9)


def test_the_compose_file_comes_up_decides_and_goes_down(engine: Engine, ports: dict[str, str]) -> None:
    names = {server["name"] for server in DECLARED}
    url = f"nats://127.0.0.1:{ports['NATS_PORT']}"
    decision = message(url, "decision.made")
    assert decision["server"] in names
    assert decision["gated"]
    assert message(url, "actuation.applied")["server"] in names
    assert containers(engine) == set(COMPOSE) - {"bus-apply"}
    assert containers(engine, "-a") == set(COMPOSE)
    down = engine.composed("-p", PROJECT, "down", "-v")
    assert down.returncode == 0, down.stderr[-3000:]
    assert containers(engine, "-a") == set()
