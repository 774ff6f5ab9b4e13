"""The overlay custom-resources as processes: their commands, settings, users of the bus and rights are those that are
deployed; only addresses and files are this machine's."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from api_server import free_port, until
from custom_resources import SAMPLES, Objects, condition
from guarded import Guarded, guarded
from kustomized import of_kind, rendered
from manifests import deployment

from services.runtime.child import end, last_lines, spawn

STOKER = Path(sys.executable).parent / "stoker"
OVERLAY = "custom-resources"
RUN = ("operator", "collector", "optimizer", "actuator")


class Processes:
    """Parameters: local, settings of this machine by service, which replace what is deployed."""

    def __init__(self, server: Guarded, folder: Path, local: dict[str, dict[str, Any]]) -> None:
        self.server, self.folder, self.local = server, folder, local
        objects = rendered(OVERLAY)
        self.deployed = {one["metadata"]["name"]: one for one in of_kind(objects, "Deployment")}
        (self.settings,) = [
            one["data"]
            for one in of_kind(objects, "ConfigMap")
            if one["metadata"]["name"].startswith("stoker-settings")
        ]
        self.ports = {service: free_port() for service in RUN}
        self.children: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        try:
            for service in RUN:
                (container,) = self.deployed[f"stoker-{service}"]["spec"]["template"]["spec"]["containers"]
                whole = ["env", *self._environment(service), str(STOKER), *container["args"]]
                self.children.append(spawn(whole, self.log(service)))
            yield
        finally:
            for child in self.children:
                end(child, 20)

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def unready(self) -> str:
        """Who is not ready, and why; empty when all are."""
        found = []
        for service, port in self.ports.items():
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
            except urllib.error.HTTPError as error:
                found.append(f"{service}: {error.read().decode()}")
            except OSError:
                found.append(f"{service}: {last_lines(self.log(service))}")
        return "; ".join(found)

    def _environment(self, service: str) -> list[str]:
        """What `env` is told: nothing of ours, all that is deployed, and this machine's own."""
        seed = self.server.credentials[service]["nkey_seed_file"]
        own = {name: value for name, value in self.settings.items() if name != "STOKER_BUS__CA_FILE"}
        own |= {"STOKER_BUS__URL": self.server.url, "STOKER_BUS__NKEY_SEED_FILE": str(seed)}
        own |= {"STOKER_HTTP__HOST": "127.0.0.1", "STOKER_HTTP__PORT": str(self.ports[service])}
        own |= {name: json.dumps(value) for name, value in self.local.get(service, {}).items()}
        unset = [f"--unset={name}" for name in os.environ if name.startswith("STOKER_")]
        return [*unset, *(f"{name}={value}" for name, value in own.items())]


async def test_what_is_deployed_plans_the_custom_resources_with_its_own_users_and_rights(
    objects: Objects,
    operator_config: Path,
    reader: Path,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects.cluster.admin.create(deployment(namespace, "engine"))
    objects.apply([SAMPLES / "fleet.yaml"])
    objects.edit("Server", "chat", minReplicas=3, scaleTargetRef={"kind": "Deployment", "name": "engine"})
    objects.edit("Optimizer", "optimizer", periodSeconds=1)
    access = {"cluster": {"kubeconfig": str(reader)}}
    local = {
        "operator": {
            "STOKER_OPERATOR": {"cluster": {"kubeconfig": str(operator_config)}, "namespace": namespace}
        },
        "collector": {
            "STOKER_COLLECTOR__SOURCE_SETTINGS": {"kubernetes": access},
            "STOKER_COLLECTOR__CYCLE_S": 1,
        },
    }
    async with guarded(tmp_path / "nats", monkeypatch, by="nkey") as server:
        processes = Processes(server, tmp_path, local)
        objects.reasons = lambda: [processes.unready()]
        with processes.running():
            await asyncio.to_thread(until, lambda: not processes.unready(), "readiness", processes.unready)
            status = await objects.until(
                "Server", "chat", lambda s: s.get("decision", {}).get("numReplicas") == 3
            )
        logs = "".join(processes.log(service).read_text() for service in RUN).lower()
    # Until it is told otherwise, this overlay changes nothing.
    assert condition(status, "Actuated")["reason"] == "DryRun"
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/engine"
    assert objects.cluster.admin.get(path)["spec"]["replicas"] == 1
    assert "violation" not in logs and "denied" not in logs and "forbidden" not in logs
    assert {child.returncode for child in processes.children} == {0}
