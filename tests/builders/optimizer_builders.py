"""Small fleets and messages for the optimizer's tests."""

from typing import Any

from schemas.base import Contract, Quality
from schemas.fleet import (
    Accelerator,
    DeclaredCapacity,
    FleetDeclared,
    LawParameters,
    Model,
    ModelProfile,
    Objective,
    OptimizerOptions,
    Server,
    ServiceClass,
)
from schemas.forecast import ForecastIssued, RateQuantile
from schemas.plan import PlanProposed
from schemas.telemetry import (
    AcceleratorCapacity,
    CapacityObserved,
    InventoryObserved,
    TelemetryObserved,
    VariantInventory,
)
from services.optimizer.core import Generation, State, observe, plan
from services.optimizer.planning import OptimizerSettings
from services.optimizer.solver import Solver
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.perfmodel.law import IterationLaw
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing_models.birth_death import BirthDeathModel

NOW_S = 1_000_000.0
MODEL = BirthDeathModel()
LAWS: dict[str, IterationLaw] = {"three-parameter": ThreeParameterLaw()}
SETTINGS = OptimizerSettings()

SLOW = {"alpha_s": 0.008, "beta_s": 3e-5, "gamma_s": 5e-9}
FAST = {"alpha_s": 0.004, "beta_s": 1.5e-5, "gamma_s": 2.5e-9}


def accelerators() -> tuple[Accelerator, ...]:
    return (
        Accelerator(name="slow", type="S", cost_per_hour=1.0),
        Accelerator(name="2xfast", type="F", multiplicity=2, cost_per_hour=5.0),
    )


def model(name: str = "m", **changes: Any) -> Model:
    profiles = [
        ModelProfile(accelerator=accelerator, max_batch=64, parameters=LawParameters(values=values))
        for accelerator, values in (("slow", SLOW), ("2xfast", FAST))
    ]
    return Model(name=name, profiles=tuple(p.model_copy(update=changes) for p in profiles))


def service_class(name: str = "gold", priority: int = 1, **objective: Any) -> ServiceClass:
    wanted = {"ttft_s": 0.5, "itl_s": 0.03} | objective
    return ServiceClass(name=name, priority=priority, objectives=(Objective(model="m", **wanted),))


def server(name: str = "s", **changes: Any) -> Server:
    return Server(**({"name": name, "model": "m", "service_class": "gold"} | changes))


def fleet(*servers: Server, **changes: Any) -> FleetDeclared:
    parts: dict[str, Any] = {
        "declared_at_s": NOW_S - 1000,
        "revision": "r1",
        "accelerators": accelerators(),
        "models": (model(),),
        "service_classes": (service_class(),),
        "servers": servers or (server(),),
        "capacity": (DeclaredCapacity(type="S", count=100), DeclaredCapacity(type="F", count=100)),
        "optimizer": OptimizerOptions(),
    }
    return FleetDeclared(**(parts | changes))


def telemetry(
    name: str = "s", rate_rps: float | None = 20.0, age_s: float = 10.0, **changes: Any
) -> Contract:
    end = NOW_S - age_s
    parts: dict[str, Any] = {
        "server": name,
        "model": "m",
        "window_start_s": end - 30,
        "window_end_s": end,
        "quality": Quality.OK,
        "offered_rate_rps": rate_rps,
        "input_tokens": 500.0,
        "output_tokens": 200.0,
    }
    return TelemetryObserved(**(parts | changes))


def forecast(
    name: str = "s", p50: float = 20.0, p90: float = 30.0, age_s: float = 10.0, **changes: Any
) -> Contract:
    parts: dict[str, Any] = {
        "server": name,
        "issued_at_s": NOW_S - age_s,
        "horizon_s": 150.0,
        "quality": Quality.OK,
        "rate": (RateQuantile(quantile=0.5, rate_rps=p50), RateQuantile(quantile=0.9, rate_rps=p90)),
        "input_tokens": 500.0,
        "output_tokens": 200.0,
        "forecaster": "last-value",
    }
    return ForecastIssued(**(parts | changes))


def inventory(name: str = "s", quality: Quality = Quality.OK, **desired: int) -> Contract:
    """Replicas by accelerator, all of them ready; `fast` stands for 2xfast."""
    return InventoryObserved(
        server=name,
        model="m",
        observed_at_s=NOW_S - 5,
        quality=quality,
        variants=tuple(
            VariantInventory(
                accelerator={"fast": "2xfast"}.get(accelerator, accelerator), desired=n, ready=n, pending=0
            )
            for accelerator, n in desired.items()
        ),
    )


def capacity(age_s: float = 10.0, **total_free: tuple[int, int]) -> Contract:
    return CapacityObserved(
        observed_at_s=NOW_S - age_s,
        quality=Quality.OK,
        types=tuple(AcceleratorCapacity(type=t, total=n, free=f) for t, (n, f) in total_free.items()),
    )


def known(*messages: Contract) -> State:
    state = State()
    for message in messages:
        state = observe(state, message)
    return state


def planned(
    *messages: Contract, solver: Solver | None = None, state: State | None = None
) -> tuple[State, Generation]:
    state = state or State()
    for message in messages:
        state = observe(state, message)
    return plan(state, solver or GreedySolver(GreedySettings()), MODEL, LAWS, SETTINGS, NOW_S)


def only(*messages: Contract) -> PlanProposed:
    """The plan of a fleet of one server."""
    _, generation = planned(*messages)
    (proposed,) = generation.plans
    return proposed


def replicas(proposed: PlanProposed) -> dict[str, int]:
    assert proposed.allocations is not None
    return {a.accelerator: a.replicas for a in proposed.allocations}
