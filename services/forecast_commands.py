"""`stoker backtest` and `stoker forecast`: the predictor's own series on a trace."""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.plot_option import require_plots

if TYPE_CHECKING:
    from services.predictor.backtest import Run, Score
    from services.predictor.forecaster import Forecaster
    from services.predictor.settings import PredictorSettings
    from services.predictor.traces import Trace

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Columns = Annotated[str, typer.Option(help="Series, separated by commas; by default all.")]
Horizons = Annotated[str, typer.Option(help="Seconds ahead, separated by commas.")]
Window = Annotated[float, typer.Option(min=1, help="Seconds that request logs are counted in.")]
TraceFile = Annotated[
    Path,
    typer.Argument(help="Rate CSV with window_start_s or timestamp, or an Azure, BurstGPT or Mooncake log."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("backtest")(backtest)
    app.command("forecast")(forecast)


def backtest(
    trace: Annotated[
        list[Path],
        typer.Argument(help="Rate CSVs or Azure, BurstGPT or Mooncake logs; several are one table."),
    ],
    columns: Columns = "",
    horizons: Horizons = "600,1800,3600",
    window: Window = 60.0,
    plot: Annotated[Path | None, typer.Option(help="Also draw the forecasts into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast a trace from every window, seeing only the past, and score against what came.

    What is forecast is the largest rate within the horizon, as the predictor does live.
    """
    from services.predictor import backtest as scoring

    require_plots(plot)
    pool, settings = _pool()
    held = [(path, _read(path, window, _names(columns))) for path in trace]
    spans = _horizons(horizons)
    work = [(path, one, name, span) for path, one in held for name in one.rates_rps for span in spans]
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[str, Any, Any, Any]] = []
    with _progress() as progress:
        task = progress.add_task("backtest", total=len(work))
        for path, one, name, span in work:
            rates = one.rates_rps[name]
            # Processor time: what a fit costs does not depend on what else the machine does.
            run = scoring.run(rates, one.start_s, one.width_s, span, pool, settings, time.process_time)
            first = scoring.warm_up(len(rates), one.width_s)
            scores = [scoring.score(rates, run, said, first) for said in (run.rates_rps, run.last_rps)]
            rows.append(_row(path, name, span, run, first, *scores))
            drawn.append((f"{name}, {span:g} s", rates, run, one))
            progress.advance(task)
    if as_json:
        print(json.dumps(rows, indent=2, allow_nan=False))
    else:
        _show(rows)
    if plot is not None:
        _draw(plot, drawn)


def forecast(
    trace: TraceFile,
    columns: Columns = "",
    horizons: Horizons = "600,1800,3600",
    window: Window = 60.0,
    as_json: AsJson = False,
) -> None:
    """Forecast what comes after a trace: quantiles of the largest rate within each horizon."""
    from services.predictor import backtest as scoring
    from services.predictor.quantiles import LEVELS

    pool, settings = _pool()
    held = _read(trace, window, _names(columns))
    work = [(name, span) for name in held.rates_rps for span in _horizons(horizons)]
    rows: list[dict[str, Any]] = []
    with _progress() as progress:
        task = progress.add_task("forecast", total=len(work))
        for name, span in work:
            lengths = held.tokens.get(name)
            run = scoring.run(
                held.rates_rps[name],
                held.start_s,
                held.width_s,
                span,
                pool,
                settings,
                time.process_time,
                lengths,
            )
            measured = [i for i, rate in enumerate(run.rates_rps[:, 0]) if not math.isnan(rate)]
            if not measured:
                _refuse(f"{trace}: column {name}: no measured window: expected at least one")
            newest = measured[-1]
            levels = zip(
                LEVELS,
                run.rates_rps[newest].tolist(),
                run.input_tokens[newest].tolist(),
                run.output_tokens[newest].tolist(),
                strict=True,
            )
            rows.append(
                {
                    "series": name,
                    "horizon_s": span,
                    "issued_at_s": held.start_s + (newest + 1) * held.width_s,
                    "rate": [
                        {"quantile": level, "rate_rps": rate}
                        | (
                            {}
                            if lengths is None
                            else {"input_tokens": _known(inputs), "output_tokens": _known(outputs)}
                        )
                        for level, rate, inputs, outputs in levels
                    ],
                    "forecaster": "ensemble" if run.ensemble[newest] else "last",
                    "reason": run.reason,
                }
            )
            progress.advance(task)
    if as_json:
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    table = Table("series", "horizon s", *(f"q{level:g} rps" for level in LEVELS), "forecaster")
    for row in rows:
        table.add_row(
            row["series"],
            f"{row['horizon_s']:g}",
            *(f"{one['rate_rps']:.4g}" for one in row["rate"]),
            row["forecaster"],
        )
    Console().print(table)


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _pool() -> "tuple[list[Forecaster], PredictorSettings]":
    from services.predictor.service import pool_of
    from services.predictor.settings import Settings
    from services.runtime.settings import load

    settings = load(Settings).predictor
    return pool_of(settings), settings


def _read(path: Path, width_s: float, columns: Sequence[str]) -> "Trace":
    from services.predictor.traces import TraceRefused, read

    try:
        return read(path, width_s, columns)
    except TraceRefused as error:
        _refuse(str(error))


def _names(raw: str) -> list[str]:
    return [name.strip() for name in raw.split(",") if name.strip()]


def _horizons(raw: str) -> list[float]:
    try:
        found = [float(one) for one in raw.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < one <= 1e9 for one in found):
        _refuse(
            f"--horizons {raw!r}: expected seconds above 0, separated by commas, for example 600,1800,3600"
        )
    return found


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


def _row(
    path: Path, name: str, span: float, run: "Run", first: int, chosen: "Score", last: "Score"
) -> dict[str, Any]:
    share = float(run.ensemble[first:].mean())
    return {
        "file": path.name,
        "series": name,
        "horizon_s": span,
        "forecaster": "ensemble" if share > 0.5 else "last",
        "ensemble_share": share,
        "reason": run.reason,
        **vars(chosen),
        "fits": run.fits,
        "ms_per_refit": 1000.0 * run.fit_s / run.fits if run.fits else None,
        "last": vars(last),
    }


def _ratio(row: dict[str, Any], name: str) -> float | None:
    own, last = row[name], row["last"][name]
    return own / last if own is not None and last else None


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(
        "series", "horizon s", "forecaster", "MASE", "WAPE", "bias", "pinball .5", ".9", ".95", ".9 ÷ last",
        "coverage", "headroom", "last's", "ms/refit",
    )  # fmt: skip
    for row in rows:
        figures = [row[k] for k in ("mase", "wape", "bias", "pinball_p50", "pinball_p90", "pinball_p95")]
        figures += [_ratio(row, "pinball_p90"), row["coverage"], row["headroom"], row["last"]["headroom"]]
        said = ["–" if one is None else f"{one:.3g}" for one in [*figures, row["ms_per_refit"]]]
        table.add_row(row["series"], f"{row['horizon_s']:g}", row["forecaster"], *said)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for span in sorted({row["horizon_s"] for row in rows}):
        ratios = sorted(
            r for row in rows if row["horizon_s"] == span and (r := _ratio(row, "pinball_p90")) is not None
        )
        if ratios:
            middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
            print(
                f"{span:g} s: pinball at 0.9 against the last value: median {middle:.3f}, "
                f"largest {ratios[-1]:.3f}, {len(ratios)} series"
            )


def _draw(path: Path, drawn: Sequence[tuple[str, Any, Any, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.5 * len(drawn)), layout="constrained")
    for place, (title, rates, run, trace) in enumerate(drawn):
        axes = figure.add_subplot(len(drawn), 1, place + 1)
        hours = [(i + 1) * trace.width_s / 3600.0 for i in range(len(rates))]
        axes.fill_between(hours, run.rates_rps[:, 0], run.rates_rps[:, 2], alpha=0.3, label="0.5 to 0.9")
        axes.plot(hours, run.came_rps, linewidth=0.8, label="largest that came")
        axes.plot(hours, run.last_rps[:, 2], linewidth=0.5, label="last value's 0.9")
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("requests/s")
    figure.axes[0].legend(fontsize=8)
    figure.axes[-1].set_xlabel("hours")
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        _refuse(f"--plot {path}: cannot be written: {error}")
