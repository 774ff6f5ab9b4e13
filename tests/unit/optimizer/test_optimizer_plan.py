"""Whole generations: statuses, sizes, predictions, explanations, and one server's trouble staying its own."""

import random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimizer_builders import (
    FAST,
    LAWS,
    MODEL,
    NOW_S,
    SETTINGS,
    SLOW,
    capacity,
    fleet,
    forecast,
    inventory,
    known,
    model,
    only,
    planned,
    replicas,
    server,
    service_class,
    telemetry,
)
from pydantic import BaseModel

from schemas.base import Statistic
from schemas.fleet import DeclaredCapacity, LawParameters, Model, ModelProfile, OptimizerOptions
from schemas.parameters import FitEvidence, Health, ParametersEstimated
from schemas.plan import PlanProposed, ServerStatus, SolveStatus
from services.optimizer.core import State, observe, plan
from services.optimizer.problem import Choice, Problem, Solution, SolveOutcome, shortfall_of
from services.optimizer.solver import Capabilities
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.unlimited import UnlimitedSettings, UnlimitedSolver
from services.perfmodel.law import Limits, Workload
from services.perfmodel.queueing import ServerModel, Targets


def estimated(accelerator: str = "slow", **changes: Any) -> ParametersEstimated:
    parts: dict[str, Any] = {
        "model": "m",
        "accelerator": accelerator,
        "law": "three-parameter",
        "law_version": 1,
        "values": SLOW,
        "health": Health.LEARNING,
        "evidence": FitEvidence(observations=3),
        "estimator": "moving-horizon",
        "estimated_at_s": NOW_S - 60,
    }
    return ParametersEstimated(**(parts | changes))


def largest_rate_rps(values: dict[str, float]) -> float:
    """Asked of the performance model directly, for the workload and objectives of the builders."""
    law = LAWS["three-parameter"]
    asked = ServerModel(
        law, [values[name] for name in law.parameter_names], Workload(500.0, 200.0), Limits(64, 128)
    )
    return float(MODEL.max_rate(asked, Targets(ttft_s=0.5, itl_s=0.03)).max_rate_rps)


