"""What the optimizer knows: the newest message of each kind and key."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from schemas.base import Contract, Quality
from schemas.fleet import FleetDeclared
from schemas.forecast import ForecastIssued
from schemas.parameters import ParametersEstimated
from schemas.plan import PlanIssued, PlanProposed
from schemas.telemetry import CapacityObserved, CapacityUnavailable, InventoryObserved, TelemetryObserved

K = TypeVar("K")
M = TypeVar("M", bound=Contract)


@dataclass(frozen=True)
class State:
    """Newest inputs, by server, by accelerator type or by (model, accelerator), and what was planned last."""

    fleet: FleetDeclared | None = None
    telemetry: Mapping[str, TelemetryObserved] = field(default_factory=dict)
    inventory: Mapping[str, InventoryObserved] = field(default_factory=dict)
    capacity: CapacityObserved | None = None
    unavailable: Mapping[str, CapacityUnavailable] = field(default_factory=dict)
    parameters: Mapping[tuple[str, str], ParametersEstimated] = field(default_factory=dict)
    forecasts: Mapping[str, ForecastIssued] = field(default_factory=dict)
    last_generation: int = 0
    last_plans: Mapping[str, PlanProposed] = field(default_factory=dict)


def observe(state: State, message: Contract) -> State:
    """The state with a message in it; the same state for one that is older than what is known, or foreign.

    The optimizer's own plans are inputs too: read back after a restart they continue the generations.
    Inventory and capacity of quality missing say nothing, so what was known before stays.
    """
    match message:
        case FleetDeclared():
            old = state.fleet
            newer = old is None or message.declared_at_s >= old.declared_at_s
            return replace(state, fleet=message) if newer else state
        case TelemetryObserved(server=name, calibration=False):
            windows = _newest(state.telemetry, name, message, "window_end_s")
            return replace(state, telemetry=windows)
        case InventoryObserved(server=name):
            if message.quality is Quality.MISSING:
                return state
            return replace(state, inventory=_newest(state.inventory, name, message, "observed_at_s"))
        case CapacityObserved():
            newer = state.capacity is None or message.observed_at_s >= state.capacity.observed_at_s
            return (
                replace(state, capacity=message)
                if newer and message.quality is not Quality.MISSING
                else state
            )
        case CapacityUnavailable(type=name):
            return replace(state, unavailable=_newest(state.unavailable, name, message, "since_s"))
        case ParametersEstimated(model=model, accelerator=accelerator):
            key = (model, accelerator)
            return replace(state, parameters=_newest(state.parameters, key, message, "estimated_at_s"))
        case ForecastIssued(server=name):
            return replace(state, forecasts=_newest(state.forecasts, name, message, "issued_at_s"))
        case PlanProposed(server=name):
            generation = max(state.last_generation, message.generation)
            plans = _newest(state.last_plans, name, message, "generation")
            return replace(state, last_generation=generation, last_plans=plans)
        case PlanIssued():
            return replace(state, last_generation=max(state.last_generation, message.generation))
        case _:
            return state


def _newest(known: Mapping[K, M], key: K, message: M, order: str) -> Mapping[K, M]:
    old = known.get(key)
    if old is not None and getattr(old, order) > getattr(message, order):
        return known
    return {**known, key: message}
