"""`stoker solve`: one optimisation from files, ours or the reference's, and what-if."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from schemas.fleet import FleetDeclared
    from services.legacy.form import LegacySystem
    from services.optimizer.oneshot import Answered, Row

COMPARED = ("unlimited", "greedy", "lagrangian", "milp", "auto")
MOST_WARNINGS = 20
PIPE_WIDTH = 10_000


def solve(
    path: Annotated[Path, typer.Argument(help="A fleet or a legacy system: a file, or a folder of files.")],
    solver: Annotated[
        str | None, typer.Option(help="Solver plug-in; by default the one of the fleet's options.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Performance model that sizes; by default the optimizer's.")
    ] = None,
    compat: Annotated[
        bool, typer.Option("--compat", help="The reference's candidates, faults included; legacy form only.")
    ] = False,
    time_limit: Annotated[float | None, typer.Option(min=0.001, max=3600, help="Seconds to solve.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="What-if: PATH=VALUE, for example servers[chat].min_replicas=2."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, server by server.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Solve with every solver, side by side.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    legacy_json: Annotated[bool, typer.Option("--legacy-json", help="The reference's form.")] = False,
) -> None:
    """Decide accelerators, replicas and batch limits once, from files.

    Exit codes: 0 done, 2 bad input, 3 no server can be given anything.
    """
    from pydantic import ValidationError

    try:
        job = _Job(path, compat, model, time_limit, assignments or [])
        if compare:
            raise SystemExit(_compare(job, as_json))
        answered = job.answer(solver)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        # What is wrong with a fleet as a whole names its place itself.
        said = first["msg"].removeprefix("Value error, ")
        _refuse(f"{path}: {where} is {first['input']!r}: {said}" if where else f"{path}: {said}")
    except ValueError as error:
        _refuse(str(error))
    if legacy_json:
        print(json.dumps(job.legacy(answered), indent=2))
    elif as_json:
        print(json.dumps(_as_json(answered, job.warnings), indent=2))
    else:
        _show(answered, explain)
    from services.optimizer.oneshot import nothing_planned

    raise SystemExit(3 if nothing_planned(answered) else 0)


class _Job:
    """One input and how it is to be solved. Raises ValueError for what is wrong with it."""

    def __init__(
        self,
        path: Path,
        compat: bool,
        model: str | None,
        time_limit: float | None,
        assignments: Sequence[str],
    ) -> None:
        from services.legacy.reader import fleet_of, is_legacy, read_system
        from services.optimizer.oneshot import overridden_options
        from services.optimizer.planning import OptimizerSettings

        self._compat, self._now_s = compat, time.time()
        self._system: LegacySystem | None = None
        self._messages: tuple[Any, ...] = ()
        if is_legacy(path):
            own = [a for a in assignments if _is_own_option(a)]
            self._system = read_system(path, [a for a in assignments if a not in own])
            legacy = fleet_of(self._system, self._now_s)
            fleet, self._messages = _changed(legacy.fleet, own), legacy.messages
        elif compat:
            raise ValueError(
                f"{path}: --compat needs a system in the legacy form; this is a fleet of our own"
            )
        else:
            fleet = _own(path, assignments, self._now_s)
        if not fleet.servers:
            raise ValueError(f"{path}: declares no servers: expected at least one")
        self.warnings = self._system.warnings if self._system else ()
        _warn(self.warnings)
        self.fleet = overridden_options(fleet, time_limit_s=time_limit)
        chosen = model or ("birth-death-compat" if compat else None)
        self._settings = OptimizerSettings(performance_model=chosen) if chosen else OptimizerSettings()

    def answer(self, solver: str | None) -> "Answered":
        """The answer of one solver, by default the one that the input asks for."""
        from services.optimizer.oneshot import answer, answer_compat, state_of
        from services.runtime import plugins

        laws = {name: plugins.build("stoker.laws", name) for name in plugins.names("stoker.laws")}
        model = plugins.build("stoker.queueing", self._settings.performance_model)
        if not self._compat:
            built = plugins.build("stoker.solvers", solver or self.fleet.optimizer.solver)
            state = state_of(self.fleet, self._messages)
            return answer(state, built, model, laws, self._settings, self._now_s)
        assert self._system is not None
        name = solver or ("unlimited" if self.fleet.optimizer.unlimited else "greedy")
        settings = {"single_precision": True} if name == "greedy" else None
        built = plugins.build("stoker.solvers", name, settings)
        return answer_compat(self._system, built, model, laws, self.fleet.optimizer)

    def legacy(self, answered: "Answered") -> dict[str, Any]:
        """An answer in the reference's form."""
        from services.optimizer.oneshot import legacy_answer, loads_of_fleet, loads_of_system

        loads = loads_of_system(self._system) if self._system else loads_of_fleet(answered.plans)
        return legacy_answer(answered, loads)


def _own(path: Path, assignments: Sequence[str], now_s: float) -> "FleetDeclared":
    from services.collector.fleet_files import read_fleet

    return _changed(read_fleet([path], now_s), assignments)


