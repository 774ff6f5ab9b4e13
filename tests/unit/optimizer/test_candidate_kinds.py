"""Candidates that operators ask for: searched batch limits, objectives on percentiles, spot, KV memory, regions."""

from typing import Any

import pytest
from optimizer_builders import (
    LAWS,
    NOW_S,
    SETTINGS,
    accelerators,
    fleet,
    inventory,
    known,
    model,
    planned,
    server,
    service_class,
)
from optimizer_builders import telemetry as window

from schemas.base import Statistic
from schemas.fleet import Accelerator, BatchChoice, FleetDeclared, OptimizerOptions, Quota
from schemas.telemetry import InventoryObserved
from services.optimizer.candidates import assemble
from services.optimizer.core import plan
from services.optimizer.problem import Candidate
from services.optimizer.solvers.milp import MilpSettings, MilpSolver
from services.perfmodel.queueing import QueueingModel
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.interference import InterferenceModel


def candidates(declared: FleetDeclared, queueing: QueueingModel | None = None) -> tuple[Candidate, ...]:
    """The candidates of the only server, by accelerator and batch limit."""
    state = known(declared, window("s", 20.0))
    made = assemble(state, declared, queueing or BirthDeathModel(), LAWS, SETTINGS, NOW_S)
    (one,) = made.problem.servers
    return tuple(sorted(one.candidates, key=lambda c: (c.accelerator, c.max_batch)))


def with_objective(**objective: Any) -> FleetDeclared:
    return fleet(service_classes=(service_class(**objective),))


def test_a_searched_batch_limit_is_one_more_candidate_that_carries_nearly_as_much() -> None:
    options = OptimizerOptions(batch=BatchChoice.SEARCH)
    plain, searched = candidates(fleet()), candidates(fleet(optimizer=options))
    assert {(c.accelerator, c.max_batch) for c in plain} < {(c.accelerator, c.max_batch) for c in searched}
    for accelerator in {c.accelerator for c in searched}:
        smaller, whole = (c for c in searched if c.accelerator == accelerator)
        assert smaller.max_batch < whole.max_batch == 64
        # The search gives up at most a hundredth of the best rate over all limits.
        assert smaller.max_rate_rps >= 0.99 * whole.max_rate_rps * (1 - 1e-6)


def test_a_batch_limit_pinned_by_the_owner_is_not_searched() -> None:
    options = OptimizerOptions(batch=BatchChoice.SEARCH)
    found = candidates(fleet(server(max_batch=16), optimizer=options))
    assert {c.max_batch for c in found} == {16}


@pytest.mark.parametrize("statistic", [Statistic.P95, Statistic.P99])
def test_an_objective_on_a_percentile_allows_less_than_one_on_the_mean(statistic: Statistic) -> None:
    queueing = InterferenceModel()
    on_mean = candidates(with_objective(), queueing)
    on_tail = candidates(with_objective(statistic=statistic), queueing)
    for mean, tail in zip(on_mean, on_tail, strict=True):
        assert 0 < tail.max_rate_rps < mean.max_rate_rps
        assert tail.replicas >= mean.replicas
        # What is predicted is that percentile, and it is kept.
        assert tail.predicted is not None and tail.case.ttft_s is not None and tail.case.itl_s is not None
        assert tail.predicted.ttft_s <= tail.case.ttft_s
        assert tail.predicted.itl_s <= tail.case.itl_s * (1 + 1e-6)


def test_replicas_that_may_be_interrupted_carry_as_much_less_as_they_are_away() -> None:
    spot = tuple(a.model_copy(update={"interruption_share": 0.25}) for a in accelerators())
    for plain, risky in zip(candidates(fleet()), candidates(fleet(accelerators=spot)), strict=True):
        assert risky.max_rate_rps == pytest.approx(0.75 * plain.max_rate_rps, rel=1e-12)


def test_what_a_server_has_is_predicted_with_the_batch_limit_in_force() -> None:
    declared = fleet(optimizer=OptimizerOptions(batch=BatchChoice.SEARCH))
    largest = {c.max_batch: c.max_rate_rps for c in candidates(declared) if c.accelerator == "slow"}
    assert len(largest) == 2
    for limit, rate_rps in largest.items():
        held = inventory(slow=1)
        assert isinstance(held, InventoryObserved)
        variants = tuple(v.model_copy(update={"max_batch": limit}) for v in held.variants)
        state = known(declared, window("s", 20.0), held.model_copy(update={"variants": variants}))
        _, generation = planned(state=state)
        current = generation.plans[0].predicted_current
        assert current is not None
        assert current.utilization_share == pytest.approx(20.0 / rate_rps, rel=1e-9)


def test_a_memory_that_does_not_hold_one_request_is_no_candidate() -> None:
    small = model()
    profiles = tuple(
        p.model_copy(update={"kv_tokens": 600} if p.accelerator == "slow" else {}) for p in small.profiles
    )
    declared = fleet(models=(small.model_copy(update={"profiles": profiles}),))
    _, generation = planned(declared, window("s", 20.0))
    assert {c.accelerator for c in generation.candidates["s"]} == {"2xfast"}
    said = "slow: its KV memory holds 600 tokens, a request of the mean lengths has 700"
    assert said in generation.plans[0].explanation


def test_kv_memory_limits_what_a_replica_carries() -> None:
    queueing = InterferenceModel()
    small = fleet(models=(model(kv_tokens=4_000),))
    for plain, held in zip(candidates(fleet(), queueing), candidates(small, queueing), strict=True):
        assert held.max_rate_rps < plain.max_rate_rps


def test_a_quota_of_a_type_in_a_region_is_the_capacity_there() -> None:
    north, south = (
        Accelerator(name=name, type="S", cost_per_hour=cost, region=name)
        for name, cost in (("north", 1.0), ("south", 1.5))
    )
    profile = model().profiles[0]
    declared = fleet(
        server("a"),
        server("b"),
        accelerators=(north, south),
        models=(
            model().model_copy(
                update={
                    "profiles": tuple(
                        profile.model_copy(update={"accelerator": n.name}) for n in (north, south)
                    )
                }
            ),
        ),
        quotas=(Quota(name="north-s", region="north", type="S", cards=1),),
    )
    state = known(declared, window("a", 5.0), window("b", 5.0))
    _, made = plan(state, MilpSolver(MilpSettings()), BirthDeathModel(), LAWS, SETTINGS, NOW_S)
    given = [a for p in made.plans for a in p.allocations or ()]
    assert sum(a.replicas for a in given if a.accelerator == "north") == 1
    assert all(p.allocations for p in made.plans)
    assert {a.accelerator for a in given} == {"north", "south"}


def test_plans_expire_after_their_lifetime() -> None:
    state = known(fleet(), window("s", 20.0))
    _, made = plan(state, MilpSolver(MilpSettings()), BirthDeathModel(), LAWS, SETTINGS, NOW_S)
    for one in (*made.plans, made.manifest):
        assert one.issued_at_s == NOW_S
        assert one.expires_at_s == NOW_S + SETTINGS.plan_lifetime_s
