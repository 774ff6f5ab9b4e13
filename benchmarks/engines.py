"""Measured engines: how far both laws are off, on the shapes they were fitted to and on shapes left out."""

import os
import time
from pathlib import Path

from benchmarks.report import Cell, Progress, Table
from services.tuner.sweeps.reader import read
from services.tuner.training.trainer import Scores, Training, train

_COLUMNS = ("points", "TTFT WAPE", "ITL WAPE", "TTFT MAPE", "ITL MAPE", "TTFT p95 MAPE")


def run(progress: Progress) -> list[Table]:
    """Figures of the published sweeps under STOKER_DATA or ../shared/data; none where they are absent."""
    folder = Path(os.environ.get("STOKER_DATA", "../shared/data")) / "guidellm"
    if not folder.is_dir():
        return [Table("fits to measured engines", ("nothing",), (), (f"No sweeps in {folder}.",))]
    tables = []
    for model in sorted(folder.iterdir()):
        progress.say(f"engines: {model.name}")
        began = time.perf_counter()
        found = train([read(file) for file in sorted(model.iterdir())])
        tables.append(_table(model.name, found, time.perf_counter() - began))
    return tables


def _table(model: str, found: Training, seconds: float) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in found.fits:
        for title, figures in (("fitted", one.training), ("left out", one.left_out)):
            if figures is not None:
                rows.append((f"{one.law.name}, {title}, usual", *_cells(figures.usual)))
                rows.append((f"{one.law.name}, {title}, all", *_cells(figures.all)))
    notes = (
        f"Reading, fitting and leaving each shape out: {seconds:.1f} s. usual: without the burst and the two highest",
        "loads of a sweep, as published figures count. TTFT is scored where it is a steady state's.",
    )
    return Table(model, ("law", *_COLUMNS), tuple(rows), notes)


def _cells(scores: Scores) -> tuple[Cell, ...]:
    errors = (scores.ttft_wape, scores.itl_wape, scores.ttft_mape, scores.itl_mape, scores.ttft_p95_mape)
    return (scores.points, *errors)
