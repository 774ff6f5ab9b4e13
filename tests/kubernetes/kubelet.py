"""Plays the scheduler and the kubelets: binds pods to nodes that have the cards, makes them ready, ends them.

A pod whose node selector or cards no node meets is marked unschedulable, as the scheduler would. What else befalls
pods is set by the name of what they belong to: they may stay unready until released, or fail to pull their image.
"""

import threading
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import urllib3
from api_server import Admin, Refusal

GPU = "nvidia.com/gpu"
TYPE = "nvidia.com/gpu.product"
TURN_S = 0.05


class Behaviour(Enum):
    """What becomes of a pod that was bound to a node."""

    READY = "ready"
    SLOW = "slow"
    NO_IMAGE = "no image"


class Kubelet:
    """Use as `with Kubelet(admin):`; its thread looks at all pods some twenty times a second."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._behaviours: dict[str, Behaviour] = {}
        self.lingering: set[str] = set()
        """Prefixes of pods that do not end when they are deleted."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self.failure: Exception | None = None

    def __enter__(self) -> "Kubelet":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        if self.failure is not None:
            raise self.failure

    def behave(self, prefix: str, behaviour: Behaviour) -> None:
        """Pods whose names begin with `prefix` behave like this from now on."""
        self._behaviours[prefix] = behaviour

    def forget(self) -> None:
        """Let every pod behave well again."""
        self._behaviours.clear()
        self.lingering.clear()

    def _run(self) -> None:
        while not self._stop.wait(TURN_S):
            try:
                # The server may be down or going down, which is what some tests are about.
                with suppress(urllib3.exceptions.HTTPError, ConnectionError):
                    self._turn()
            except Refusal as refusal:
                if refusal.status < 500 and refusal.status not in (404, 409, 429):
                    self.failure = refusal
                    return

    def _turn(self) -> None:
        pods = self._admin.get("/api/v1/pods?resourceVersion=0")["items"]
        nodes = self._admin.get("/api/v1/nodes?resourceVersion=0")["items"]
        free = {node["metadata"]["name"]: _cards(node["status"]["allocatable"]) for node in nodes}
        for pod in pods:
            if (on := pod["spec"].get("nodeName")) in free:
                free[on] -= _wanted(pod)
        for pod in pods:
            with suppress(Refusal):
                self._look_after(pod, nodes, free)

    def _look_after(self, pod: dict[str, Any], nodes: list[dict[str, Any]], free: dict[str, int]) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        if "deletionTimestamp" in meta:
            if not any(meta["name"].startswith(prefix) for prefix in self.lingering):
                self._admin.delete(path, 0)
            return
        if "nodeName" not in pod["spec"]:
            self._bind(pod, path, nodes, free)
            return
        behaviour = next(
            (b for p, b in self._behaviours.items() if meta["name"].startswith(p)), Behaviour.READY
        )
        status = _status(pod, behaviour)
        have = pod.get("status", {})
        waits = [one.get("state", {}).get("waiting") for one in have.get("containerStatuses", [])]
        ready = {"type": "Ready", "status": "True"}.items()
        is_ready = any(ready <= condition.items() for condition in have.get("conditions", []))
        wants = [one["state"].get("waiting") for one in status["containerStatuses"]]
        if is_ready != (behaviour is Behaviour.READY) or waits != wants:
            self._admin.patch(f"{path}/status", {"status": status})

    def _bind(
        self, pod: dict[str, Any], path: str, nodes: list[dict[str, Any]], free: dict[str, int]
    ) -> None:
        wanted, selector = _wanted(pod), pod["spec"].get("nodeSelector", {})
        for node in nodes:
            name, labels = node["metadata"]["name"], node["metadata"].get("labels", {})
            usable = not node["spec"].get("unschedulable") and selector.items() <= labels.items()
            if usable and free[name] >= wanted:
                free[name] -= wanted
                target = {"apiVersion": "v1", "kind": "Node", "name": name}
                binding = {"metadata": {"name": pod["metadata"]["name"]}, "target": target}
                self._admin.post(f"{path}/binding", binding)
                return
        if not any(one.get("reason") == "Unschedulable" for one in pod["status"].get("conditions", [])):
            message = f"0/{len(nodes)} nodes are available: {len(nodes)} Insufficient {GPU}."
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
            }
            self._admin.patch(
                f"{path}/status", {"status": {"conditions": [condition | _now("lastTransitionTime")]}}
            )


def node(name: str, kind: str, cards: int, ready: bool = True) -> dict[str, Any]:
    """A node with some cards of one type."""
    condition = {"type": "Ready", "status": "True" if ready else "False", "reason": "Test"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {TYPE: kind}},
        "spec": {},
        "status": {
            "allocatable": {GPU: str(cards), "cpu": "64", "pods": "110"},
            "capacity": {GPU: str(cards), "cpu": "64", "pods": "110"},
            "conditions": [condition | _now("lastHeartbeatTime", "lastTransitionTime")],
        },
    }


def _status(pod: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    containers = pod["spec"]["containers"]
    ready = behaviour is Behaviour.READY
    state: dict[str, Any] = {"running": _now("startedAt")}
    if behaviour is Behaviour.NO_IMAGE:
        state = {
            "waiting": {"reason": "ImagePullBackOff", "message": f"cannot pull {containers[0]['image']}"}
        }
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {
            "type": "Ready",
            "status": "True" if ready else "False",
            "reason": None if ready else "ContainersNotReady",
        },
    ]
    statuses = [
        {
            "name": c["name"],
            "ready": ready,
            "restartCount": 0,
            "image": c["image"],
            "imageID": "",
            "state": state,
        }
        for c in containers
    ]
    return {
        "phase": "Running" if ready or behaviour is Behaviour.SLOW else "Pending",
        "conditions": [one | _now("lastTransitionTime") for one in conditions],
        "containerStatuses": statuses,
    } | _now("startTime")


def _now(*keys: str) -> dict[str, str]:
    return dict.fromkeys(keys, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def _cards(resources: dict[str, str]) -> int:
    return int(resources.get(GPU, "0"))


def _wanted(pod: dict[str, Any]) -> int:
    return sum(_cards(c.get("resources", {}).get("requests", {})) for c in pod["spec"]["containers"])
