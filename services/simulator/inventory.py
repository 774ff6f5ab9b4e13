"""What the simulated platform says about itself: servers, variants, replicas and accelerators."""

from dataclasses import dataclass

from services.simulator.fleet import Fleet
from services.simulator.server import Pod, PodState, Variant


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica; times in Unix seconds, None until ready."""

    name: str
    accelerator: str
    state: str
    created_at_s: float
    ready_at_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class VariantView:
    """One variant: the target set, and how many replicas are in which state."""

    accelerator: str
    accelerator_type: str
    units: int
    desired: int
    ready: int
    pending: int
    starting: int
    terminating: int
    max_batch: int
    resource_version: int


@dataclass(frozen=True, slots=True)
class ServerView:
    """One server; `arrivals` says where its requests come from."""

    name: str
    model: str
    arrivals: str
    variants: list[VariantView]
    replicas: list[ReplicaView]


@dataclass(frozen=True, slots=True)
class AcceleratorView:
    """Units of one accelerator type: all there are, and those that no replica holds."""

    type: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """The whole fleet at `now_s` (Unix seconds)."""

    now_s: float
    servers: list[ServerView]
    accelerators: list[AcceleratorView]


def take_inventory(fleet: Fleet) -> Inventory:
    """The fleet's inventory at its present time."""
    servers = [
        ServerView(
            name=server.name,
            model=server.model,
            arrivals=server.source,
            variants=[view_variant(variant) for variant in server.variants.values()],
            replicas=[_view_replica(pod, fleet.origin_s) for pod in server.pods()],
        )
        for server in fleet.servers.values()
    ]
    accelerators = [AcceleratorView(kind, fleet.capacity[kind], fleet.free[kind]) for kind in fleet.capacity]
    return Inventory(now_s=fleet.now_s, servers=servers, accelerators=accelerators)


def view_variant(variant: Variant) -> VariantView:
    """One variant as it is now."""
    return VariantView(
        accelerator=variant.accelerator,
        accelerator_type=variant.description.accelerator_type,
        units=variant.description.units,
        desired=variant.desired,
        ready=variant.count(PodState.READY),
        pending=variant.count(PodState.PENDING),
        starting=variant.count(PodState.STARTING),
        terminating=variant.count(PodState.TERMINATING),
        max_batch=variant.max_batch,
        resource_version=variant.resource_version,
    )


def _view_replica(pod: Pod, origin_s: float) -> ReplicaView:
    return ReplicaView(
        name=pod.name,
        accelerator=pod.variant.accelerator,
        state=pod.state.value,
        created_at_s=origin_s + pod.created_at_s,
        ready_at_s=None if pod.ready_at_s is None else origin_s + pod.ready_at_s,
        reason=pod.reason,
    )
