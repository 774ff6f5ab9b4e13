"""`stoker fit`: parameters of a performance model from benchmark sweeps."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.plot_option import require_plots

if TYPE_CHECKING:
    from services.tuner.sweeps.sweep import Sweep
    from services.tuner.training.trainer import Figures, LawFit, Scores, Training

_MS = 1e3
_COLUMNS = {
    "ttft_wape": "TTFT\nWAPE",
    "itl_wape": "ITL\nWAPE",
    "ttft_mape": "TTFT\nMAPE",
    "itl_mape": "ITL\nMAPE",
    "ttft_p95_mape": "TTFT p95\nMAPE",
}


def fit(
    sweep: Annotated[
        list[Path],
        typer.Argument(
            help="Benchmark files to fit: GuideLLM JSON, CSV or HTML, vLLM benchmark_serving JSON."
        ),
    ],
    test: Annotated[
        list[Path] | None, typer.Option(help="Benchmark file to predict and not to fit; may be repeated.")
    ] = None,
    law: Annotated[
        str, typer.Option(help="Iteration law; three-parameter is always fitted beside it.")
    ] = "seven-parameter",
    plot: Annotated[
        Path | None, typer.Option(help="Write measured against predicted latencies to this PNG file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Fit iteration-law parameters to benchmark sweeps; exit 2 for a file that cannot be used."""
    from services.runtime import plugins
    from services.tuner.sweeps.reader import read
    from services.tuner.sweeps.sweep import SweepRefused
    from services.tuner.training.trainer import TrainingRefused, train

    asked = plugins.build("stoker.laws", law)
    require_plots(plot)
    console = Console(stderr=True)
    try:
        sweeps = [read(file) for file in sweep]
        tests = [read(file) for file in test or []]
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("fitting", total=1.0)
            found = train(sweeps, tests, asked, lambda share: bar.update(task, completed=share))
    except (SweepRefused, TrainingRefused) as error:
        _refuse(str(error))
    if as_json:
        print(json.dumps(_document(found, sweeps, tests), indent=2, allow_nan=False))
    else:
        _show(found, [*sweeps, *tests])
    if plot is not None:
        from services.tuner.training.plot import draw

        draw(plot, found, sweeps, tests)


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _document(found: "Training", sweeps: "list[Sweep]", tests: "list[Sweep]") -> dict[str, Any]:
    chosen = found.chosen
    alpha, beta, gamma = (float(value) * _MS for value in found.converted.parameters)
    return {
        **_law_document(chosen),
        "refused": found.refused,
        "kv_tokens": _finite(found.kv_tokens),
        "laws": [_law_document(one) for one in found.fits],
        "legacy": {"alpha": alpha, "beta": beta, "gamma": gamma},
        "rejected": [
            {**vars(row), "value": _finite(row.value)} for one in (*sweeps, *tests) for row in one.rejected
        ],
    }


def _law_document(one: "LawFit") -> dict[str, Any]:
    names, known = one.law.parameter_names, one.estimate
    return {
        "law": one.law.name,
        "law_version": one.law.version,
        "parameters": dict(zip(names, map(float, known.parameters), strict=True)),
        "standard_errors": dict(zip(names, map(_finite, map(float, known.standard_errors)), strict=True)),
        "condition_number": _finite(known.condition_number),
        "identified": known.identified,
        "training": _figures_document(one.training),
        "left_out": _figures_document(one.left_out),
        "test": _figures_document(one.test),
    }


def _figures_document(figures: "Figures | None") -> dict[str, Any] | None:
    if figures is None:
        return None
    return {
        **vars(figures.all),
        "usual": vars(figures.usual),
        "sweeps": [{"file": file, **vars(scores)} for file, scores in figures.sweeps],
    }


def _show(found: "Training", sweeps: "list[Sweep]") -> None:
    console = Console()
    for row in (row for one in sweeps for row in one.rejected):
        console.print(f"[yellow]left out[/] {row}", soft_wrap=True, highlight=False)
    if found.refused:
        console.print(f"[yellow]refused[/] {found.refused}", soft_wrap=True, highlight=False)
    chosen = found.chosen
    parameters = Table(
        "parameter", "value", "standard error", title=f"{chosen.law.name} {chosen.law.version}"
    )
    for name, value, error in zip(
        chosen.law.parameter_names, chosen.estimate.parameters, chosen.estimate.standard_errors, strict=True
    ):
        parameters.add_row(name, f"{value:.4g}", f"{error:.1%}" if math.isfinite(error) else "not identified")
    console.print(parameters)
    console.print(
        f"condition number {chosen.estimate.condition_number:.3g}; "
        + (
            "every parameter is identified"
            if chosen.estimate.identified
            else "not every parameter is identified"
        )
        + (f"; KV cache {found.kv_tokens:,.0f} tokens" if math.isfinite(found.kv_tokens) else "")
    )
    for one in found.fits:
        errors = Table("errors", "points", *_COLUMNS.values(), title=one.law.name)
        for title, figures in (
            ("training", one.training),
            ("shapes left out", one.left_out),
            ("test", one.test),
        ):
            if figures is not None:
                errors.add_row(title, *_cells(figures.all))
                errors.add_row("  usual points", *_cells(figures.usual))
        console.print(errors)
    by_sweep = Table("sweep", "points", *_COLUMNS.values(), title=chosen.law.name)
    for figures in filter(None, (chosen.training, chosen.test)):
        for file, scores in figures.sweeps:
            by_sweep.add_row(Path(file).stem, *_cells(scores))
    console.print(by_sweep)
    alpha, beta, gamma = (value * _MS for value in found.converted.parameters)
    console.print(f"legacy perfParms (ms): alpha {alpha:.4g}, beta {beta:.4g}, gamma {gamma:.4g}")


def _cells(scores: "Scores") -> list[str]:
    shares = (getattr(scores, name) for name in _COLUMNS)
    return [str(scores.points), *("-" if share is None else f"{share:.1%}" for share in shares)]
