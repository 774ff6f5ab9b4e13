"""`stoker tune`: recorded observations through an estimator, cycle by cycle."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from services.plot_option import require_plots

if TYPE_CHECKING:
    from services.tuner.replay import Recording, Update


def tune(
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV of observations: server, collect_seq, pod, max_batch, arrival_rpm, in_tok, out_tok, "
            "itl_ms, ttft_ms, and where known log, acc, requests, waiting, running."
        ),
    ],
    estimator: Annotated[str, typer.Option(help="Estimator plug-in.")] = "moving-horizon",
    law: Annotated[str, typer.Option(help="Iteration law of the parameters.")] = "three-parameter",
    prior: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE in SI units: a parameter to start from; all of the law, or none to start from nothing."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: a setting of the estimator, such as ttft_iterations=1."),
    ] = None,
    run: Annotated[str | None, typer.Option(help="Only this run of the file (its column log).")] = None,
    server: Annotated[str | None, typer.Option(help="Only this server.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write parameters and errors by cycle to this PNG file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per update and line.")] = False,
) -> None:
    """Replay observations through an estimator; exit 2 for a file or an option that cannot be used."""
    from services.runtime import plugins
    from services.tuner.replay import ObservationsRefused, read_recordings, replay
    from services.tuner.settings import ObservationSettings

    chosen = {name: _setting(name, value) for name, value in _pairs("--set", set_)}
    start = {name: _number(name, value) for name, value in _pairs("--prior", prior)} or None
    asked = plugins.build("stoker.laws", law)
    built = plugins.build("stoker.estimators", estimator, chosen)
    require_plots(plot)
    try:
        built.start(start, asked)
        recordings = [
            one for one in read_recordings(file) if run in (None, one.run) and server in (None, one.server)
        ]
    except ObservationsRefused as error:
        _refuse(str(error))
    except ValueError as error:
        _refuse(f"--prior: {error}")
    if not recordings:
        _refuse(f"{file}: nothing of run {run or 'any'} and server {server or 'any'}")
    console = Console(stderr=True)
    found: list[tuple[Recording, list[Update]]] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for one in bar.track(recordings, description="replaying"):
            iterations = int(chosen.get("ttft_iterations", 0))
            updates = []
            for update in replay(one, built, asked, start, ObservationSettings(), iterations):
                updates.append(update)
                if as_json:
                    print(json.dumps(_document(one, update, estimator), allow_nan=False))
            found.append((one, updates))
    if not as_json:
        _show(found, asked.parameter_names)
    if plot is not None:
        from services.tuner.replay_plot import draw

        draw(plot, found, asked.parameter_names)


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for text in given or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            _refuse(f"{option}: {text!r}, expected NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _setting(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        _refuse(f"--set: {name}={text}, expected a value as YAML writes it")


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        _refuse(f"--prior: {name}={text}, expected a number of at least 0")
    return value


def _document(recording: "Recording", update: "Update", estimator: str) -> dict[str, Any]:
    known = update.estimate
    return {
        "run": recording.run,
        "server": recording.server,
        "cycle": update.cycle,
        "estimator": estimator,
        "parameters": None if known is None else dict(known.values),
        "covariance": None if known is None else known.covariance,
        "health": None if known is None else known.health.value,
        "evidence": None if known is None else known.evidence.model_dump(mode="json"),
        "used": update.used,
        "left_out": update.left_out,
        "itl_error_share": update.itl_error_share,
        "ttft_error_share": update.ttft_error_share,
    }


def _show(found: "list[tuple[Recording, list[Update]]]", names: tuple[str, ...]) -> None:
    table = Table(
        "run",
        *(Column(name, min_width=8) for name in names),
        Column("health", min_width=8),
        Column("ITL", min_width=5),
        Column("TTFT", min_width=5),
        title="after the last cycle",
    )
    for recording, updates in found:
        last = updates[-1].estimate
        values = ["-"] * len(names) if last is None else [f"{last.values[name]:.4g}" for name in names]
        table.add_row(
            f"{recording.run} {recording.server}",
            *values,
            "-" if last is None else last.health.value,
            _median([u.itl_error_share for u in updates]),
            _median([u.ttft_error_share for u in updates]),
        )
    console = Console()
    console.print(table)
    console.print("ITL, TTFT: median over cycles of the mean error one step ahead", highlight=False)


def _median(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{median(known):.1%}" if known else "-"
