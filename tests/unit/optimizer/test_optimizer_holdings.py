"""Cards that may be used: observed, declared, others', unavailable, and those of servers that hold."""

from optimizer_builders import NOW_S, SETTINGS, capacity, fleet, inventory, known, server

from schemas.base import Contract, Quality
from schemas.fleet import DeclaredCapacity, FleetDeclared
from schemas.plan import Allocation, Inputs, PlanProposed, ServerStatus
from schemas.telemetry import CapacityUnavailable, InventoryObserved, VariantInventory
from services.optimizer.holdings import Catalogue, current_allocation, usable_cards
from services.optimizer.problem import Held, transition_value
from services.optimizer.state import observe

DECLARED = (DeclaredCapacity(type="S", count=10), DeclaredCapacity(type="F", count=20))


def cards(
    *messages: Contract, holding: tuple[str, ...] = (), declared: FleetDeclared | None = None
) -> dict[str, int]:
    asked = declared or fleet(server("a"), server("b"), capacity=DECLARED)
    held = [s for s in asked.servers if s.name in holding]
    return dict(usable_cards(known(*messages), asked, Catalogue(asked), held, SETTINGS, NOW_S))


def unavailable(type_name: str, until_s: float) -> Contract:
    return CapacityUnavailable(type=type_name, since_s=NOW_S - 50, until_s=until_s, reason="no quota")


def test_declared_capacity_counts_without_an_observation() -> None:
    assert cards() == {"S": 10, "F": 20}


def test_observed_capacity_replaces_declared_capacity_type_by_type() -> None:
    assert cards(capacity(S=(6, 6))) == {"S": 6, "F": 20}


def test_an_old_observation_gives_way_to_declared_capacity() -> None:
    assert cards(capacity(age_s=301.0, S=(6, 6))) == {"S": 10, "F": 20}


def test_an_observed_type_that_is_not_declared_counts() -> None:
    assert cards(capacity(S=(6, 6)), declared=fleet(capacity=())) == {"S": 6}


def test_cards_that_the_fleet_uses_are_available_to_it() -> None:
    assert cards(capacity(S=(8, 3)), inventory("a", slow=5))["S"] == 8


def test_cards_that_others_use_are_not() -> None:
    assert cards(capacity(S=(8, 1)), inventory("a", slow=5))["S"] == 6
    assert cards(capacity(F=(8, 1)), inventory("a", fast=2))["F"] == 5


def test_the_cards_of_a_server_outside_the_fleet_are_others() -> None:
    assert cards(capacity(S=(8, 1)), inventory("stranger", slow=5))["S"] == 1


def test_replicas_that_are_not_scheduled_yet_never_make_others_negative() -> None:
    assert cards(capacity(S=(4, 0)), inventory("a", slow=9))["S"] == 4


def test_an_unavailable_type_is_limited_to_what_serves_the_fleet_now() -> None:
    assert cards(unavailable("S", NOW_S + 60), inventory("a", slow=3)) == {"S": 3, "F": 20}
    assert cards(unavailable("F", NOW_S + 60), inventory("a", fast=3))["F"] == 6


def test_an_unavailable_type_is_available_again_when_its_time_is_over() -> None:
    assert cards(unavailable("S", NOW_S - 1), inventory("a", slow=3))["S"] == 10


def test_replicas_that_wait_for_an_unavailable_type_do_not_count_as_held() -> None:
    waiting = InventoryObserved(
        server="a",
        model="m",
        observed_at_s=NOW_S,
        quality=Quality.OK,
        variants=(VariantInventory(accelerator="slow", desired=5, ready=2, pending=3),),
    )
    assert cards(unavailable("S", NOW_S + 60), waiting)["S"] == 2


def test_servers_that_hold_keep_their_cards() -> None:
    assert cards(inventory("a", slow=4), inventory("b", slow=3), holding=("a",))["S"] == 6
    assert cards(inventory("a", slow=40), holding=("a",))["S"] == 0


def test_a_variant_on_an_accelerator_that_is_not_declared_takes_no_cards() -> None:
    gone = InventoryObserved(
        server="a",
        model="m",
        observed_at_s=NOW_S,
        quality=Quality.OK,
        variants=(VariantInventory(accelerator="gone", desired=5, ready=2, pending=0),),
    )
    assert cards(gone, holding=("a",)) == {"S": 10, "F": 20}


def test_the_current_allocation_is_where_most_is_asked_for() -> None:
    asked = fleet()
    catalogue = Catalogue(asked)
    (one,) = asked.servers
    assert current_allocation(known(inventory(slow=3, fast=2)), catalogue, one) == Held("slow", 3, 3.0)
    assert current_allocation(known(inventory(slow=0)), catalogue, one) is None
    assert current_allocation(known(), catalogue, one) is None


def test_a_missing_inventory_leaves_what_was_known() -> None:
    state = known(inventory(slow=3), inventory(quality=Quality.MISSING))
    assert state == known(inventory(slow=3))


def test_the_value_of_a_change_is_its_cost_and_that_of_switching() -> None:
    current = Held("slow", 3, 3.0)
    assert transition_value("slow", 3.0, current) == 0.0
    assert transition_value("slow", 5.0, current) == 2.0
    assert transition_value("fast", 5.0, current) == 0.1 * 8.0 + 2.0
    assert transition_value("fast", 5.0, None) == 0.5 + 5.0


def test_a_server_that_moves_is_where_its_last_plan_wants_it() -> None:
    declared = fleet(server("a"))
    state = known(inventory("a", slow=5, fast=3))
    at_rest = current_allocation(state, Catalogue(declared), declared.servers[0])
    assert at_rest is not None
    assert at_rest.accelerator == "slow"
    plan = PlanProposed(
        server="a",
        generation=1,
        status=ServerStatus.PLANNED,
        allocations=(Allocation(accelerator="2xfast", replicas=3, max_batch=8),),
        inputs=Inputs(fleet_revision="r"),
        issued_at_s=NOW_S,
        expires_at_s=NOW_S + 90,
    )
    moving = current_allocation(observe(state, plan), Catalogue(declared), declared.servers[0])
    assert moving is not None
    assert (moving.accelerator, moving.replicas) == ("2xfast", 3)
