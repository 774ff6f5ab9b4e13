"""The built-in targets keep the contract of targets."""

from collections.abc import AsyncIterator

import pytest
from gate_cases import ask, hold
from simulated_backend import Client, Clock, inventory_of, simulated_fleet, url_of
from target_suite import TargetContract

from schemas.actuation import VariantScale
from schemas.telemetry import InventoryObserved
from services.actuator.target import Target
from services.actuator.targets.metrics import MetricsTarget
from services.actuator.targets.simulated import SimulatedSettings, SimulatedTarget
from services.runtime import plugins


class TestDryRun(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        built: Target = plugins.build("stoker.targets", "dry-run", None)
        return built

    @pytest.fixture
    def broken(self) -> Target:
        pytest.skip("a dry run has no backend")

    async def inventory(self, target: Target) -> InventoryObserved:
        return hold(ask(A=2))


class TestMetrics(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        built: MetricsTarget = plugins.build("stoker.targets", "metrics", None)
        built.desired.keep({"s"})
        built.desired.show("s", [VariantScale(accelerator="A", replicas=2)])
        return built

    @pytest.fixture
    def broken(self) -> Target:
        pytest.skip("metrics are shown, they have no backend")

    async def inventory(self, target: Target) -> InventoryObserved:
        """What an autoscaler that obeys at once would have made of the series."""
        assert isinstance(target, MetricsTarget)
        return hold(ask(**target.desired.of("s")))


class TestSimulated(TargetContract):
    @pytest.fixture
    async def client(self) -> AsyncIterator[Client]:
        async with simulated_fleet(Clock()) as client:
            self._client = client
            yield client

    @pytest.fixture
    async def target(self, client: Client) -> AsyncIterator[Target]:
        built: Target = plugins.build("stoker.targets", "simulated", {"url": url_of(client)})
        yield built
        await built.close()

    @pytest.fixture
    async def broken(self, unused_tcp_port: int) -> Target:
        return SimulatedTarget(SimulatedSettings(url=f"http://127.0.0.1:{unused_tcp_port}"))

    async def inventory(self, target: Target) -> InventoryObserved:
        return await inventory_of(self._client)
