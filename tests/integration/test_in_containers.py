"""The official images of nats and prometheus, where a container engine runs; elsewhere the binaries are tested."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.collector.source import Readings
from services.collector.sources.prometheus import PrometheusSettings, PrometheusSource
from services.runtime.bus import Bus
from services.runtime.envelope import Emit, decode, encode
from services.runtime.settings import BusSettings
from services.runtime.topology import topology

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0


@pytest.fixture(scope="session")
def engine() -> Any:
    """A container engine that answers."""
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env(timeout=2)
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no container engine answers: {error}")
    return client


def image_of(service: str) -> str:
    """The image that the compose file pins."""
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    image: str = compose["services"][service]["image"]
    return image


@pytest.fixture
def nats_url(engine: Any) -> Iterator[str]:
    from testcontainers.core.container import DockerContainer

    with DockerContainer(image_of("nats")).with_command("--jetstream").with_exposed_ports(4222) as started:
        yield f"nats://{started.get_container_host_ip()}:{started.get_exposed_port(4222)}"


@pytest.fixture
def prometheus_url(engine: Any, tmp_path: Path) -> Iterator[str]:
    from testcontainers.core.container import DockerContainer

    # It scrapes itself: what is looked at is whether its answers are understood.
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n"
        "  - job_name: self\n    static_configs: [{targets: ['127.0.0.1:9090'], labels: {server: s, pod: p}}]\n"
    )
    tmp_path.chmod(0o755)
    container = DockerContainer(image_of("prometheus")).with_exposed_ports(9090)
    container.with_volume_mapping(str(tmp_path), "/etc/prometheus", "ro")
    with container as started:
        yield f"http://{started.get_container_host_ip()}:{started.get_exposed_port(9090)}"


async def until(read: Callable[[], Awaitable[Any]]) -> Any:
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := await read()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.2)
    return found


async def test_the_topology_is_applied_to_the_image_of_nats_and_messages_come_back(nats_url: str) -> None:
    from gate_cases import measure

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
