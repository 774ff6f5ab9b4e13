"""Quotas: the platform's as they are observed, and the fleet's, also while some servers keep what they have."""

from typing import Any

import pytest
from optimizer_builders import (
    LAWS,
    MODEL,
    NOW_S,
    SETTINGS,
    accelerators,
    fleet,
    inventory,
    known,
    planned,
    server,
    telemetry,
)
from test_troubled_servers import SOLVERS

from schemas.base import Contract, Quality
from schemas.fleet import FleetDeclared, Power, Quota
from schemas.plan import PlanProposed, ServerStatus
from schemas.telemetry import CapacityObserved, InventoryObserved, QuotaObserved, VariantInventory
from services.optimizer.candidates import Memory
from services.optimizer.core import observe, plan
from services.optimizer.solver import Solver
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver

UNITS = {"slow": 1, "2xfast": 2}
NAMES = ("a", "b", "c")


def in_namespace(name: str, *quotas: str, **desired: int) -> Contract:
    """A server with workloads on both accelerators in a namespace with quotas."""
    return InventoryObserved(
        server=name,
        model="m",
        observed_at_s=NOW_S - 5,
        quality=Quality.OK,
        variants=tuple(
            VariantInventory(
                accelerator=accelerator,
                desired=desired.get(accelerator, 0),
                ready=desired.get(accelerator, 0),
                pending=0,
                quotas=quotas,
            )
            for accelerator in UNITS
        ),
    )


def observed(*quotas: QuotaObserved, age_s: float = 10.0) -> Contract:
    return CapacityObserved(observed_at_s=NOW_S - age_s, quality=Quality.OK, types=(), quotas=quotas)


def cards(plans: tuple[PlanProposed, ...], *names: str) -> int:
    return sum(
        a.replicas * UNITS[a.accelerator] for p in plans if p.server in names for a in p.allocations or ()
    )


def loaded(rate_rps: float = 60.0) -> list[Contract]:
    return [telemetry(name, rate_rps) for name in NAMES]


def declared(**changes: Any) -> FleetDeclared:
    return fleet(*(server(name) for name in NAMES), **changes)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_a_platforms_quota_is_kept_by_those_that_count_against_it_and_by_nobody_else(solver: Solver) -> None:
    within = [in_namespace("a", "red/cards"), in_namespace("b", "red/cards"), in_namespace("c")]
    _, free = planned(declared(), *loaded(), *within, solver=solver)
    alone = cards(free.plans, "a")
    assert alone == cards(free.plans, "b") == cards(free.plans, "c") > 1
    limit = observed(QuotaObserved(name="red/cards", cards=alone + 2, used=2, used_by_others=2))
    _, limited = planned(declared(), *loaded(), *within, limit, solver=solver)
    assert cards(limited.plans, "a", "b") <= alone
    assert cards(limited.plans, "a", "b") > 0
    assert cards(limited.plans, "c") == alone
    assert {s.server for s in limited.manifest.shortfall} <= {"a", "b"}
    assert len(limited.manifest.shortfall) == 1


def test_a_server_that_two_quotas_count_keeps_the_tighter_one() -> None:
    limits = observed(
        QuotaObserved(name="red/few", cards=1, used=0), QuotaObserved(name="red/many", cards=50, used=0)
    )
    _, generation = planned(declared(), *loaded(), in_namespace("a", "red/few", "red/many"), limits)
    assert cards(generation.plans, "a") == 1


def test_a_quota_of_long_ago_or_of_nobody_limits_nothing() -> None:
    none = QuotaObserved(name="red/cards", cards=0, used=0)
    _, free = planned(declared(), *loaded())
    _, old = planned(declared(), *loaded(), in_namespace("a", "red/cards"), observed(none, age_s=301.0))
    _, others = planned(declared(), *loaded(), in_namespace("a"), observed(none))
    _, unknown = planned(declared(), *loaded(), in_namespace("a", "red/cards"), observed())
    for generation in (old, others, unknown):
        assert cards(generation.plans, *NAMES) == cards(free.plans, *NAMES)


def test_a_quota_that_changes_is_planned_with_at_once() -> None:
    solver, memory = GreedySolver(GreedySettings()), Memory()
    state = known(declared(), *loaded(), in_namespace("a"), observed())
    state, _ = plan(state, solver, MODEL, LAWS, SETTINGS, NOW_S, memory)
    none = observed(QuotaObserved(name="red/cards", cards=0, used=0), age_s=1.0)
    state = observe(observe(state, in_namespace("a", "red/cards")), none)
    _, generation = plan(state, solver, MODEL, LAWS, SETTINGS, NOW_S, memory)
    assert generation.plans[0].status is ServerStatus.UNSERVED
    assert "quotas" in generation.plans[0].explanation


def test_servers_that_hold_keep_their_part_of_every_quota_and_of_the_power() -> None:
    holds = [telemetry("b"), telemetry("c")]
    power = Power(idle_w=50, full_w=100, mid_w=80, mid_utilisation_share=0.5)
    drawing = tuple(a.model_copy(update={"power": power}) for a in accelerators())

    platform = observed(QuotaObserved(name="red/cards", cards=4, used=3))
    _, generation = planned(
        declared(),
        *holds,
        platform,
        in_namespace("a", "red/cards", slow=3),
        *(in_namespace(n, "red/cards") for n in "bc"),
    )
    assert generation.plans[0].status is ServerStatus.NO_LOAD
    assert cards(generation.plans, "b", "c") == 1

    own = declared(quotas=(Quota(name="all", cards=4, type="S"), Quota(name="none", cards=0, type="F")))
    _, generation = planned(own, *holds, inventory("a", slow=3))
    assert cards(generation.plans, "b", "c") == 1

    limited = declared(accelerators=drawing)
    limited = limited.model_copy(
        update={"optimizer": limited.optimizer.model_copy(update={"power_limit_w": 400.0})}
    )
    _, generation = planned(limited, *holds, inventory("a", slow=3))
    assert sum(a.replicas for p in generation.plans for a in p.allocations or ()) == 1
