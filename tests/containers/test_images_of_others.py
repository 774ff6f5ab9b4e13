"""The images of nats and prometheus that the compose file pins, through the API of the engine.

Where there is no registry, images.sh has made them of the binaries of the machine.
"""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from container_engine import COMPOSE, Engine
from gate_cases import measure
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from services.collector.source import Readings
from services.collector.sources.prometheus import PrometheusSettings, PrometheusSource
from services.runtime.bus import Bus
from services.runtime.envelope import Emit, decode, encode
from services.runtime.settings import BusSettings
from services.runtime.topology import topology

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def network(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A network of an engine whose API is where testcontainers looks for it."""
    with ExitStack() as stack:
        if engine.program == "podman":
            path = tmp_path_factory.mktemp("podman") / "api.sock"
            command = (engine.program, "system", "service", "--time", "0", f"unix://{path}")
            service = stack.enter_context(subprocess.Popen(command, env=engine.environment))
            stack.callback(service.terminate)
            patched = stack.enter_context(pytest.MonkeyPatch.context())
            patched.setenv("DOCKER_HOST", f"unix://{path}")
            # What it would end the tests end themselves, and its image is another one to have.
            patched.setattr(testcontainers_config, "ryuk_disabled", True)
            # The service is on this machine, and so are the ports that it opens, whatever the machine is in.
            patched.setattr(testcontainers_config, "connection_mode_override", ConnectionMode.docker_host)
            deadline_s = time.monotonic() + DEADLINE_S
            while not path.exists():
                assert service.poll() is None and time.monotonic() < deadline_s, "podman serves no API"
                time.sleep(0.05)
        yield stack.enter_context(Network())


@pytest.fixture
def nats_url(network: Network) -> Iterator[str]:
    container = DockerContainer(COMPOSE["nats"]["image"]).with_network(network).with_exposed_ports(4222)
    with container.with_command("--jetstream") as started:
        yield f"nats://{started.get_container_host_ip()}:{started.get_exposed_port(4222)}"


@pytest.fixture
def prometheus_url(network: Network, tmp_path: Path) -> Iterator[str]:
    # It scrapes itself: what is looked at is whether its answers are understood.
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n"
        "  - job_name: self\n    static_configs: [{targets: ['127.0.0.1:9090'], labels: {server: s, pod: p}}]\n"
    )
    tmp_path.chmod(0o755)
    container = DockerContainer(COMPOSE["prometheus"]["image"]).with_network(network).with_exposed_ports(9090)
    with container.with_volume_mapping(str(tmp_path), "/etc/prometheus", "ro") as started:
        yield f"http://{started.get_container_host_ip()}:{started.get_exposed_port(9090)}"


async def until(read: Callable[[], Awaitable[Any]]) -> Any:
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := await read()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.2)
    return found


async def test_the_topology_is_applied_to_the_image_of_nats_and_messages_come_back(nats_url: str) -> None:
    bus = await Bus.connect(BusSettings(url=nats_url, connect_timeout_s=30), "collector")
    try:
        await bus.apply(topology())
        assert await bus.verify(topology()) == []
        window = measure()
        await bus.publish(encode(Emit(window), "collector", time.time()))
        (stored,) = await bus.everything("TELEMETRY", ["stoker.v1.telemetry.observed.>"])
        assert decode(stored).payload == window
    finally:
        await bus.close()


async def test_the_image_of_prometheus_answers_the_source(prometheus_url: str) -> None:
    names = PrometheusSettings().names.model_copy(
        update={
            "completed": ("prometheus_http_requests_total",),
            "running": ("prometheus_engine_queries",),
            "waiting": ("prometheus_notifications_queue_length",),
        }
    )
    source = PrometheusSource(PrometheusSettings(url=prometheus_url, names=names), to_clock_s=lambda s: s)

    async def read() -> Readings | None:
        readings = await source.poll(0)
        return readings if readings.replicas and readings.replicas[0].completed else None

    readings: Readings = await until(read)
    await source.close()
    (replica,) = readings.replicas
    assert (replica.server, replica.replica) == ("s", "p")
    assert abs(time.time() - replica.sampled_at_s) < DEADLINE_S
