"""What the fleet has: the current allocation of each server, and the cards that it may use."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from schemas.fleet import FleetDeclared, Quota, Server
from schemas.telemetry import VariantInventory
from services.optimizer.planning import OptimizerSettings
from services.optimizer.problem import Held
from services.optimizer.state import State


class Catalogue:
    """A fleet's parts by name."""

    def __init__(self, fleet: FleetDeclared) -> None:
        self.accelerators = {a.name: a for a in fleet.accelerators}
        self.models = {m.name: m for m in fleet.models}
        self.classes = {c.name: c for c in fleet.service_classes}
        self._counts = {
            (m.name, p.accelerator): p.accelerator_count for m in fleet.models for p in m.profiles
        }

    def cost_per_replica(self, model: str, accelerator: str) -> float:
        """Cost per hour of one replica; 0 on an accelerator that is not declared."""
        known = self.accelerators.get(accelerator)
        return known.cost_per_hour * self._counts.get((model, accelerator), 1) if known else 0.0

    def power_per_replica_w(self, model: str, accelerator: str) -> float:
        """Watts that one replica draws at most; 0 where that is not declared."""
        known = self.accelerators.get(accelerator)
        power = known.power if known else None
        return power.full_w * self._counts.get((model, accelerator), 1) if power else 0.0

    def cards_per_replica(self, model: str, accelerator: str) -> int:
        """Cards of one replica; 0 on an accelerator that is not declared."""
        known = self.accelerators.get(accelerator)
        return known.multiplicity * self._counts.get((model, accelerator), 1) if known else 0


def current_allocation(state: State, catalogue: Catalogue, server: Server) -> Held | None:
    """What a server is asked to have now, where most of it is; None when unknown or nothing.

    While it moves it has replicas in two places; then it is where its last plan wants it.
    """
    inventory = state.inventory.get(server.name)
    asked: Counter[str] = Counter()
    for variant in inventory.variants if inventory else ():
        asked[variant.accelerator] += variant.desired
    last = state.last_plans.get(server.name)
    wanted = {a.accelerator for a in last.allocations or ()} if last else set()
    order = sorted(asked.items(), key=lambda item: (item[0] not in wanted or not item[1], -item[1], item[0]))
    accelerator, replicas = order[0] if order else ("", 0)
    if replicas == 0:
        return None
    return Held(accelerator, replicas, replicas * catalogue.cost_per_replica(server.model, accelerator))


def desired(variant: VariantInventory) -> int:
    """Replicas that it is asked to have."""
    return variant.desired


def occupying(variant: VariantInventory) -> int:
    """Replicas that take cards now or will soon."""
    return variant.ready + variant.pending + variant.terminating


def ready(variant: VariantInventory) -> int:
    """Replicas that certainly have their cards."""
    return variant.ready


def cards(
    state: State, catalogue: Catalogue, servers: Iterable[Server], count: Callable[[VariantInventory], int]
) -> Counter[str]:
    """Cards by type that the replicas so counted of some servers take."""
    taken: Counter[str] = Counter()
    for server in servers:
        inventory = state.inventory.get(server.name)
        for variant in inventory.variants if inventory else ():
            accelerator = catalogue.accelerators.get(variant.accelerator)
            if accelerator is not None:
                per_replica = catalogue.cards_per_replica(server.model, variant.accelerator)
                taken[accelerator.type] += count(variant) * per_replica
    return taken


def declared_quotas(
    state: State, quotas: Iterable[Quota], catalogue: Catalogue, holding: Collection[Server]
) -> tuple[Quota, ...]:
    """The fleet's quotas without what servers that keep what they have take of them."""
    return tuple(
        quota.model_copy(update={"cards": max(0, quota.cards - _taken_of(quota, state, catalogue, holding))})
        for quota in quotas
    )


def _taken_of(quota: Quota, state: State, catalogue: Catalogue, servers: Collection[Server]) -> int:
    return sum(
        variant.desired * catalogue.cards_per_replica(server.model, name)
        for server in servers
        if quota.tenant in (None, server.tenant)
        for name, variant in variants(state, server).items()
        if (accelerator := catalogue.accelerators.get(name)) is not None
        and quota.region in (None, accelerator.region)
        and quota.type in (None, accelerator.type)
    )


def platform_quotas(
    state: State, catalogue: Catalogue, holding: Iterable[Server], settings: OptimizerSettings, now_s: float
) -> Mapping[str, int]:
    """By name, the cards that the servers to be planned may use within each of the platform's quotas, at least 0.

    holding: servers that keep what they have. Without a fresh observation no quota is known.
    """
    observed = state.capacity
    if observed is None or now_s - observed.observed_at_s > settings.capacity_stale_after_s:
        return {}
    kept: Counter[str] = Counter()
    for server in holding:
        for accelerator, variant in variants(state, server).items():
            for name in variant.quotas:
                kept[name] += variant.desired * catalogue.cards_per_replica(server.model, accelerator)
    return {q.name: max(0, q.cards - q.used_by_others - kept[q.name]) for q in observed.quotas}


def variants(state: State, server: Server) -> Mapping[str, VariantInventory]:
    """What a server has, by accelerator."""
    inventory = state.inventory.get(server.name)
    return {v.accelerator: v for v in inventory.variants} if inventory else {}


def asked_total(state: State, servers: Iterable[Server], per_replica: Callable[[str, str], float]) -> float:
    """The sum over what some servers are asked to have. per_replica: by model and accelerator."""
    return sum(
        variant.desired * per_replica(server.model, accelerator)
        for server in servers
        for accelerator, variant in variants(state, server).items()
    )


def usable_cards(
    state: State,
    fleet: FleetDeclared,
    catalogue: Catalogue,
    holding: Iterable[Server],
    settings: OptimizerSettings,
    now_s: float,
) -> Mapping[str, int]:
    """Cards by type that the servers to be planned may use together, at least 0.

    holding: servers that keep what they have because nothing can be said of them; their cards are taken.

    A type has as many cards as were observed, less those that others use; without a fresh observation of it,
    as many as declared. A type that could not be had is limited to what serves the fleet now.
    """
    limits = {c.type: c.count for c in fleet.capacity}
    observed = state.capacity
    if observed and now_s - observed.observed_at_s <= settings.capacity_stale_after_s:
        ours = cards(state, catalogue, fleet.servers, occupying)
        for seen in observed.types:
            others = max(0, seen.total - seen.free - ours[seen.type])
            limits[seen.type] = seen.total - others
    serving = cards(state, catalogue, fleet.servers, ready)
    for name, unavailable in state.unavailable.items():
        if unavailable.until_s > now_s and name in limits:
            limits[name] = min(limits[name], serving[name])
    kept = cards(state, catalogue, holding, desired)
    return {name: max(0, limit - kept[name]) for name, limit in limits.items()}
