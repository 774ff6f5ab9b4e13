"""The command line: `stoker`. Exit codes: 0 done, 1 failed, 2 bad input, 3 infeasible."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from services import analyze_commands, forecast_commands
from services.fit_commands import fit
from services.runtime.errors import Fatal, Retry
from services.runtime.plugins import PluginRefused
from services.solve_commands import solve
from services.tune_commands import tune

if TYPE_CHECKING:
    from services.runtime.settings import RuntimeSettings

SERVICES = ("collector", "tuner", "predictor", "optimizer", "actuator", "operator", "simulator")

app = typer.Typer(
    name="stoker",
    help="Decides which accelerator, how many replicas and how large a batch every LLM server gets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
schema = typer.Typer(help="The message contracts.", no_args_is_help=True)
config = typer.Typer(help="Settings.", no_args_is_help=True)
app.add_typer(schema, name="schema")
app.add_typer(config, name="config")
analyze_commands.register(app)
app.command()(solve)
app.command()(fit)
app.command()(tune)
forecast_commands.register(app)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def main() -> None:
    """Entry point of the console script: no traceback for what the user can mend."""
    # The bus's client takes half a second to import, which commands on files do without.
    if sys.argv[1:2] in ([], ["bus"], ["--help"]):
        from services.bus_commands import bus

        app.add_typer(bus, name="bus")
    try:
        app(standalone_mode=True)
    except (Fatal, Retry) as error:
        fail(str(error), 1)
    except ValueError as error:
        from services.runtime.settings import SettingsRefused

        if not isinstance(error, SettingsRefused | PluginRefused):
            raise
        fail(str(error), 2)


def fail(message: str, code: int) -> NoReturn:
    """End with a message on standard error."""
    print(message, file=sys.stderr)
    raise SystemExit(code)


@app.command()
def up(
    fleet: Annotated[
        Path | None, typer.Option(help="Fleet file or folder; by default the demo fleet.")
    ] = None,
    plant: Annotated[
        Path | None, typer.Option(help="Simulated plant; by default the demo's, or derived from --fleet.")
    ] = None,
    bus: Annotated[str, typer.Option(help="embedded, or the address of a NATS server.")] = "embedded",
    target: Annotated[str, typer.Option(help="simulated, dry-run or kubernetes.")] = "simulated",
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            help="Measure this cluster instead of a simulated fleet; in a pod, its own without this."
        ),
    ] = None,
    prometheus_url: Annotated[
        str | None, typer.Option(help="Prometheus that scrapes the cluster's servers.")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1000, help="Control seconds per wall second; 30, and always 1 on a cluster."
        ),
    ] = None,
    cycle: Annotated[float, typer.Option(min=1, help="Control seconds between cycles.")] = 30.0,
    duration: Annotated[float | None, typer.Option(min=1, help="End after this many wall seconds.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep the embedded bus's streams in this folder.")
    ] = None,
    prometheus: Annotated[bool, typer.Option(help="Scrape through Prometheus when it is installed.")] = True,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /livez, /readyz and /metrics.")] = 0,
    log: Annotated[
        str, typer.Option(help="Least level of the logs: debug, info, warning, error.")
    ] = "warning",
    as_json: AsJson = False,
) -> None:
    """Run everything in one process against a simulated fleet or a Kubernetes cluster, with a live view."""
    from services.allinone import Options
    from services.simulator.demo import DEMO_FLEET, DEMO_PLANT
    from services.watch import follow

    on_cluster = target == "kubernetes" or kubeconfig is not None
    if on_cluster and fleet is None:
        fail("--fleet: expected the fleet that runs on the cluster; the demo's is simulated", 2)
    if on_cluster and speed not in (None, 1.0):
        fail(f"--speed is {speed:g}: expected 1, a cluster's time cannot be sped up", 2)
    if on_cluster and target == "simulated":
        fail("--target is simulated: expected dry-run or kubernetes with --kubeconfig", 2)
    options = Options(
        fleet=fleet or DEMO_FLEET,
        plant=plant or (DEMO_PLANT if fleet is None else None),
        bus=bus,
        target=target,
        speed=(1.0 if on_cluster else 30.0) if speed is None else speed,
        kubeconfig=kubeconfig,
        prometheus_url=prometheus_url,
        cycle_s=cycle,
        duration_s=duration,
        store=store,
        prometheus=prometheus,
        http_port=port,
        log_level=log,
    )
    raise SystemExit(follow(options, as_json or not sys.stdout.isatty()))


@app.command()
def run(service: Annotated[str, typer.Argument(help=f"One of {', '.join(SERVICES)}.")]) -> None:
    """Run one service with settings from the environment; the same as `python -m services.SERVICE`."""
    if service not in SERVICES:
        fail(f"service {service!r} does not exist; there is: {', '.join(SERVICES)}", 2)
    if service == "simulator":
        from services.simulator.__main__ import main as simulate

        raise SystemExit(simulate())
    from services.runtime.process import main as serve

    make, settings = parts_of(service)
    raise SystemExit(serve(make, settings))


def parts_of(service: str) -> "tuple[Callable[[Any], Any], type[RuntimeSettings]]":
    """The class of a service and that of its settings."""
    made = getattr(importlib.import_module(f"services.{service}.service"), f"{service.title()}Service")
    return made, settings_of(service)


def settings_of(service: str) -> "type[RuntimeSettings]":
    """The settings of a service."""
    found: type[RuntimeSettings] = importlib.import_module(f"services.{service}.settings").Settings
    return found


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List every installed plug-in."""
    from services.runtime.plugins import listed

    found = listed()
    if as_json:
        print(json.dumps([vars(one) for one in found], indent=2))
        return
    table = Table("group", "name", "implementation", "from")
    for one in found:
        table.add_row(one.group, one.name, one.value, one.distribution)
    Console().print(table)


@schema.command("export")
def export(
    check: Annotated[bool, typer.Option("--check", help="Only say what has drifted; exit 1 if any.")] = False,
) -> None:
    """Write JSON Schemas, the AsyncAPI document and the README's topic table from the contracts."""
    from schemas import export as exporter

    changed = exporter.drift() if check else exporter.write()
    for path in changed:
        print(f"{'drifted' if check else 'written'}: {path}")
    if check and changed:
        raise SystemExit(1)
    print(f"{len(exporter.files())} files {'checked' if check else 'up to date'}")


@config.command("show")
def show(service: Annotated[str | None, typer.Argument(help="One service; by default all.")] = None) -> None:
    """Print the settings in force, environment and STOKER_CONFIG included; secrets are masked."""
    if service is not None and service not in SERVICES:
        fail(f"service {service!r} does not exist; there is: {', '.join(SERVICES)}", 2)
    from services.runtime.settings import load

    shown = {
        name: load(settings_of(name)).model_dump(mode="json") for name in ([service] if service else SERVICES)
    }
    print(json.dumps(shown, indent=2))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine and the configured bus lack."""
    import asyncio

    from services.doctor import examine

    findings = asyncio.run(examine())
    if as_json:
        print(json.dumps([vars(one) for one in findings], indent=2))
    else:
        table = Table("what", "state", "detail")
        for one in findings:
            table.add_row(one.what, "[green]ok[/]" if one.ok else "[red]missing[/]", one.detail)
        Console().print(table)
    if any(one.needed and not one.ok for one in findings):
        raise SystemExit(1)
