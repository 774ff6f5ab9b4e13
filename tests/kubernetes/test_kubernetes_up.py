"""The whole of Stoker on a real API server: `stoker up --target kubernetes`, and what `stoker doctor` says of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import ApiServer, until, wait_for
from manifests import path_of, variant

from services.runtime.child import end

FLEET = {
    "accelerators": [
        {"name": "H100", "type": "H100", "cost_per_hour": 4},
        {"name": "L4", "type": "L4", "cost_per_hour": 1},
    ],
    "models": [
        {
            "name": "granite-8b",
            "profiles": [
                {
                    "accelerator": "H100",
                    "max_batch": 64,
                    "startup_s": 60,
                    "parameters": {"values": {"alpha_s": 0.01, "beta_s": 1.4e-5, "gamma_s": 6e-7}},
                }
            ],
        }
    ],
    "service_classes": [
        {"name": "gold", "priority": 1, "objectives": [{"model": "granite-8b", "ttft_s": 1.0, "itl_s": 0.05}]}
    ],
    "servers": [
        {
            "name": "chat",
            "model": "granite-8b",
            "service_class": "gold",
            "min_replicas": 3,
        }
    ],
}
STOKER = Path(sys.executable).parent / "stoker"


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(FLEET))
    return path


def test_the_loop_brings_a_server_to_the_replicas_that_its_owner_asks_for_at_least(
    cluster: ApiServer, namespace: str, fleet: Path, admin_config: Path, tmp_path: Path, unused_tcp_port: int
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    wait_for(
        cluster, path_of(namespace, "chat-h100"), lambda d: d.get("status", {}).get("readyReplicas") == 1
    )
    # No Prometheus answers: nothing is known of the load, and the rest of the loop works on.
    command = [str(STOKER), "up", "--json", "--target", "kubernetes", "--cycle", "1", "--duration", "60"]
    command += ["--fleet", str(fleet), "--kubeconfig", str(admin_config)]
    command += ["--prometheus-url", f"http://127.0.0.1:{unused_tcp_port}"]
    with (tmp_path / "said").open("w") as said, (tmp_path / "errors").open("w") as errors:
        running = subprocess.Popen(command, stdout=said, stderr=errors)
    try:
        found = wait_for(cluster, path_of(namespace, "chat-h100"), lambda d: d["spec"]["replicas"] == 3)
        events = until(lambda: _applied(tmp_path / "said"), "an event of it", (tmp_path / "errors").read_text)
    finally:
        end(running, 20)
    assert found["spec"]["replicas"] == events[-1]["scaled"][0]["replicas"]
    assert {one["target"] for one in events} == {"kubernetes"}
    alerts = [one["data"] for one in _said(tmp_path / "said") if ".alert.raised." in one["subject"]]
    assert ("source_failed", "prometheus") in {(one["kind"], one["subject"]) for one in alerts}
    capacity = [
        one["data"] for one in _said(tmp_path / "said") if one["subject"].endswith("capacity.observed")
    ]
    assert {kind["type"]: kind["total"] for kind in capacity[0]["types"]} == {"H100": 12, "L4": 8}


def _said(path: Path) -> list[dict[str, Any]]:
    complete = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]


def _applied(path: Path) -> list[dict[str, Any]]:
    return [one["data"] for one in _said(path) if ".actuation.applied." in one["subject"]]


def test_doctor_says_what_the_cluster_has_and_what_a_credential_lacks(
    cluster: ApiServer, namespace: str, admin_config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster.admin.create(variant(namespace, "chat", "H100"))
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "bare", "namespace": namespace},
    }
    cluster.admin.create(account)
    bare = cluster.kubeconfig_file("bare", cluster.token(namespace, "bare"))
    settings = {
        "collector": {
            "sources": ["kubernetes"],
            "source_settings": {"kubernetes": {"cluster": {"kubeconfig": str(admin_config)}}},
        },
        "actuator": {
            "target": "kubernetes",
            "target_settings": {"cluster": {"kubeconfig": str(bare)}},
        },
    }
    config = tmp_path / "stoker.yaml"
    config.write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("STOKER_CONFIG", str(config))
    said = subprocess.run([str(STOKER), "doctor", "--json"], capture_output=True, text=True, timeout=60)
    found = {one["what"]: one for one in json.loads(said.stdout)}
    assert said.returncode == 1
    reads, writes = found["kubernetes for the collector"], found["kubernetes for the actuator"]
    assert reads["ok"] and "servers; cards:" in reads["detail"] and "of 12 H100 free" in reads["detail"]
    assert not writes["ok"] and 'cannot list resource "deployments"' in writes["detail"]
