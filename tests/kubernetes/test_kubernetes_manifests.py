"""The deployed overlays as a real API server sees them: a dry run of server-side apply, defaults and all."""

from typing import Any

import pytest
from api_server import ApiServer, Refusal
from kustomized import OF_THE_PROMETHEUS_OPERATOR, OVERLAYS, rendered

PLURALS = {"NetworkPolicy": "networkpolicies"}
APPLY = "application/apply-patch+yaml"


def path_of(manifest: dict[str, Any]) -> str:
    group, kind = manifest["apiVersion"], manifest["kind"]
    base = f"/apis/{group}" if "/" in group else f"/api/{group}"
    namespace = manifest["metadata"].get("namespace")
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"{base}{within}/{PLURALS.get(kind, kind.lower() + 's')}/{manifest['metadata']['name']}"


def dry_run(cluster: ApiServer, manifest: dict[str, Any]) -> Any:
    query = "dryRun=All&fieldManager=test&force=true"
    return cluster.admin.call("PATCH", f"{path_of(manifest)}?{query}", manifest, APPLY)


def understood(cluster: ApiServer, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, which is written for current clusters, as this server knows it.

    Budgets became policy/v1 in Kubernetes 1.21, with the same fields as v1beta1; the end of finished jobs was
    behind a feature gate until then, and the rules of definitions until 1.25.
    """
    minor = int(cluster.admin.get("/version")["minor"].rstrip("+"))
    if minor < 25 and manifest["kind"] == "CustomResourceDefinition":
        return dict(without(manifest, "x-kubernetes-validations"))
    if minor >= 21:
        return manifest
    if manifest["kind"] == "PodDisruptionBudget":
        return manifest | {"apiVersion": "policy/v1beta1"}
    if manifest["kind"] == "Job":
        return manifest | {
            "spec": {k: v for k, v in manifest["spec"].items() if k != "ttlSecondsAfterFinished"}
        }
    return manifest


def without(value: Any, field: str) -> Any:
    if isinstance(value, dict):
        return {key: without(inner, field) for key, inner in value.items() if key != field}
    return [without(one, field) for one in value] if isinstance(value, list) else value


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_server_takes_every_object_and_keeps_every_field_of_it(cluster: ApiServer, overlay: str) -> None:
    # The kinds of the Prometheus operator are resources that only its own installation defines.
    objects = [one for one in rendered(overlay) if one["kind"] not in OF_THE_PROMETHEUS_OPERATOR]
    for manifest in objects:
        asked = understood(cluster, manifest)
        assert missing(asked, dry_run(cluster, asked)) == [], path_of(asked)
    assert len(objects) > 30


@pytest.mark.usefixtures("roles")
def test_a_dry_run_refuses_what_no_cluster_takes(cluster: ApiServer) -> None:
    deployment = next(one for one in rendered("dry-run") if one["kind"] == "Deployment")
    deployment["spec"]["template"]["metadata"]["labels"] = {"other": "label"}
    with pytest.raises(Refusal, match="selector"):
        dry_run(cluster, deployment)


def missing(asked: Any, kept: Any, path: str = "") -> list[str]:
    """Fields that were asked for and are not there: a server drops what it does not know without a word."""
    if isinstance(asked, dict):
        return [m for k, v in asked.items() for m in missing(v, (kept or {}).get(k), f"{path}.{k}")]
    if isinstance(asked, list):
        pairs = zip(asked, kept or [None] * len(asked), strict=True)
        return [m for n, (a, k) in enumerate(pairs) for m in missing(a, k, f"{path}[{n}]")]
    # Numbers and quantities are written anew.
    return [path] if asked is not None and kept is None else []
