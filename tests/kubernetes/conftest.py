"""Fixtures of the tests against a real Kubernetes API server; one server for all of them."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import yaml
from api_server import ApiServer, api_server, wait_for
from custom_resources import Objects
from kubelet import Kubelet, node
from manifests import DEPLOYED, GROUPS, ROLES

DEFINITIONS = sorted((DEPLOYED / "operator" / "crds").glob("*.yaml"))
NODES = (("node-h100-a", "H100", 8), ("node-h100-b", "H100", 4), ("node-l4", "L4", 8))
_NUMBERS = count(1)
API = "/apis/inferno.platform.ai/v1alpha1"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with a controller manager and three nodes: 12 cards H100 and 8 cards L4."""
    with api_server(tmp_path_factory.mktemp("kubernetes")) as server:
        for name, kind, cards in NODES:
            server.admin.gone(f"/api/v1/nodes/{name}")
            made = node(name, kind, cards)
            server.admin.create(made)
            server.admin.patch(f"/api/v1/nodes/{name}/status", {"status": made["status"]})
        yield server


@pytest.fixture(scope="session")
def _kubelet(cluster: ApiServer) -> Iterator[Kubelet]:
    with Kubelet(cluster.admin) as playing:
        yield playing


@pytest.fixture
def kubelet(_kubelet: Kubelet) -> Iterator[Kubelet]:
    """What schedules pods and makes them ready; what a test asks of it is forgotten after the test."""
    yield _kubelet
    _kubelet.forget()


@pytest.fixture
def namespace(cluster: ApiServer, kubelet: Kubelet) -> Iterator[str]:
    """A namespace of the test's own; what is in it is deleted after the test, so that its cards are free again."""
    name = f"test-{next(_NUMBERS)}"
    cluster.admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kubelet.forget()
    for path in ("apis/apps/v1/namespaces/{}/deployments", "apis/apps/v1/namespaces/{}/replicasets"):
        cluster.admin.delete("/" + path.format(name))
    cluster.admin.delete(f"/api/v1/namespaces/{name}/pods", 0)
    cluster.admin.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def roles(cluster: ApiServer) -> None:
    """The manifests that give Stoker's services their rights are in force."""
    cluster.admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "stoker"}})
    for path in ROLES:
        for manifest in yaml.safe_load_all(path.read_text()):
            cluster.admin.create(manifest)


@pytest.fixture(scope="session")
def custom_resources(cluster: ApiServer) -> None:
    """The six kinds of custom resources, as the deployment defines them."""
    for path in DEFINITIONS:
        made = yaml.safe_load(path.read_text())
        cluster.admin.create(made)
    for path in DEFINITIONS:
        wait_for(cluster, f"{API}/{path.stem}", lambda found: "items" in found)


@pytest.fixture(scope="session")
def leader_worker_sets(cluster: ApiServer) -> None:
    """The resource of leader worker sets, without its controller."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.hpaPodSelector",
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}, "scale": scale},
    }
    names = {"plural": "leaderworkersets", "singular": "leaderworkerset", "kind": "LeaderWorkerSet"}
    cluster.admin.create(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": f"leaderworkersets.{GROUPS}",
                "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/lws"},
            },
            "spec": {"group": GROUPS, "names": names, "scope": "Namespaced", "versions": [version]},
        }
    )
    wait_for(
        cluster, f"/apis/{GROUPS}/v1", lambda api: any(r["name"].endswith("/scale") for r in api["resources"])
    )


@pytest.fixture
def objects(cluster: ApiServer, namespace: str, custom_resources: None) -> Iterator[Objects]:
    """The custom resources of the test's namespace; they are taken away after it."""
    made = Objects(cluster, namespace)
    yield made
    made.clear()


@pytest.fixture
def operator_config(cluster: ApiServer, roles: None) -> Path:
    """A kubeconfig of the operator's service account."""
    return cluster.kubeconfig_file("operator", cluster.token("stoker", "stoker-operator"))


@pytest.fixture
def reader(cluster: ApiServer, roles: None) -> Path:
    """A kubeconfig of the collector's service account."""
    return cluster.kubeconfig_file("collector", cluster.token("stoker", "stoker-collector"))


@pytest.fixture
def writer(cluster: ApiServer, roles: None) -> Path:
    """A kubeconfig of the actuator's service account."""
    return cluster.kubeconfig_file("actuator", cluster.token("stoker", "stoker-actuator"))


@pytest.fixture
def admin_config(cluster: ApiServer) -> Path:
    """A kubeconfig with all rights."""
    return cluster.kubeconfig_file("admin")
