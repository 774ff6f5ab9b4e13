"""Inventory, capacity and quotas of a Kubernetes cluster; the metrics of its servers are read by a metrics source.

Everything is watched: a poll makes one small request, which proves that the server answers and that the credential
is good, and reads the copies. Where the copies may be old, the poll has failed: nobody acts on an old inventory.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.alert import AlertKind
from services.cluster.client import Cluster, ClusterError, ClusterSettings
from services.cluster.mirror import Following, Key, Mirror
from services.cluster.workloads import (
    WORKLOADS,
    AcceleratorNames,
    Resource,
    Workload,
    kind_of,
    read_workload,
)
from services.collector.cluster_inventory import capacity_of, inventory_of, quotas_of
from services.collector.cluster_objects import (
    Autoscaler,
    Node,
    Pod,
    Quota,
    read_autoscaler,
    read_node,
    read_pod,
    read_quota,
)
from services.collector.source import Problem, Provides, Readings


class KubernetesSettings(BaseModel):
    """Which cluster, and how its objects are read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cluster: ClusterSettings = ClusterSettings()
    """Which cluster, and as whom."""
    workloads: Annotated[tuple[Resource, ...], Field(min_length=1)] = WORKLOADS
    """Resources that servers run as, each as group/version/plural; they need a scale subresource."""
    accelerators: AcceleratorNames = AcceleratorNames()
    """How nodes and pods say which accelerators they have and want."""
    first_list_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    """Wall seconds that the first poll waits for everything to be listed."""


class KubernetesSource:
    """Follows a cluster from its first poll on."""

    name: ClassVar[str] = "kubernetes"
    Settings: ClassVar[type[BaseModel]] = KubernetesSettings
    provides: ClassVar[frozenset[Provides]] = frozenset({Provides.INVENTORY, Provides.CAPACITY})

    def __init__(self, settings: KubernetesSettings, *, to_clock_s: Callable[[float], float]) -> None:
        self._settings = settings
        self._to_clock_s = to_clock_s
        self.cluster = Cluster(settings.cluster)
        names = settings.accelerators
        self._workloads: list[Mirror[Workload]] = [
            Mirror(self.cluster, kind_of(one).path, partial(read_workload, names=names), optional=True)
            for one in settings.workloads
        ]
        self._pods: Mirror[Pod] = Mirror(self.cluster, "/api/v1/pods", partial(read_pod, names=names))
        self._nodes: Mirror[Node] = Mirror(self.cluster, "/api/v1/nodes", partial(read_node, names=names))
        self._quotas: Mirror[Quota] = Mirror(
            self.cluster, "/api/v1/resourcequotas", partial(read_quota, names=names)
        )
        # Version 1 is what old and new servers have.
        self._autoscalers: Mirror[Autoscaler] = Mirror(
            self.cluster, "/apis/autoscaling/v1/horizontalpodautoscalers", read_autoscaler
        )
        self._ready_s: dict[Key, float] = {}
        self._following = Following(
            *self._workloads, self._pods, self._nodes, self._quotas, self._autoscalers
        )

    async def poll(self, now_s: float) -> Readings:
        try:
            if error := await self._following.error(self._settings.first_list_s):
                return self._failed(error)
            await self.cluster.call("GET", "/version")
        except ClusterError as error:
            return self._failed(error)
        self._ready_s = _first_ready_s(self._ready_s, self._pods.objects)
        pods = [
            pod if pod.ready_s is None else replace(pod, ready_s=self._ready_s[key])
            for key, pod in self._pods.objects.items()
        ]
        workloads = [one for mirror in self._workloads for one in mirror.objects.values()]
        autoscalers = self._autoscalers.objects.values()
        quotas = tuple(self._quotas.objects.values())
        inventory, claims = inventory_of(workloads, pods, autoscalers, quotas, self._to_clock_s, now_s)
        return Readings(
            self.name,
            self.provides,
            inventory=inventory,
            capacity=capacity_of(self._nodes.objects, pods, now_s),
            quotas=quotas_of(quotas, workloads, pods),
            problems=claims,
        )

    async def close(self) -> None:
        await self._following.close()
        await self.cluster.close()

    def _failed(self, error: ClusterError) -> Readings:
        problem = Problem(AlertKind.SOURCE_FAILED, self.name, str(error)[:3000])
        return Readings(self.name, self.provides, problems=(problem,))


def _first_ready_s(before: Mapping[Key, float], pods: Mapping[Key, Pod]) -> dict[Key, float]:
    """When each pod was first ready: one that was unready for a while has not started again.

    A time from before it was made is that of a pod that had its name, as those of a leader worker set do.
    """
    found = {}
    for key, pod in pods.items():
        first_s = before.get(key)
        if first_s is None or first_s < pod.created_s:
            first_s = pod.ready_s
        if first_s is not None:
            found[key] = first_s
    return found
