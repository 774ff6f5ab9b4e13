"""The optimizer: plans by size of the fleet, and solvers side by side where not everything fits."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.fleets import fleet_of
from benchmarks.problems import limited_problem
from benchmarks.report import Cell, Progress, Table
from schemas.base import Quality
from schemas.fleet import FleetDeclared, OptimizerOptions, SaturationPolicy, Served, Server
from schemas.telemetry import OfferedFrom, TelemetryObserved
from services.legacy.reader import read_system
from services.optimizer.candidates import Memory
from services.optimizer.compat import compat_problem
from services.optimizer.core import State, observe, plan
from services.optimizer.planning import OptimizerSettings
from services.optimizer.problem import Problem, SolveOutcome, service_of
from services.optimizer.solver import Solver
from services.optimizer.solvers.auto import AutoSettings, AutoSolver
from services.optimizer.solvers.greedy import GreedySettings, GreedySolver
from services.optimizer.solvers.lagrangian import LagrangianSettings, LagrangianSolver
from services.optimizer.solvers.milp import MilpSettings, MilpSolver
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel

_SIZES = ((100, 5), (200, 5), (1_000, 5))
_FLEETS = (10, 100, 500, 1_000, 2_000)
_TIGHTNESS = (1.0, 0.6)
_LIMITS_S = {"lagrangian": 5.0, "auto": 10.0, "milp": 30.0}
_SPEEDS: tuple[tuple[str, int, float], ...] = (
    ("milp", 100, 1.0),
    ("milp", 1_000, 1.0),
    ("lagrangian", 2_000, 1.0),
    ("lagrangian", 2_000, 0.6),
    ("lagrangian", 10_000, 1.0),
    ("lagrangian", 10_000, 0.6),
)
_SPEED_LIMIT_S = 20.0
_NOW_S = 1_000.0
_COLUMNS = (
    "problem",
    "solver",
    "served",
    "requests/s served",
    "by class",
    "requests/s by class",
    "cost/h",
    "same servers/h",
    "gap",
    "CPU s",
)


def run(progress: Progress) -> list[Table]:
    """Plans, speed, generated fleets with limited accelerators, and the reference's cases where they are there."""
    return [_plans(progress), _speed(progress), _limited(progress), *_golden(progress)]


