"""A Kubernetes cluster as a target: the scale of the workload of each variant, and its batch limit.

Each write reads the scale, sees that it still is what the decision was made from, and is refused by the server when
somebody wrote in between. Replicas that serve are taken away only as far as disruption budgets allow.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.actuation import FailureReason, VariantScale
from schemas.telemetry import InventoryObserved
from services.actuator.target import Applied, Failed
from services.actuator.targets.kubernetes_batch import set_batch
from services.actuator.targets.kubernetes_budgets import Budgets, Permit
from services.cluster.client import (
    FIELD_MANAGER,
    MERGE_PATCH,
    RETRY_S,
    Cluster,
    ClusterError,
    ClusterSettings,
    Refused,
)
from services.cluster.mirror import Following, Mirror
from services.cluster.workloads import (
    WORKLOADS,
    AcceleratorNames,
    Kind,
    Resource,
    Workload,
    kind_of,
    read_workload,
)

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
DRAINING = "stoker.dev/draining"
Marks = tuple[str | None, str | None]
"""A pod's deletion cost and its label of draining, nothing for what it does not carry."""
_REASONS = {
    401: FailureReason.UNAUTHORIZED,
    403: FailureReason.FORBIDDEN,
    404: FailureReason.NOT_FOUND,
    409: FailureReason.CONFLICT,
    400: FailureReason.REFUSED,
    422: FailureReason.REFUSED,
}


class KubernetesSettings(BaseModel):
    """Which cluster, and how replicas are taken away."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cluster: ClusterSettings = ClusterSettings()
    """Which cluster, and as whom."""
    workloads: Annotated[tuple[Resource, ...], Field(min_length=1)] = WORKLOADS
    """Resources that servers run as, each as group/version/plural; the collector's setting of the same name."""
    accelerators: AcceleratorNames = AcceleratorNames()
    """How pods say which accelerators they want; the collector's setting of the same name."""
    drain_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Wall seconds between marking pods as draining and removing them, for routers that look at the mark; well under
    the cycle. By default their own termination grace period has to do."""
    first_list_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    """Wall seconds that the first write waits for the workloads to be listed."""


@dataclass(frozen=True)
class _Step:
    """What one variant's scale came to: the replicas in force, the version, whether it was written."""

    replicas: int
    version: str
    changed: bool