def _changed(fleet: "FleetDeclared", assignments: Sequence[str]) -> "FleetDeclared":
    from schemas.fleet import FleetDeclared
    from services.runtime.overrides import overridden

    if not assignments:
        return fleet
    return FleetDeclared.model_validate(overridden(fleet.model_dump(mode="json"), assignments))


def _is_own_option(assignment: str) -> bool:
    """Whether it sets an option that only our own form has, which a legacy system can be solved with too."""
    from schemas.fleet import OptimizerOptions
    from services.legacy.reader import OPTIONAL

    section, _, key = assignment.partition("=")[0].partition(".")
    ours = {name.replace("_", "") for name in OptimizerOptions.model_fields}
    return section.lower() == "optimizer" and key.lower().replace("_", "") in ours - OPTIONAL


def _warn(warnings: Sequence[str]) -> None:
    for text in warnings[:MOST_WARNINGS]:
        print(f"warning: {text}", file=sys.stderr)
    if len(warnings) > MOST_WARNINGS:
        print(f"warning: and {len(warnings) - MOST_WARNINGS} more", file=sys.stderr)


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _as_json(answered: "Answered", warnings: Sequence[str]) -> dict[str, Any]:
    rows = answered.plans or answered.rows
    dump: Callable[[Any], Any] = lambda one: (  # noqa: E731 - plans and rows are shown alike
        one.model_dump(mode="json") if hasattr(one, "model_dump") else _row_json(one)
    )
    return {
        "manifest": answered.manifest.model_dump(mode="json"),
        "plans": [dump(one) for one in rows],
        "warnings": list(warnings),
    }


def _row_json(row: "Row") -> dict[str, Any]:
    return {
        "server": row.server,
        "status": row.status.value,
        "allocations": [a.model_dump(mode="json") for a in row.allocations],
        "predicted": row.predicted.model_dump(mode="json") if row.predicted else None,
        "binding": row.binding,
        "explanation": row.explanation,
    }


def _compare(job: _Job, as_json: bool) -> int:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from services.runtime import plugins

    there = set(plugins.names("stoker.solvers"))
    found = []
    names = (*(n for n in COMPARED if n in there), *sorted(there - set(COMPARED)))
    screen = Console(stderr=True)
    for name in track(names, "solving", console=screen, transient=True, disable=not screen.is_terminal):
        manifest = job.answer(name).manifest
        found.append(
            {
                "solver": name,
                "status": manifest.status.value,
                "served": sum(c.servers_served for c in manifest.classes),
                "demand_served_rps": sum(c.demand_served_rps for c in manifest.classes),
                "cost_per_hour": manifest.cost_per_hour,
                "bound_cost_per_hour": manifest.bound_cost_per_hour,
                "gap_share": manifest.gap_share,
                "seconds": manifest.solve_s,
            }
        )
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    table = Table("solver", "status", "served", "requests/s served", "cost/h", "bound/h", "gap", "seconds")
    for one in found:
        table.add_row(*(_cell(value) for value in one.values()))
    _console().print(table)
    return 0


def _console() -> "Console":
    """Where tables go. A pipe has no edge that could cut anything off, and brackets in names are no markup."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)


def _show(answered: "Answered", explain: bool) -> None:
    from rich.table import Column, Table

    console = _console()
    heads = ("server", "priority", "status", "allocation", "batch", "cost/h", "TTFT ms", "ITL ms", "decides")
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for row in answered.rows:
        times = ("-", "-")
        if row.predicted is not None:
            times = (f"{1e3 * row.predicted.ttft_s:.4g}", f"{1e3 * row.predicted.itl_s:.4g}")
        table.add_row(
            row.server,
            str(row.priority),
            row.status.value,
            " + ".join(f"{a.replicas} x {a.accelerator}" for a in row.allocations) or "-",
            " + ".join(str(a.max_batch) for a in row.allocations) or "-",
            f"{sum(a.cost_per_hour for a in row.allocations):,.2f}",
            *times,
            row.binding or "-",
        )
    console.print(table)
    manifest = answered.manifest
    bound = "" if manifest.bound_cost_per_hour is None else f", bound {manifest.bound_cost_per_hour:,.2f}"
    gap = "" if manifest.gap_share is None else f", gap {manifest.gap_share:.3%}"
    console.print(
        f"{manifest.status.value} by {manifest.solver} in {manifest.solve_s:.3f} s: "
        f"cost {manifest.cost_per_hour:,.2f} per hour{bound}{gap}",
        highlight=False,
    )
    for one in manifest.classes:
        console.print(
            f"priority {one.priority}: {one.servers_served} of {one.servers} servers, "
            f"{one.demand_served_rps:.4g} of {one.demand_rps:.4g} requests/s within objectives",
            highlight=False,
        )
    if not explain:
        return
    for price in manifest.shadow_prices:
        if price.cost_per_hour > 0:
            console.print(f"one more {price.type}: {price.cost_per_hour:.4g} per hour", highlight=False)
    for short in manifest.shortfall:
        console.print(
            f"{short.server}: {short.missing_cards} more {short.type} would do "
            f"({short.missing_replicas} x {short.accelerator})",
            highlight=False,
        )
    for row in answered.rows:
        if row.explanation:
            console.print(f"{row.server}: {row.explanation}", highlight=False)
