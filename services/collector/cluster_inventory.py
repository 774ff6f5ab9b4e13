"""From a cluster's objects to the inventory of servers and the cards by type. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from schemas.alert import AlertKind
from services.cluster.workloads import Workload
from services.collector.cluster_objects import Autoscaler, Node, Pod, Quota, seconds
from services.collector.source import (
    CapacityReading,
    Problem,
    QuotaReading,
    ReplicaState,
    ReplicaStatus,
    ServerInventory,
    VariantReading,
)

Clock = Callable[[float], float]


def inventory_of(
    workloads: Iterable[Workload],
    pods: Iterable[Pod],
    autoscalers: Iterable[Autoscaler],
    quotas: Iterable[Quota],
    to_clock_s: Clock,
    now_s: float,
) -> tuple[tuple[ServerInventory, ...], tuple[Problem, ...]]:
    """Every marked server with its variants and replicas.

    Parameters: to_clock_s, maps the objects' wall time to control time; now_s, control time of the view. Two
    workloads that claim the same variant are a problem, and the first by namespace and name counts. A quota that
    counts some pods only may not count a variant's, so it is none of its.
    """
    limited: dict[str, list[str]] = {}
    for quota in quotas:
        if not quota.scoped:
            limited.setdefault(quota.namespace, []).append(_name_of(quota))
    owned: dict[tuple[str, str, str], list[Pod]] = {}
    for pod in pods:
        if pod.owner is not None and pod.counts:
            owned.setdefault((pod.owner[0], pod.namespace, pod.owner[1]), []).append(pod)
    scaled_by = {one.scales: one.said for one in autoscalers}
    servers: dict[str, dict[str, tuple[Workload, Sequence[Pod]]]] = {}
    problems = []
    for workload in sorted(workloads, key=lambda one: (one.namespace, one.name)):
        variants = servers.setdefault(workload.server, {})
        if (other := variants.get(workload.accelerator)) is not None:
            text = (
                f"{other[0].namespace}/{other[0].name} and {workload.namespace}/{workload.name} both claim to be "
                f"server {workload.server!r} on {workload.accelerator}; only the first counts"
            )
            problems.append(
                Problem(AlertKind.VARIANT_CLAIMED_TWICE, f"{workload.namespace}/{workload.name}", text)
            )
            continue
        key = (workload.kind, workload.namespace, workload.name)
        variants[workload.accelerator] = (workload, owned.get(key, ()))
    found = tuple(
        ServerInventory(
            name,
            now_s,
            tuple(
                replace(
                    _variant(one, have, scaled_by.get((one.kind, one.namespace, one.name)), to_clock_s),
                    quotas=tuple(sorted(limited.get(one.namespace, ()))),
                )
                for one, have in held.values()
            ),
            tuple(
                _status(pod, accelerator, to_clock_s)
                for accelerator, (_, have) in held.items()
                for pod in have
            ),
            any(one.paused for one, _ in held.values()),
        )
        for name, held in servers.items()
    )
    return found, tuple(problems)


def quotas_of(
    quotas: Iterable[Quota], workloads: Iterable[Workload], pods: Iterable[Pod]
) -> tuple[QuotaReading, ...]:
    """Quotas with what other pods than those of marked workloads use of them.

    Pods that could not even be made are nobody's use, so this is not told by what servers are asked to have.
    """
    marked = {(one.kind, one.namespace, one.name) for one in workloads}
    ours: Counter[str] = Counter()
    for pod in pods:
        if pod.owner is not None and (pod.owner[0], pod.namespace, pod.owner[1]) in marked:
            ours[pod.namespace] += pod.cards
    return tuple(
        QuotaReading(_name_of(one), one.cards, one.used, max(0, one.used - ours[one.namespace]))
        for one in quotas
    )


def _name_of(quota: Quota) -> str:
    return f"{quota.namespace}/{quota.name}"


def capacity_of(
    nodes: Mapping[tuple[str, str], Node], pods: Iterable[Pod], now_s: float
) -> tuple[CapacityReading, ...]:
    """Cards by type: all that ready nodes offer, and those of open nodes that no pod has asked for."""
    used: dict[str, int] = {}
    for pod in pods:
        if pod.node is not None:
            used[pod.node] = used.get(pod.node, 0) + pod.cards
    total: dict[str, int] = {}
    free: dict[str, int] = {}
    for (_, name), node in nodes.items():
        total[node.type] = total.get(node.type, 0) + node.cards
        left = max(0, node.cards - used.get(name, 0)) if node.open else 0
        free[node.type] = free.get(node.type, 0) + left
    return tuple(CapacityReading(kind, now_s, total[kind], free[kind]) for kind in sorted(total))


def _variant(
    workload: Workload, pods: Sequence[Pod], autoscaler: str | None, to_clock_s: Clock
) -> VariantReading:
    trouble = workload.trouble
    states = [pod.state for pod in pods]
    ready = workload.ready if workload.ready is not None and not pods else states.count(ReplicaState.READY)
    return VariantReading(
        accelerator=workload.accelerator,
        desired=workload.desired,
        ready=ready,
        # Also those asked for that could not even be made.
        pending=max(0, workload.desired - ready),
        terminating=states.count(ReplicaState.TERMINATING),
        max_batch=workload.max_batch,
        resource_version=workload.resource_version,
        batch_settable=workload.max_batch_by is not None,
        autoscaler=autoscaler,
        trouble=None if trouble is None else trouble[0],
        trouble_since_s=None if trouble is None else to_clock_s(seconds(trouble[1])),
    )


def _status(pod: Pod, accelerator: str, to_clock_s: Clock) -> ReplicaStatus:
    return ReplicaStatus(
        pod.name,
        accelerator,
        pod.state,
        to_clock_s(pod.created_s),
        None if pod.ready_s is None else to_clock_s(pod.ready_s),
        pod.reason,
    )