class KubernetesTarget:
    """Finds workloads in a copy that it keeps by watching, and writes each under preconditions."""

    name: ClassVar[str] = "kubernetes"
    Settings: ClassVar[type[BaseModel]] = KubernetesSettings
    writes: ClassVar[bool] = True

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._cluster = Cluster(settings.cluster)
        kinds = [kind_of(one) for one in settings.workloads]
        read = partial(read_workload, names=settings.accelerators)
        self._workloads: dict[Kind, Mirror[Workload]] = {
            kind: Mirror(self._cluster, kind.path, read, optional=True) for kind in kinds
        }
        self._following = Following(*self._workloads.values())
        self._budgets = Budgets(self._cluster)

    async def apply(
        self, server: str, scales: Sequence[VariantScale], inventory: InventoryObserved
    ) -> Applied | Failed:
        try:
            if error := await self._following.error(self._settings.first_list_s):
                raise error
            return await self._apply(server, scales, inventory)
        except Refused as refusal:
            return Failed(_REASONS.get(refusal.status, FailureReason.UNREACHABLE), str(refusal))
        except ClusterError as error:
            return Failed(FailureReason.UNREACHABLE, str(error))

    async def trouble(self) -> str | None:
        """Why nothing could be written now, as far as reading shows it."""
        error = await self._following.error(self._settings.first_list_s)
        return None if error is None else str(error)

    async def close(self) -> None:
        await self._following.close()
        await self._cluster.close()

    async def _apply(
        self, server: str, scales: Sequence[VariantScale], inventory: InventoryObserved
    ) -> Applied | Failed:
        found = self._variants_of(server)
        held = {v.accelerator: v for v in inventory.variants}
        if missing := sorted(s.accelerator for s in scales if s.replicas and s.accelerator not in found):
            there = ", ".join(sorted(found)) or "nothing"
            message = f"no workload is marked as {server!r} on {', '.join(missing)}; there is: {there}"
            return Failed(FailureReason.NOT_FOUND, message)

        def loss(scale: VariantScale) -> int:
            have = held.get(scale.accelerator)
            return (have.desired if have else 0) - scale.replicas

        changed, version, in_force = False, None, []
        # Growing variants first: if a later write fails, capacity was added and none was taken.
        for scale in sorted(scales, key=loss):
            if scale.accelerator not in found:
                continue
            kind, workload = found[scale.accelerator]
            have = held.get(scale.accelerator)
            if scale.replicas and scale.max_batch not in (None, workload.max_batch):
                batch = await set_batch(self._cluster, kind, workload, scale.max_batch)
                if isinstance(batch, Failed):
                    return batch
                changed |= batch
            step = await self._scale(kind, workload, have.desired if have else 0, scale.replicas)
            if isinstance(step, Failed):
                return step
            in_force.append(scale.model_copy(update={"replicas": step.replicas}))
            changed |= step.changed
            version = step.version
        scaled = tuple(sorted(in_force, key=lambda one: one.accelerator))
        return Applied(changed, version, scaled=scaled)

    def _variants_of(self, server: str) -> dict[str, tuple[Kind, Workload]]:
        """The workload of each variant; of several that claim one the first by namespace and name, as collected."""
        found: dict[str, tuple[Kind, Workload]] = {}
        claims = [
            (kind, one)
            for kind, mirror in self._workloads.items()
            for one in mirror.objects.values()
            if one.server == server
        ]
        for kind, one in sorted(claims, key=lambda claim: (claim[1].namespace, claim[1].name)):
            found.setdefault(one.accelerator, (kind, one))
        return found

    async def _scale(self, kind: Kind, workload: Workload, seen: int, wanted: int) -> _Step | Failed:
        """Set the replicas, provided that they still are as seen; pods that stay for all that are not marked."""
        marked: dict[str, Marks] = {}
        try:
            step = await self._set(kind, workload, seen, wanted, marked)
        except Refused:
            await self._spare(workload, marked)
            raise
        if isinstance(step, Failed):
            await self._spare(workload, marked)
        return step

    async def _set(
        self, kind: Kind, workload: Workload, seen: int, wanted: int, marked: dict[str, Marks]
    ) -> _Step | Failed:
        """Set the replicas; `marked` takes the pods that were marked to go, and what they carried before."""
        path = f"{kind.object_path(workload.namespace, workload.name)}/scale"
        for pause_s in (*RETRY_S, None):
            scale = await self._cluster.call("GET", path)
            now = int(scale.get("spec", {}).get("replicas", 0))
            version = scale["metadata"]["resourceVersion"]
            if now == wanted:
                return _Step(now, version, changed=False)
            if now != seen:
                message = f"{path}: another writer set {now} replicas where {seen} were seen; not overwritten"
                return Failed(FailureReason.CONFLICT, message)
            permit, living = Permit(wanted), list[dict[str, Any]]()
            if wanted < now:
                living = await self._living(workload)
                # The workload's own count of what serves lags behind its pods; of two the larger loses less.
                serving = max(ceil(sum(map(_is_ready, living)) / workload.pods), workload.ready or 0)
                permit = await self._budgets.permit(workload, serving, now, wanted)
                if permit.replicas == now:
                    message = f"PodDisruptionBudget {permit.budget} lets no replica of {workload.name} go now"
                    return Failed(FailureReason.REFUSED, message)
            scale["spec"] = {"replicas": permit.replicas}
            try:
                # Only of a Deployment can it be said which pods go.
                if living and permit.replicas and workload.kind == "Deployment":
                    await self._drain(workload, living, now - permit.replicas, marked)
                written = await self._cluster.call("PUT", path, {"fieldManager": FIELD_MANAGER}, scale)
                return _Step(permit.replicas, written["metadata"]["resourceVersion"], changed=True)
            except ClusterError as error:
                self._budgets.release(permit)
                if not (isinstance(error, Refused) and error.status == 409) or pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _drain(
        self, workload: Workload, living: Sequence[dict[str, Any]], count: int, marked: dict[str, Marks]
    ) -> None:
        """Mark the pods that shall go: those of the least deletion cost, then the newest, with the coldest caches."""
        serving = [pod["metadata"] for pod in living if _is_ready(pod)]
        # Those that do not serve go first.
        going = max(0, count - (len(living) - len(serving)))
        newest = sorted(serving, key=lambda meta: meta["creationTimestamp"], reverse=True)
        for meta in sorted(newest, key=_cost)[:going]:
            await self._mark(workload, meta["name"], (str(min(-1, _cost(meta))), "true"))
            before = (
                (meta.get("annotations") or {}).get(DELETION_COST),
                (meta.get("labels") or {}).get(DRAINING),
            )
            marked.setdefault(meta["name"], before)
        if going:
            await asyncio.sleep(self._settings.drain_s)

    async def _spare(self, workload: Workload, marked: Mapping[str, Marks]) -> None:
        """Give pods that were marked to go, and do not, the marks that they had: routers avoid the marked."""
        for name, before in marked.items():
            # Where even this fails, the next step down marks the same pods again.
            with suppress(ClusterError):
                await self._mark(workload, name, before)

    async def _mark(self, workload: Workload, name: str, marks: Marks) -> None:
        cost, draining = marks
        body = {"metadata": {"annotations": {DELETION_COST: cost}, "labels": {DRAINING: draining}}}
        await self._cluster.call("PATCH", f"{_pods_path(workload)}/{name}", None, body, MERGE_PATCH)

    async def _living(self, workload: Workload) -> list[dict[str, Any]]:
        """The workload's pods but for those that end already."""
        selector = ",".join(f"{key}={value}" for key, value in sorted(workload.pod_labels.items()))
        found = await self._cluster.call("GET", _pods_path(workload), {"labelSelector": selector})
        return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]


def _pods_path(workload: Workload) -> str:
    return f"/api/v1/namespaces/{workload.namespace}/pods"


def _cost(meta: dict[str, Any]) -> int:
    text = (meta.get("annotations") or {}).get(DELETION_COST, "0")
    return int(text) if text.removeprefix("-").isdecimal() else 0


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
