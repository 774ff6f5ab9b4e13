"""The custom resources of `inferno.platform.ai/v1alpha1` as the operator reads them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

API = "inferno.platform.ai/v1alpha1"
KINDS = {
    "Accelerator": "accelerators",
    "Model": "models",
    "ServiceClass": "serviceclasses",
    "Server": "servers",
    "Capacity": "capacities",
    "Optimizer": "optimizers",
}
"""The kinds and the plural of each."""
FINALIZER = "stoker.dev/declared"
"""Keeps a deleted Server until a fleet without it has been declared."""

Key = tuple[str, str, str]
"""Kind, namespace and name of an object."""


@dataclass(frozen=True)
class Resource:
    """One object; `created` is its creation time as Kubernetes writes it, which sorts by age."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created: str
    deleting: bool
    finalizers: tuple[str, ...]
    spec: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return self.kind, self.namespace, self.name

    @property
    def path(self) -> str:
        """Where the API server has it."""
        return f"{collection(self.kind, self.namespace)}/{self.name}"

    @property
    def shown(self) -> str:
        """How messages name it."""
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def age(self) -> tuple[str, str, str]:
        """Sorts the eldest first."""
        return self.created, self.namespace, self.name


def collection(kind: str, namespace: str | None) -> str:
    """The list of a kind in one namespace, or in all of them."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API}{within}/{KINDS[kind]}"


def read_resource(item: Mapping[str, Any]) -> Resource:
    """An object from its JSON."""
    meta = item["metadata"]
    return Resource(
        kind=str(item["kind"]),
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=int(meta["generation"]),
        resource_version=meta["resourceVersion"],
        created=meta["creationTimestamp"],
        deleting="deletionTimestamp" in meta,
        finalizers=tuple(meta.get("finalizers") or ()),
        spec=item.get("spec") or {},
        status=item.get("status") or {},
    )
