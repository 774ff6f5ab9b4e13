"""Each known fault of the reference: compat has it, because results depend on it, and the default does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from legacy_systems import system

from schemas.fleet import OptimizerOptions, SaturationPolicy
from schemas.plan import PlanProposed, ServerStatus
from services.legacy.form import LegacySystem
from services.legacy.reader import fleet_of, read_system
from services.optimizer.compat import compat_problem
from services.optimizer.core import plan
from services.optimizer.oneshot import answer_compat, state_of
from services.optimizer.planning import OptimizerSettings
from services.optimizer.problem import Candidate
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import DEFAULT_MAX_BLOCKED_SHARE, ServerModel
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel

NOW_S = 1_000_000.0
LAWS = {"three-parameter": ThreeParameterLaw()}
# Rates are found to about this.
ROUNDING = 1e-6


class Both:
    """One legacy system, changed, as compat and as the default see it."""

    def __init__(self, folder: Path, **server: Any) -> None:
        self.content = system()["system"]
        self.folder = folder
        self.content["serverData"]["servers"][0] |= server

    @property
    def read(self) -> LegacySystem:
        path = self.folder / "system.json"
        path.write_text(json.dumps({"system": self.content}))
        return read_system(path)

    def load(self, **load: Any) -> None:
        self.content["serverData"]["servers"][0]["currentAlloc"]["load"] |= load

    def target(self, **target: Any) -> None:
        for one in self.content["serviceClassData"]["serviceClasses"]:
            one["modelTargets"][0] |= {k.replace("_", "-"): v for k, v in target.items()}

    def compat(self, unlimited: bool = True) -> dict[str, Candidate]:
        """Compat candidates of the first server by accelerator."""
        problem = compat_problem(
            self.read, OptimizerOptions(unlimited=unlimited), BirthDeathCompatModel(), LAWS
        )
        found = {c.accelerator: c for s in problem.servers if s.server == "one" for c in s.candidates}
        return dict(sorted(found.items()))

    def default(self, **options: Any) -> dict[str, PlanProposed]:
        """Default plans by server."""
        fleet = fleet_of(self.read, NOW_S)
        changed = fleet.fleet.model_copy(
            update={"optimizer": fleet.fleet.optimizer.model_copy(update=options)}
        )
        solver, model = GreedySolver(GreedySettings()), BirthDeathModel()
        state = state_of(changed, fleet.messages)
        _, generation = plan(state, solver, model, LAWS, OptimizerSettings(), NOW_S)
        return {p.server: p for p in generation.plans}

    def default_replicas(self) -> int:
        allocations = self.default()["one"].allocations
        assert allocations is not None
        return sum(a.replicas for a in allocations)


def test_with_a_batch_of_one_a_feasible_server_is_refused(tmp_path: Path) -> None:
    both = Both(tmp_path, maxBatchSize=1, maxQueueSize=1)
    both.load(arrivalRate=10)
    assert not both.compat()
    assert both.default()["one"].status is ServerStatus.PLANNED


def test_with_a_batch_of_one_an_impossible_objective_is_accepted(tmp_path: Path) -> None:
    both = Both(tmp_path, maxBatchSize=1, maxQueueSize=50)
    # The iteration alone takes 20 ms.
    both.target(slo_itl=16, slo_ttft=2000)
    both.load(arrivalRate=90)
    candidates = both.compat()
    assert candidates["A"].replicas > 50
    assert both.default()["one"].status is ServerStatus.INFEASIBLE


def test_without_a_waiting_room_requests_are_lost_while_objectives_are_said_to_be_met(tmp_path: Path) -> None:
    both = Both(tmp_path, maxQueueSize=0)
    both.target(slo_itl=100, slo_ttft=5000)
    both.load(arrivalRate=2000)

    def lost(replicas: int) -> float:
        one = ServerModel(
            LAWS["three-parameter"],
            np.array([0.02, 5e-5, 1e-6]),
            Workload(128.0, 512.0),
            Limits(16, 0),
        )
        return float(BirthDeathModel().analyze(one, 2000 / 60 / replicas).blocked_share)

    accepted = both.compat()["A"]
    assert accepted.predicted is not None
    assert accepted.predicted.objectives_met
    assert lost(accepted.replicas) > 0.02
    planned = both.default()["one"]
    assert planned.allocations is not None
    assert planned.allocations[0].accelerator == "A"
    assert lost(planned.allocations[0].replicas) <= DEFAULT_MAX_BLOCKED_SHARE * (1 + ROUNDING)


def test_a_server_without_load_and_minimum_is_unknown_to_the_limited_modes(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.load(arrivalRate=0)
    assert not both.compat(unlimited=False)
    planned = both.default()["one"]
    assert planned.status is ServerStatus.PLANNED
    assert planned.allocations == ()


def test_one_infeasible_server_does_not_withhold_the_answers_of_others(tmp_path: Path) -> None:
    both = Both(tmp_path, maxQueueSize=20)
    both.content["serviceClassData"]["serviceClasses"][0]["modelTargets"][0]["slo-itl"] = 1
    plans = both.default()
    assert plans["one"].status is ServerStatus.INFEASIBLE
    assert plans["two"].status is ServerStatus.PLANNED


def test_best_effort_is_told_the_latencies_of_the_whole(tmp_path: Path) -> None:
    both = Both(tmp_path, maxQueueSize=50)
    both.load(arrivalRate=900)
    both.content["serverData"]["servers"].pop()
    both.content["capacityData"]["count"] = [{"type": "TA", "count": 2}]
    options = OptimizerOptions(saturation_policy=SaturationPolicy.PRIORITY_EXHAUSTIVE)
    whole = both.compat()["A"]
    answered = answer_compat(
        both.read, GreedySolver(GreedySettings()), BirthDeathCompatModel(), LAWS, options
    )
    (row,) = answered.rows
    assert row.status is ServerStatus.DEGRADED
    assert row.allocations[0].replicas == 2 < whole.replicas
    assert row.predicted == whole.predicted
    planned = both.default(saturation_policy=SaturationPolicy.PRIORITY_EXHAUSTIVE)["one"]
    assert planned.status is ServerStatus.DEGRADED
    assert planned.predicted is not None
    assert not planned.predicted.objectives_met
    assert planned.predicted.ttft_s > 5 * (whole.predicted.ttft_s if whole.predicted else 0)


def test_a_throughput_objective_replaces_the_offered_load(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.target(slo_tps=200)
    few, many = [], []
    for rate, found in ((60, few), (600, many)):
        both.load(arrivalRate=rate)
        found += [both.compat()["A"].replicas, both.default_replicas()]
    assert few[0] == many[0]
    assert few[1] < many[1]


@pytest.mark.parametrize("cost", [0.0, 30.0, 1000.0])
def test_a_stale_cost_of_what_it_has_goes_into_the_value(tmp_path: Path, cost: float) -> None:
    both = Both(tmp_path, maxQueueSize=20)
    both.content["serverData"]["servers"][0]["currentAlloc"] |= {
        "accelerator": "A",
        "numReplicas": 3,
        "cost": cost,
    }
    candidate = both.compat()["A"]
    assert candidate.value == pytest.approx(candidate.cost_per_hour - cost)
    assert both.default()["one"].allocations == Both(tmp_path, maxQueueSize=20).default()["one"].allocations


def test_a_negative_minimum_costs_less_than_nothing(tmp_path: Path) -> None:
    both = Both(tmp_path, minNumReplicas=-3)
    both.load(arrivalRate=0)
    assert both.compat()["A"].cost_per_hour < 0
    assert both.default()["one"].allocations == ()
