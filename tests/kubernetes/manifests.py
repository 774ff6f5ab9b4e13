"""What a test deploys: inference servers as Deployments; and where what the project deploys is."""

from pathlib import Path
from typing import Any

from kubelet import GPU, TYPE

DEPLOYED = Path(__file__).parents[2] / "deploy" / "kubernetes"
ROLES = (*sorted((DEPLOYED / "base" / "rbac").glob("*.yaml")), DEPLOYED / "operator" / "rbac.yaml")
GROUPS = "leaderworkerset.x-k8s.io"


def deployment(
    namespace: str,
    name: str,
    *,
    replicas: int = 1,
    kind: str = "H100",
    cards: int = 1,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    args: tuple[str, ...] = ("--max-num-seqs=64",),
) -> dict[str, Any]:
    """A Deployment whose pods ask for cards of one type."""
    resources = {"requests": {GPU: str(cards)}, "limits": {GPU: str(cards)}}
    engine = {
        "name": "engine",
        "image": "registry.invalid/engine:1",
        "args": list(args),
        "resources": resources,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels or {},
            "annotations": annotations or {},
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [engine],
                    "nodeSelector": {TYPE: kind},
                    "terminationGracePeriodSeconds": 1,
                },
            },
        },
    }


def variant(
    namespace: str, server: str, accelerator: str, *, replicas: int = 1, cards: int = 1, **more: Any
) -> dict[str, Any]:
    """A variant of a server under our own marks, its accelerator named after its type of card."""
    annotations = {"stoker.dev/server": server, "stoker.dev/accelerator": accelerator}
    annotations |= more.pop("annotations", {})
    name = f"{server}-{accelerator}".lower().replace("/", "-")
    return deployment(
        namespace, name, replicas=replicas, kind=accelerator, cards=cards, annotations=annotations, **more
    )


def group(namespace: str, server: str) -> dict[str, Any]:
    """A server whose replicas are groups of two pods with four cards each."""
    made = variant(namespace, server, "H100", cards=4)["spec"]["template"]
    return {
        "apiVersion": f"{GROUPS}/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {
            "name": f"{server}-group",
            "namespace": namespace,
            "annotations": {
                "stoker.dev/server": server,
                "stoker.dev/max-batch-by": "argument:--max-num-seqs",
            },
        },
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "workerTemplate": made}},
    }


def path_of(namespace: str, name: str) -> str:
    return f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