def _plans(progress: Progress) -> Table:
    rows = []
    for servers, types in _SIZES:
        progress.say(f"optimizer: plans of {servers} servers")
        fleet = fleet_of(servers, accelerator_types=types)
        state = _state(fleet, _NOW_S)
        whole = sorted(_plan_ms(state, Memory(), _NOW_S + 1) for _ in range(5))
        memory = Memory()
        _plan_ms(state, memory, _NOW_S + 1)
        again = []
        for i in range(5):
            changed = _changed(state, fleet, max(1, servers // 100), i)
            again.append(_plan_ms(changed, memory, _NOW_S + 2))
        again.sort()
        rows.append((f"{servers} servers x {types} accelerators", whole[0], whole[2], again[0], again[2]))
        progress.measured(rows[-1])
    notes = ("birth-death sizing and greedy with limited capacity, one core.", "changed: 1 % of the servers.")
    columns = ("fleet", "all, least", "all, median", "changed, least", "changed, median")
    return Table("One generation of plans (ms of CPU)", columns, tuple(rows), notes)


def _speed(progress: Progress) -> Table:
    rows: list[tuple[Cell, ...]] = []
    options = OptimizerOptions(saturation_policy=SaturationPolicy.NONE)
    for name, servers, tightness in _SPEEDS:
        progress.say(f"optimizer: speed of {name} on {servers} servers")
        problem = limited_problem(servers, tightness, options=options)
        solver = MilpSolver(MilpSettings()) if name == "milp" else LagrangianSolver(LagrangianSettings())
        seconds = []
        for _ in range(3):
            began = time.process_time()
            outcome = solver.solve(problem, _SPEED_LIMIT_S)
            seconds.append(time.process_time() - began)
        behind = [
            f"{c.demand_served_rps:.6g} of {c.bound:.6g}" for c in outcome.classes if c.bound is not None
        ]
        rows.append(
            (
                f"{servers} x 20, {tightness:g}",
                name,
                outcome.status.value,
                " ".join(behind),
                outcome.gap_share,
                min(seconds),
            )
        )
        progress.measured(rows[-1])
    columns = ("problem", "solver", "status", "requests/s of their bound by class", "gap", "CPU s")
    notes = (
        "CPU seconds of one process, the least of three. With tightness 1 everyone can be served, with 0.6 not.",
    )
    return Table("Speed of solvers", columns, tuple(rows), notes)


def _limited(progress: Progress) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for servers in _FLEETS:
        for tightness in _TIGHTNESS:
            for counted in (Served.SERVERS, Served.DEMAND):
                progress.say(f"optimizer: {servers} servers, tightness {tightness}, most {counted.value}")
                options = OptimizerOptions(saturation_policy=SaturationPolicy.NONE, maximize=counted)
                problem = limited_problem(servers, tightness, options=options)
                name = f"{servers} x 20, {tightness:g}, {counted.value}"
                rows += _compared(name, problem, progress, exact=False)
    notes = (
        "20 accelerators of 10 types; each type has this part of the cards that the cheapest choices would take.",
        f"Most servers, or most demand, by class, no best effort. Time limits in s: {_LIMITS_S}.",
        "same servers/h: greedy's cost, and what lagrangian needs for exactly the servers that greedy serves.",
    )
    return Table("Limited fleets", _COLUMNS, tuple(rows), notes)


def _golden(progress: Progress) -> Iterator[Table]:
    folder = Path(os.environ.get("STOKER_DATA", "../shared/data")) / "optimizer-golden"
    if not folder.is_dir():
        return
    rows: list[tuple[Cell, ...]] = []
    options = OptimizerOptions(saturation_policy=SaturationPolicy.NONE, maximize=Served.SERVERS)
    laws = {"three-parameter": ThreeParameterLaw()}
    for case in sorted(folder.iterdir()):
        if not (case / "oracle_single_limited.json").is_file():
            continue
        progress.say(f"optimizer: {case.name}")
        system = read_system(case / "input.json")
        began = time.process_time()
        problem = compat_problem(system, options, BirthDeathCompatModel(), laws)
        sizing_ms = 1e3 * (time.process_time() - began)
        recorded = json.loads((case / "meta.json").read_text())["modes"]["limited-None"]
        name = (
            f"{case.name} (sized in {sizing_ms:.0f} ms, reference {recorded['calculateMs']:.1f} ms, "
            f"its greedy {recorded['optimizeMs']:.2f} ms)"
        )
        rows += _compared(name, problem, progress, exact=True)
    notes = ("Compat candidates, most servers by class, no best effort. Reference times as recorded.",)
    yield Table("The reference's cases", _COLUMNS, tuple(rows), notes)


def _compared(name: str, problem: Problem, progress: Progress, exact: bool) -> Iterator[tuple[Cell, ...]]:
    solvers: list[Solver] = [GreedySolver(GreedySettings()), LagrangianSolver(LagrangianSettings())]
    solvers += [MilpSolver(MilpSettings())] if exact else []
    solvers.append(AutoSolver(AutoSettings()))
    greedy: SolveOutcome | None = None
    for solver in solvers:
        began = time.process_time()
        outcome = solver.solve(problem, _LIMITS_S.get(solver.name))
        seconds = time.process_time() - began
        same: float | None = None
        if solver.name == "greedy":
            greedy, same = outcome, outcome.solution.cost_per_hour
        elif solver.name == "lagrangian" and greedy is not None:
            same = _same_servers(problem, greedy)
        classes = service_of(problem, outcome.solution)
        row = (
            name if solver.name == "greedy" else "",
            solver.name,
            sum(c.servers_served for c in classes),
            sum(c.demand_served_rps for c in classes),
            " ".join(f"{c.servers_served}/{c.servers}" for c in classes),
            " ".join(f"{c.demand_served_rps:.4g}/{c.demand_rps:.4g}" for c in classes),
            outcome.solution.cost_per_hour,
            same,
            outcome.gap_share,
            seconds,
        )
        progress.measured(row)
        yield row


def _same_servers(problem: Problem, greedy: SolveOutcome) -> float:
    """The least cost at which the servers that greedy serves can be served, switching not counted."""
    served = tuple(
        replace(
            s,
            candidates=tuple(replace(c, value=c.cost_per_hour) for c in s.candidates),
        )
        for s in problem.servers
        if s.server in greedy.solution.choices
    )
    within = replace(problem, servers=served)
    return (
        LagrangianSolver(LagrangianSettings()).solve(within, _LIMITS_S["lagrangian"]).solution.cost_per_hour
    )


def _state(fleet: FleetDeclared, now_s: float) -> State:
    state = observe(State(), fleet)
    for server in fleet.servers:
        state = observe(state, _window(server, now_s, 1.0))
    return state


def _changed(state: State, fleet: FleetDeclared, count: int, turn: int) -> State:
    """The state after every server was measured again, a few of them with another rate."""
    for i, server in enumerate(fleet.servers):
        factor = 1.1 + 0.1 * turn if i < count else 1.0
        state = observe(state, _window(server, _NOW_S + 1, factor))
    return state


def _window(server: Server, now_s: float, factor: float) -> TelemetryObserved:
    rate = factor * (server.nominal_rate_rps or 0.0)
    return TelemetryObserved(
        server=server.name,
        model=server.model,
        window_start_s=now_s - 30,
        window_end_s=now_s,
        quality=Quality.OK,
        offered_rate_rps=rate,
        offered_from=OfferedFrom.COUNTERS,
        completed_rate_rps=rate,
        input_tokens=server.nominal_input_tokens,
        output_tokens=server.nominal_output_tokens,
    )


def _plan_ms(state: State, memory: Memory, now_s: float) -> float:
    solver, laws = GreedySolver(GreedySettings()), {"three-parameter": ThreeParameterLaw()}
    began = time.process_time()
    plan(state, solver, BirthDeathModel(), laws, OptimizerSettings(), now_s, memory)
    return (time.process_time() - began) * 1e3