def test_a_server_gets_the_fewest_replicas_that_keep_its_objectives() -> None:
    proposed = only(fleet(), telemetry(rate_rps=50.0))
    needed = 50.0 / largest_rate_rps(SLOW)
    assert proposed.status is ServerStatus.PLANNED
    assert replicas(proposed) == {"slow": -int(-needed // 1)}
    assert proposed.needed_share == pytest.approx(needed / replicas(proposed)["slow"])
    assert proposed.predicted is not None and proposed.predicted.objectives_met
    assert proposed.predicted.ttft_s <= 0.5 and proposed.predicted.itl_s <= 0.03
    assert proposed.predicted_one_fewer is not None
    assert not proposed.predicted_one_fewer.objectives_met
    assert proposed.expires_at_s == NOW_S + SETTINGS.plan_lifetime_s


def test_predictions_are_those_of_the_load_of_one_replica() -> None:
    proposed = only(fleet(), telemetry(rate_rps=50.0))
    law = LAWS["three-parameter"]
    one = ServerModel(
        law, [SLOW[name] for name in law.parameter_names], Workload(500.0, 200.0), Limits(64, 128)
    )
    count = replicas(proposed)["slow"]
    for prediction, shared_by in ((proposed.predicted, count), (proposed.predicted_one_fewer, count - 1)):
        metrics = MODEL.analyze(one, 50.0 / shared_by)
        assert prediction is not None
        assert prediction.ttft_s == pytest.approx(float(metrics.ttft_s.mean), rel=1e-9)
        assert prediction.itl_s == pytest.approx(float(metrics.itl_s.mean), rel=1e-9)
        assert prediction.wait_s == pytest.approx(float(metrics.wait_s.mean), rel=1e-9)


def test_one_replica_has_no_prediction_with_one_fewer() -> None:
    proposed = only(fleet(), telemetry(rate_rps=1.0))
    assert replicas(proposed) == {"slow": 1}
    assert proposed.predicted_one_fewer is None


def test_without_any_load_there_is_no_opinion() -> None:
    proposed = only(fleet())
    assert proposed.status is ServerStatus.NO_LOAD
    assert proposed.allocations is None
    assert proposed.inputs.rate_rps is None


def test_a_measured_rate_of_zero_takes_the_least_replicas() -> None:
    proposed = only(fleet(server(min_replicas=2)), telemetry(rate_rps=0.0))
    assert replicas(proposed) == {"slow": 2}
    assert proposed.binding == "minimum"
    assert proposed.inputs.rate_rps == 0.0


def test_no_load_and_no_least_replicas_is_a_target_of_zero_that_says_so() -> None:
    proposed = only(fleet(server(min_replicas=0)), telemetry(rate_rps=0.0), inventory(slow=3))
    assert proposed.status is ServerStatus.PLANNED
    assert proposed.allocations == ()
    assert "No replicas" in proposed.explanation
    assert proposed.predicted is None and proposed.needed_share is None


def test_the_smallest_load_takes_a_replica_although_none_is_the_least() -> None:
    assert replicas(only(fleet(server(min_replicas=0)), telemetry(rate_rps=1e-12))) == {"slow": 1}


def test_without_parameters_there_is_no_opinion() -> None:
    proposed = only(fleet(models=(model(parameters=None),)), telemetry())
    assert proposed.status is ServerStatus.NO_PARAMETERS
    assert "neither estimated nor declared" in proposed.explanation


@pytest.mark.parametrize("health", list(Health))
def test_estimated_parameters_of_any_health_come_before_declared_ones(health: Health) -> None:
    slower = {name: 2 * value for name, value in SLOW.items()}
    proposed = only(
        fleet(), telemetry(rate_rps=50.0), estimated(values=slower, health=health), inventory(slow=1)
    )
    assert replicas(proposed) == {"slow": -int(-50.0 / largest_rate_rps(slower) // 1)}
    assert proposed.inputs.parameters_at_s == NOW_S - 60


@pytest.mark.parametrize(
    "changes",
    [
        {"law": "unheard-of"},
        {"law_version": 7},
        {"values": {"alpha": 1.0}},
        {"values": dict.fromkeys(SLOW, 0.0)},
    ],
)
def test_estimated_parameters_that_cannot_be_read_give_way_to_declared_ones(changes: dict[str, Any]) -> None:
    proposed = only(fleet(), telemetry(), estimated(**changes))
    assert replicas(proposed) == replicas(only(fleet(), telemetry()))
    assert proposed.inputs.parameters_at_s is None
    assert "slow: estimated parameters" in proposed.explanation


def test_an_objective_that_no_accelerator_keeps_is_infeasible() -> None:
    proposed = only(fleet(service_classes=(service_class(itl_s=1e-6),)), telemetry())
    assert proposed.status is ServerStatus.INFEASIBLE
    assert "itl" in proposed.explanation


def test_an_accelerator_that_cannot_keep_the_objective_is_no_candidate() -> None:
    proposed = only(fleet(service_classes=(service_class(itl_s=0.007),)), telemetry())
    assert set(replicas(proposed)) == {"2xfast"}
    assert "slow: no rate keeps its objectives, itl stops it" in proposed.explanation


def test_an_objective_on_a_statistic_that_is_not_predicted_is_refused_in_words() -> None:
    proposed = only(fleet(service_classes=(service_class(statistic=Statistic.P99),)), telemetry())
    assert proposed.status is ServerStatus.INFEASIBLE
    assert "p99" in proposed.explanation


def test_the_most_replicas_degrade_a_server_that_needs_more() -> None:
    _, generation = planned(
        fleet(server(max_replicas=2, keep_accelerator=True)), telemetry(rate_rps=100.0), inventory(slow=1)
    )
    (proposed,) = generation.plans
    assert proposed.status is ServerStatus.DEGRADED
    assert replicas(proposed) == {"slow": 2}
    assert proposed.binding == "maximum"
    assert proposed.predicted is not None and not proposed.predicted.objectives_met
    (short,) = generation.manifest.shortfall
    assert short.missing_replicas == -int(-100.0 / largest_rate_rps(SLOW) // 1) - 2


def test_a_dearer_accelerator_that_needs_no_more_than_allowed_comes_before_a_clamped_one() -> None:
    rate = 1.5 * largest_rate_rps(SLOW)
    proposed = only(fleet(server(max_replicas=1)), telemetry(rate_rps=rate))
    assert proposed.status is ServerStatus.PLANNED
    assert replicas(proposed) == {"2xfast": 1}


def test_scarce_cards_degrade_a_server_and_its_prediction_is_of_what_it_gets() -> None:
    cards = (DeclaredCapacity(type="S", count=2),)
    _, generation = planned(fleet(capacity=cards), telemetry(rate_rps=100.0))
    (proposed,) = generation.plans
    assert proposed.status is ServerStatus.DEGRADED
    assert replicas(proposed) == {"slow": 2}
    assert proposed.binding == "capacity"
    assert proposed.predicted is not None
    assert proposed.predicted.utilization_share == pytest.approx(50.0 / largest_rate_rps(SLOW))
    assert not proposed.predicted.objectives_met
    assert proposed.needed_share == pytest.approx(50.0 / largest_rate_rps(SLOW))
    assert generation.manifest.shortfall[0].accelerator == "slow"


def test_a_server_for_which_no_card_is_left_is_unserved_and_holds() -> None:
    _, generation = planned(fleet(capacity=()), telemetry())
    (proposed,) = generation.plans
    assert proposed.status is ServerStatus.UNSERVED
    assert proposed.allocations is None
    assert "1 x slow" in proposed.explanation
    assert generation.manifest.status is SolveStatus.INFEASIBLE


def test_one_servers_trouble_leaves_the_others_planned() -> None:
    declared = fleet(
        server("silent"),
        server("served"),
        server("impossible", service_class="absurd"),
        server("unknown", model="untried"),
        service_classes=(service_class(), service_class("absurd", 2, itl_s=1e-9)),
        models=(model(), model("untried", parameters=None)),
    )
    _, generation = planned(
        declared, telemetry("served"), telemetry("impossible"), telemetry("unknown", model="untried")
    )
    assert {p.server: p.status.value for p in generation.plans} == {
        "silent": "no_load",
        "served": "planned",
        "impossible": "infeasible",
        "unknown": "no_parameters",
    }
    assert generation.manifest.servers == 4


def test_the_cards_of_servers_that_hold_are_not_given_to_others() -> None:
    declared = fleet(server("held"), server("s"), capacity=(DeclaredCapacity(type="S", count=10),))
    _, generation = planned(declared, inventory("held", slow=7), telemetry(rate_rps=200.0))
    assert replicas(generation.plans[1]) == {"slow": 3}


def test_a_kept_accelerator_is_the_only_candidate() -> None:
    declared = fleet(server(keep_accelerator=True))
    assert set(replicas(only(declared, telemetry(), inventory(fast=1)))) == {"2xfast"}
    assert set(replicas(only(fleet(), telemetry(), inventory(fast=1)))) == {"slow"}


def test_moving_to_another_accelerator_must_be_worth_the_switch() -> None:
    def cost_of_slow(cost: float) -> set[str]:
        declared = fleet()
        slow, fast = declared.accelerators
        changed = declared.model_copy(
            update={"accelerators": (slow.model_copy(update={"cost_per_hour": cost}), fast)}
        )
        return set(replicas(only(changed, telemetry(rate_rps=1.0), inventory(fast=1))))

    # One replica each: moving from 5 to c per hour pays while c + 0.1 (c + 5) < 5, that is c < 4.09.
    assert cost_of_slow(4.0) == {"slow"}
    assert cost_of_slow(4.2) == {"2xfast"}


def test_a_pinned_batch_limit_is_kept() -> None:
    proposed = only(fleet(server(max_batch=4)), telemetry())
    assert proposed.allocations is not None
    assert proposed.allocations[0].max_batch == 4


def test_generations_count_on_and_continue_from_plans_read_back() -> None:
    state, first = planned(fleet(), telemetry())
    _, second = planned(state=state)
    assert (first.manifest.generation, second.manifest.generation) == (1, 2)
    restarted = known(fleet(), telemetry(), *first.plans, first.manifest)
    again, after = planned(state=restarted)
    assert after == second
    assert again == plan(state, GreedySolver(GreedySettings()), MODEL, LAWS, SETTINGS, NOW_S)[0]


def test_a_generation_whose_manifest_is_missing_is_not_used_again() -> None:
    _, first = planned(fleet(), telemetry())
    _, generation = planned(fleet(), telemetry(), *first.plans)
    assert generation.manifest.generation == 2


def test_the_explanation_names_the_binding_objective_the_next_best_and_the_change() -> None:
    state, first = planned(fleet(), telemetry(rate_rps=20.0))
    assert "time to first token decides" in first.plans[0].explanation
    assert "Next best: 1 x 2xfast at 5 per hour" in first.plans[0].explanation
    assert "first plan" in first.plans[0].explanation
    state, same = planned(telemetry(rate_rps=20.0, age_s=9.0), state=state)
    assert "As in generation 1" in same.plans[0].explanation
    _, more = planned(telemetry(rate_rps=90.0, age_s=8.0), state=state)
    assert "the planned load rose from 20" in more.plans[0].explanation


def test_the_manifest_sums_up_and_carries_the_bound() -> None:
    _, generation = planned(fleet(server("a"), server("b")), telemetry("a"), telemetry("b", rate_rps=60.0))
    costs = [a.cost_per_hour for p in generation.plans for a in p.allocations or ()]
    manifest = generation.manifest
    assert manifest.cost_per_hour == pytest.approx(sum(costs))
    assert manifest.bound_cost_per_hour == pytest.approx(manifest.cost_per_hour)
    assert (manifest.gap_share, manifest.status) == (0.0, SolveStatus.OPTIMAL)
    assert (manifest.solver, manifest.performance_model) == ("greedy", "birth-death")


def test_limits_that_the_solver_does_not_keep_are_noted() -> None:
    declared = fleet(optimizer=OptimizerOptions(budget_per_hour=1.0))
    _, generation = planned(declared, telemetry(), solver=UnlimitedSolver(UnlimitedSettings()))
    assert len(generation.notes) == 2
    assert planned(declared, telemetry())[1].notes == ()


def test_an_unlimited_fleet_ignores_capacity() -> None:
    declared = fleet(capacity=(), optimizer=OptimizerOptions(unlimited=True))
    assert only(declared, telemetry()).status is ServerStatus.PLANNED


class HalfAndHalf:
    """Serves every server half from each of its candidates."""

    name: ClassVar[str] = "half-and-half"
    Settings: ClassVar[type[BaseModel]] = BaseModel
    capabilities: ClassVar[Capabilities] = Capabilities(mixes=True)

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        choices = {
            s.server: tuple(Choice(c, (c.replicas + 1) // 2) for c in s.candidates) for s in problem.servers
        }
        solution = Solution(choices)
        short = shortfall_of(problem, solution)
        return SolveOutcome(SolveStatus.FEASIBLE, solution, solution.value, shortfall=short)


def test_a_mix_shares_the_traffic_by_what_each_part_carries() -> None:
    _, generation = planned(fleet(), telemetry(rate_rps=120.0), solver=HalfAndHalf())
    (proposed,) = generation.plans
    assert proposed.status is ServerStatus.PLANNED
    assert proposed.allocations is not None and len(proposed.allocations) == 2
    carried = {
        a.accelerator: a.replicas * largest_rate_rps(SLOW if a.accelerator == "slow" else FAST)
        for a in proposed.allocations
    }
    for allocation in proposed.allocations:
        share = carried[allocation.accelerator] / sum(carried.values())
        assert allocation.traffic_share == pytest.approx(share)
    assert proposed.predicted is not None and proposed.predicted.objectives_met
    assert proposed.predicted.utilization_share == pytest.approx(120.0 / sum(carried.values()))


def test_without_a_fleet_there_is_nothing_to_plan() -> None:
    with pytest.raises(ValueError, match="no fleet"):
        planned(telemetry())


def test_the_order_of_servers_and_messages_does_not_change_any_plan() -> None:
    names = [f"s{i}" for i in range(12)]
    messages = [telemetry(name, rate_rps=5.0 * i) for i, name in enumerate(names)]
    messages += [inventory(name, slow=i % 3, fast=i % 2) for i, name in enumerate(names)]
    cards = (DeclaredCapacity(type="S", count=9), DeclaredCapacity(type="F", count=12))
    chance = random.Random(3)

    def plans(order: list[str]) -> dict[str, PlanProposed]:
        shuffled = chance.sample(messages, len(messages))
        _, generation = planned(fleet(*(server(n) for n in order), capacity=cards), *shuffled)
        return {p.server: p for p in generation.plans}

    expected = plans(names)
    assert {p.status for p in expected.values()} > {ServerStatus.PLANNED}
    for _ in range(5):
        assert plans(chance.sample(names, len(names))) == expected


def test_a_model_with_absurd_parameters_troubles_nobody_else() -> None:
    absurd = LawParameters(values={"alpha_s": 1e300, "beta_s": 1e300, "gamma_s": 1e300})
    declared = fleet(
        server("a", model="huge"),
        server("b"),
        models=(model(), Model(name="huge", profiles=(ModelProfile(accelerator="slow", parameters=absurd),))),
    )
    _, generation = planned(declared, telemetry("a", model="huge"), telemetry("b"))
    assert [p.status.value for p in generation.plans] == ["infeasible", "planned"]


magnitudes = st.one_of(st.just(0.0), st.floats(1e-12, 1e9), st.floats(0, 1e300))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rate=st.floats(0, 1e7),
    tokens=st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)),
    values=st.tuples(magnitudes, magnitudes, magnitudes),
    limits=st.tuples(st.integers(1, 4096), st.integers(0, 1_000_000), st.integers(1, 1_000_000)),
    objective=st.tuples(st.floats(1e-9, 86_400), st.floats(1e-9, 86_400)),
    cost=st.floats(0, 1e12),
    cards=st.tuples(st.integers(0, 1_000_000), st.integers(0, 1_000_000)),
)
def test_whatever_valid_messages_say_every_server_has_a_plan_within_capacity(
    rate: float,
    tokens: tuple[float, float],
    values: tuple[float, float, float],
    limits: tuple[int, int, int],
    objective: tuple[float, float],
    cost: float,
    cards: tuple[int, int],
) -> None:
    wild = LawParameters(values=dict(zip(FAST, values, strict=True)))
    profile = ModelProfile(accelerator="slow", max_batch=limits[0], token_budget=limits[2], parameters=wild)
    base = fleet()
    declared = fleet(
        server("wild", model="wild", max_queue=limits[1], service_class="wild"),
        server("tame"),
        models=(model(), Model(name="wild", profiles=(profile,))),
        service_classes=(
            service_class(),
            service_class("wild", 2).model_copy(
                update={
                    "objectives": (
                        service_class(ttft_s=objective[0], itl_s=objective[1])
                        .objectives[0]
                        .model_copy(update={"model": "wild"}),
                    )
                }
            ),
        ),
        accelerators=(
            base.accelerators[0].model_copy(update={"cost_per_hour": cost}),
            base.accelerators[1],
        ),
        capacity=tuple(DeclaredCapacity(type=t, count=n) for t, n in zip("SF", cards, strict=True)),
    )
    load = telemetry("wild", rate_rps=rate, model="wild", input_tokens=tokens[0], output_tokens=tokens[1])
    _, generation = planned(declared, load, telemetry("tame"))
    assert [p.server for p in generation.plans] == ["wild", "tame"]
    used = {"slow": 0, "2xfast": 0}
    for proposed in generation.plans:
        for allocation in proposed.allocations or ():
            used[allocation.accelerator] += allocation.replicas
        PlanProposed.model_validate_json(proposed.model_dump_json())
    assert used["slow"] <= cards[0] and 2 * used["2xfast"] <= cards[1]
    assert generation.plans[1].status in (ServerStatus.PLANNED, ServerStatus.DEGRADED, ServerStatus.UNSERVED)


def test_a_state_is_not_changed_by_what_it_observes() -> None:
    state = State()
    observe(state, telemetry())
    assert state == State()


def test_what_a_sweep_measured_is_nobodys_load() -> None:
    measured = telemetry(rate_rps=9.0, age_s=0.0)
    state = known(telemetry(rate_rps=1.0, age_s=5.0))
    assert observe(state, measured.model_copy(update={"calibration": True})) == state
    assert observe(state, measured) != state


def test_older_messages_do_not_replace_newer_ones() -> None:
    state = known(
        telemetry(rate_rps=1.0, age_s=5.0), forecast(p90=40.0, age_s=5.0), capacity(age_s=5, S=(4, 4))
    )
    for late in (
        telemetry(rate_rps=9.0, age_s=50.0),
        forecast(p90=90.0, age_s=50.0),
        capacity(age_s=50, S=(9, 9)),
    ):
        assert observe(state, late) == state
