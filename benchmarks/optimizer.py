"""The optimizer: one generation of plans from what is known, by size of the fleet."""

import time

from benchmarks.fleets import fleet_of
from benchmarks.report import Progress, Table
from schemas.base import Quality
from schemas.fleet import FleetDeclared
from schemas.telemetry import OfferedFrom, TelemetryObserved
from services.optimizer.core import State, observe, plan
from services.optimizer.settings import OptimizerSettings
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing_models.birth_death import BirthDeathModel

_SIZES = ((100, 5), (200, 5), (1_000, 5))
_NOW_S = 1_000.0


def run(progress: Progress) -> list[Table]:
    """Milliseconds per generation, the least and the median of five."""
    rows = []
    for servers, types in _SIZES:
        progress.say(f"optimizer: {servers} servers")
        fleet = fleet_of(servers, accelerator_types=types)
        state = _state(fleet)
        times_ms = sorted(_plan_ms(state) for _ in range(5))
        rows.append((f"{servers} servers x {types} accelerators", times_ms[0], times_ms[2]))
    notes = ("birth-death sizing and greedy with limited capacity, everything sized anew, one core.",)
    return [Table("One generation of plans (ms)", ("fleet", "least", "median"), tuple(rows), notes)]


def _state(fleet: FleetDeclared) -> State:
    state = observe(State(), fleet)
    for server in fleet.servers:
        window = TelemetryObserved(
            server=server.name,
            model=server.model,
            window_start_s=_NOW_S - 30,
            window_end_s=_NOW_S,
            quality=Quality.OK,
            offered_rate_rps=server.nominal_rate_rps,
            offered_from=OfferedFrom.COUNTERS,
            completed_rate_rps=server.nominal_rate_rps,
            input_tokens=server.nominal_input_tokens,
            output_tokens=server.nominal_output_tokens,
        )
        state = observe(state, window)
    return state


def _plan_ms(state: State) -> float:
    solver, laws = GreedySolver(GreedySettings()), {"three-parameter": ThreeParameterLaw()}
    began = time.perf_counter()
    plan(state, solver, BirthDeathModel(), laws, OptimizerSettings(), _NOW_S + 1)
    return (time.perf_counter() - began) * 1e3
