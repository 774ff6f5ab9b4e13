"""Disruption budgets: how far replicas may be taken away now, of all that are taken before a budget shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.cluster.client import Cluster, Refused
from services.cluster.workloads import Workload, selects

Key = tuple[str, str]
"""Namespace and name of a budget."""


@dataclass(frozen=True)
class Permit:
    """How many replicas are to be left, and the budget that lets no more go.

    pods: how many go; versions: of the budgets that count them, each as it was read.
    """

    replicas: int
    budget: str = ""
    pods: int = 0
    versions: Mapping[Key, str] = field(default_factory=dict)


class Budgets:
    """Reads budgets, whose statuses lag, and counts what was taken since each of them last said something new."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._api = "policy/v1"
        self._taken: dict[Key, tuple[str, int]] = {}

    async def permit(self, workload: Workload, serving: int, now: int, wanted: int) -> Permit:
        """How far down to go now; raises Refused or Unreachable.

        Parameters: serving, replicas that serve, of `now` that are asked for. What is not done is to be released.
        """
        limits: list[tuple[int, Key]] = []
        versions: dict[Key, str] = {}
        for one in await self._list(workload.namespace):
            if selects(one["spec"].get("selector") or {}, workload.pod_labels):
                key = workload.namespace, one["metadata"]["name"]
                versions[key] = one["metadata"]["resourceVersion"]
                if self._taken.get(key, ("", 0))[0] != versions[key]:
                    self._taken[key] = versions[key], 0
                allowed = int((one.get("status") or {}).get("disruptionsAllowed", 0))
                limits.append((allowed - self._taken[key][1], key))
        if not limits:
            return Permit(wanted)
        pods, (_, budget) = min(limits)
        left = max(wanted, min(now, serving - max(0, pods) // workload.pods))
        permit = Permit(left, budget, max(0, min(serving, now) - left) * workload.pods, versions)
        self._count(permit, permit.pods)
        return permit

    def release(self, permit: Permit) -> None:
        """Say that what was permitted was not done."""
        self._count(permit, -permit.pods)

    def _count(self, permit: Permit, pods: int) -> None:
        for key, version in permit.versions.items():
            seen, taken = self._taken[key]
            if seen == version:
                self._taken[key] = version, taken + pods

    async def _list(self, namespace: str) -> Sequence[dict[str, Any]]:
        path = f"/apis/{self._api}/namespaces/{namespace}/poddisruptionbudgets"
        try:
            found: Sequence[dict[str, Any]] = (await self._cluster.call("GET", path))["items"]
            return found
        except Refused as refusal:
            if refusal.status != 404 or self._api != "policy/v1":
                raise
            # A server from before 1.21.
            self._api = "policy/v1beta1"
            return await self._list(namespace)
