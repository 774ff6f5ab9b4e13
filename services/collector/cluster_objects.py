"""What is kept of a cluster's pods, nodes, quotas and autoscalers. Pure; times are wall time in Unix seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.cluster.workloads import AcceleratorNames, cards_of
from services.collector.source import ReplicaState

_GROUP, _WORKER = "leaderworkerset.sigs.k8s.io/name", "leaderworkerset.sigs.k8s.io/worker-index"
_HASH = "pod-template-hash"


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod; `owner` is the kind and name of the workload that it belongs to.

    `counts` is False for the workers of a group, whose leader stands for the replica.
    """

    name: str
    namespace: str
    owner: tuple[str, str] | None
    node: str | None
    cards: int
    state: ReplicaState
    created_s: float
    ready_s: float | None
    reason: str | None
    counts: bool


@dataclass(frozen=True, slots=True)
class Node:
    """One node with accelerators; `open` when new pods may be bound to it."""

    type: str
    cards: int
    open: bool


@dataclass(frozen=True, slots=True)
class Quota:
    """A namespace's quota on accelerators; `scoped` when it counts some of the namespace's pods only."""

    namespace: str
    name: str
    cards: int
    used: int
    scoped: bool


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """Something that sets a workload's replicas: `scales` is the workload's kind, namespace and name."""

    scales: tuple[str, str, str]
    said: str


def read_pod(item: Mapping[str, Any], names: AcceleratorNames) -> Pod | None:
    """A pod; nothing when it has ended and holds no cards any more."""
    meta, spec, status = item["metadata"], item.get("spec", {}), item.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    is_ready = ready.get("status") == "True"
    labels = meta.get("labels") or {}
    if "deletionTimestamp" in meta:
        state = ReplicaState.TERMINATING
    elif is_ready:
        state = ReplicaState.READY
    else:
        state = ReplicaState.STARTING if spec.get("nodeName") else ReplicaState.PENDING
    return Pod(
        name=meta["name"],
        namespace=meta["namespace"],
        owner=_owner(meta, labels),
        node=spec.get("nodeName"),
        cards=cards_of(spec, names),
        state=state,
        created_s=seconds(meta["creationTimestamp"]),
        ready_s=seconds(ready["lastTransitionTime"])
        if is_ready and ready.get("lastTransitionTime")
        else None,
        reason=None if is_ready else _reason(conditions, status),
        counts=labels.get(_WORKER, "0") == "0",
    )


def read_node(item: Mapping[str, Any], names: AcceleratorNames) -> Node | None:
    """A node; nothing when it has no accelerators, does not say which, or is not ready."""
    status = item.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    cards = names.cards(status.get("allocatable") or {})
    kind = names.type_of(item["metadata"].get("labels") or {})
    if not ready or not cards or kind is None:
        return None
    return Node(kind, cards, not item.get("spec", {}).get("unschedulable", False))


def read_quota(item: Mapping[str, Any], names: AcceleratorNames) -> Quota | None:
    """A quota on accelerators; nothing when it limits other things only."""
    status = item.get("status") or {}
    hard, used = status.get("hard") or {}, status.get("used") or {}
    limited = [name for name in names.resources if f"requests.{name}" in hard]
    if not limited:
        return None

    def total(of: Mapping[str, str]) -> int:
        return names.cards({name: of.get(f"requests.{name}", "0") for name in limited})

    meta, spec = item["metadata"], item.get("spec") or {}
    scoped = bool(spec.get("scopes") or spec.get("scopeSelector"))
    return Quota(meta["namespace"], meta["name"], total(hard), total(used), scoped)


def read_autoscaler(item: Mapping[str, Any]) -> Autoscaler:
    """A horizontal pod autoscaler, named by what made it where that is something else, as with KEDA."""
    meta, target = item["metadata"], item["spec"]["scaleTargetRef"]
    said = f"HorizontalPodAutoscaler {meta['name']}"
    for owner in meta.get("ownerReferences") or ():
        said = f"{owner['kind']} {owner['name']} through {said}"
    return Autoscaler((target["kind"], meta["namespace"], target["name"]), said)


def _owner(meta: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[str, str] | None:
    if _GROUP in labels:
        return "LeaderWorkerSet", labels[_GROUP]
    for owner in meta.get("ownerReferences") or ():
        if owner.get("controller"):
            # A Deployment's replica sets are named after it and the hash of their pods' template.
            if owner["kind"] == "ReplicaSet" and _HASH in labels:
                return "Deployment", str(owner["name"]).removesuffix(f"-{labels[_HASH]}")
            return owner["kind"], owner["name"]
    return None


def _reason(conditions: Mapping[str, Mapping[str, Any]], status: Mapping[str, Any]) -> str | None:
    """Why a pod is not ready, in the platform's words: the scheduler's, then those of its containers."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason"):
        return f"{scheduled['reason']}: {scheduled.get('message', '')}"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return None


def seconds(text: str) -> float:
    """Unix seconds of a time as the platform writes it."""
    return datetime.fromisoformat(text).timestamp()
