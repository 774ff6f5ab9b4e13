"""Custom resources of a test, and the whole of Stoker around an operator that reads them."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from api_server import ApiServer, Refusal

from services.operator.resources import FINALIZER, KINDS, collection
from services.operator.service import OperatorService
from services.operator.settings import Settings as OperatorProcess
from services.optimizer.service import OptimizerService
from services.optimizer.settings import Settings as OptimizerProcess
from services.runtime.bus import Bus
from services.runtime.chassis import Chassis
from services.runtime.clock import WallClock
from services.runtime.embedded import EmbeddedServer
from services.runtime.metrics import Metrics
from services.runtime.service import Service
from services.runtime.settings import BusSettings, RuntimeSettings
from services.runtime.topology import topology

DEADLINE_S = 60.0
SAMPLES = Path(__file__).parents[2] / "deploy" / "kubernetes" / "samples"


class Objects:
    """The custom resources of one namespace, written by their owner."""

    def __init__(self, cluster: ApiServer, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.reasons: Callable[[], list[str]] = list
        """Why the operators are not ready, for a test that fails."""

    def apply(self, paths: Iterable[Path]) -> list[dict[str, Any]]:
        """Make what some files hold."""
        manifests = [m for path in paths for m in yaml.safe_load_all(path.read_text())]
        return [self.make(manifest) for manifest in manifests]

    def make(self, manifest: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = self.cluster.admin.post(collection(manifest["kind"], self.namespace), manifest)
        return made

    def path(self, kind: str, name: str) -> str:
        return f"{collection(kind, self.namespace)}/{name}"

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.admin.get(self.path(kind, name))
        return found

    def edit(self, kind: str, name: str, **spec: Any) -> dict[str, Any]:
        changed: dict[str, Any] = self.cluster.admin.patch(self.path(kind, name), {"spec": spec})
        return changed

    def delete(self, kind: str, name: str) -> None:
        self.cluster.admin.delete(self.path(kind, name))

    def events(self) -> list[tuple[str, str, str]]:
        """Object, reason and message of each Event."""
        items = self.cluster.admin.get(f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return [(e["involvedObject"]["name"], e["reason"], e["message"]) for e in items]

    async def told(self, *expected: tuple[str, str]) -> list[tuple[str, str]]:
        """Object and reason of each Event as soon as the expected are there; one follows the status it tells of."""

        def seen() -> Counter[tuple[str, str]]:
            return Counter((name, reason) for name, reason, _ in self.events())

        async def look() -> bool:
            return Counter(expected) <= seen()

        await until(look, lambda: f"{self.events()}")
        return sorted(seen().elements())

    def clear(self) -> None:
        """Take everything away, though no operator runs."""
        for kind in KINDS:
            for item in self.cluster.admin.get(collection(kind, self.namespace))["items"]:
                path = self.path(kind, item["metadata"]["name"])
                self.cluster.admin.gone(path)
                if FINALIZER in item["metadata"].get("finalizers", ()):
                    try:
                        self.cluster.admin.patch(path, {"metadata": {"finalizers": None}})
                    except Refusal as refusal:
                        assert refusal.status == 404, refusal

    async def until(self, kind: str, name: str, good: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The status of an object as soon as it is good."""
        status: dict[str, Any] = {}

        async def look() -> Any:
            nonlocal status
            found = await asyncio.to_thread(self.get, kind, name)
            status = found.get("status", {})
            return good(status)

        await until(look, lambda: f"{kind} {name}: {json.dumps(status)}; {self.reasons()}")
        return status

    async def gone(self, kind: str, name: str) -> None:
        """Wait until an object is no longer there."""

        async def look() -> bool:
            try:
                await asyncio.to_thread(self.get, kind, name)
            except Refusal as refusal:
                return refusal.status == 404
            return False

        await until(look, lambda: f"{kind} {name} is still there")


async def until(good: Callable[[], Any], detail: Callable[[], str]) -> None:
    """Wait until a question is answered with yes; fails after the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not await good():
        assert time.monotonic() < deadline_s, detail()
        await asyncio.sleep(0.05)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    """One condition of a status; empty while there is none."""
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


class Stoker:
    """A bus with an optimizer, and operators that a test starts and stops."""

    def __init__(self, url: str, bus: Bus, kubeconfig: Path, namespace: str) -> None:
        self.url, self.bus, self._kubeconfig, self._namespace = url, bus, kubeconfig, namespace
        self._running: dict[str, tuple[Chassis, asyncio.Task[None]]] = {}

    def reasons(self) -> list[str]:
        return [text for chassis, _ in self._running.values() for text in chassis.reasons()]

    def start(self, name: str, service: Service, settings: RuntimeSettings) -> Chassis:
        chassis = Chassis(service, settings, WallClock(), Metrics())
        self._running[name] = (chassis, asyncio.create_task(chassis.run()))
        return chassis

    def operator(self, name: str = "operator", lease_s: float = 3.0, **more: Any) -> Chassis:
        """One more operator; `more` are settings of it."""
        settings = OperatorProcess.model_validate(
            {
                "bus": {"url": self.url},
                "instance": name,
                "lease_s": lease_s,
                "operator": {
                    "cluster": {"kubeconfig": str(self._kubeconfig)},
                    "namespace": self._namespace,
                    **more,
                },
            }
        )
        return self.start(name, OperatorService(settings), settings)

    async def stop(self, name: str) -> None:
        """End one in order."""
        chassis, task = self._running.pop(name)
        chassis.stop()
        await asyncio.wait_for(task, DEADLINE_S)

    async def kill(self, name: str) -> None:
        """End one as a lost node does: its lease is not given back."""
        _, task = self._running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        for name in list(self._running):
            await self.stop(name)


@asynccontextmanager
async def stoker(kubeconfig: Path, namespace: str, folder: Path) -> AsyncIterator[Stoker]:
    """A bus of the test's own with an optimizer on it."""
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(EmbeddedServer(folder / "nats"))
        bus = await Bus.connect(BusSettings(url=nats.url), "watch")
        stack.push_async_callback(bus.close)
        await bus.apply(topology())
        made = Stoker(nats.url, bus, kubeconfig, namespace)
        stack.push_async_callback(made.close)
        settings = OptimizerProcess.model_validate({"bus": {"url": nats.url}})
        made.start("optimizer", OptimizerService(settings), settings)
        yield made
