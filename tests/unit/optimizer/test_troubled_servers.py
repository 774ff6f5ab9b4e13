"""What is wrong with one server is that server's status, whichever solver plans the others."""

import pytest
from optimizer_builders import fleet, inventory, model, planned, server, service_class, telemetry

from schemas.fleet import DeclaredCapacity, ModelProfile, Quota
from schemas.plan import ServerStatus, SolveStatus
from services.optimizer.solver import Solver
from services.optimizer.solvers.auto import AutoSettings, AutoSolver
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.lagrangian import LagrangianSettings, LagrangianSolver
from services.optimizer.solvers.milp import MilpSettings, MilpSolver

SOLVERS: list[Solver] = [
    GreedySolver(GreedySettings()),
    LagrangianSolver(LagrangianSettings()),
    MilpSolver(MilpSettings()),
    AutoSolver(AutoSettings()),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_each_is_answered_with_its_own_status_while_the_others_are_planned(solver: Solver) -> None:
    unknown = model("unknown").model_copy(update={"profiles": (ModelProfile(accelerator="slow"),)})
    impossible = service_class("impossible", 2, itl_s=0.001)
    declared = fleet(
        server("fine"),
        server("no-parameters", model="unknown"),
        server("impossible", service_class="impossible"),
        server("idle", min_replicas=0),
        server("gone", keep_accelerator=True),
        server("also-fine"),
        models=(model(), unknown),
        service_classes=(service_class(), impossible),
    )
    loads = [telemetry(s.name, 0.0 if s.name == "idle" else 20.0) for s in declared.servers]
    _, generation = planned(declared, *loads, inventory("gone", old=3), solver=solver)
    found = {p.server: p for p in generation.plans}
    assert {name: p.status for name, p in found.items()} == {
        "fine": ServerStatus.PLANNED,
        "no-parameters": ServerStatus.NO_PARAMETERS,
        "impossible": ServerStatus.INFEASIBLE,
        "idle": ServerStatus.PLANNED,
        "gone": ServerStatus.NO_PARAMETERS,
        "also-fine": ServerStatus.PLANNED,
    }
    assert found["idle"].allocations == ()
    assert found["fine"].predicted is not None
    assert found["fine"].predicted.objectives_met


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_without_any_capacity_every_server_says_what_it_lacks(solver: Solver) -> None:
    empty = (DeclaredCapacity(type="S", count=0), DeclaredCapacity(type="F", count=0))
    declared = fleet(server("a"), server("b"), capacity=empty)
    _, generation = planned(declared, telemetry("a"), telemetry("b"), solver=solver)
    assert generation.manifest.status is SolveStatus.INFEASIBLE
    assert {p.status for p in generation.plans} == {ServerStatus.UNSERVED}
    assert all("No accelerators are left" in p.explanation for p in generation.plans)
    assert {s.server for s in generation.manifest.shortfall} == {"a", "b"}
    assert all(s.type and s.missing_cards > 0 for s in generation.manifest.shortfall)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_quotas_budget_and_power_are_kept(solver: Solver) -> None:
    declared = fleet(
        *(server(f"s{i}", tenant="red" if i < 3 else "blue") for i in range(6)),
        quotas=(Quota(name="red", tenant="red", cards=2),),
    )
    options = declared.optimizer.model_copy(update={"budget_per_hour": 9.0})
    declared = declared.model_copy(update={"optimizer": options})
    _, generation = planned(declared, *(telemetry(f"s{i}", 15.0) for i in range(6)), solver=solver)
    units = {"slow": 1, "2xfast": 2}
    red = [a for p in generation.plans[:3] for a in p.allocations or ()]
    assert sum(a.replicas * units[a.accelerator] for a in red) <= 2
    assert 0 < generation.manifest.cost_per_hour <= 9.0 + 1e-6
