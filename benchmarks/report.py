"""What a benchmark hands back, and how it is shown."""

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Numbers under their columns, and what to know when reading them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The table with each row by its columns."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}

    def as_text(self) -> str:
        """The table for people, numbers to the right."""
        cells = [self.columns, *(tuple(map(_shown, row)) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in cells
        ]
        return "\n".join([self.title, lines[0], "-" * len(lines[0]), *lines[1:], *self.notes])


class Progress:
    """How far a benchmark is, on standard error: one line on a terminal, and rows as they are measured anywhere."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Replace the line."""
        if self._shows:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def measured(self, row: Sequence[Cell]) -> None:
        """Print a row of a table to come, so that a run that is cut off leaves what it found."""
        self.clear()
        print("  ".join(map(_shown, row)), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line."""
        self.say("")


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values does not exceed; None of nothing."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def median_s(work: Callable[[], object], least: int = 5, budget_s: float = 3.0) -> float:
    """Median wall seconds of a call, repeated at least so often and until the budget is spent, once to warm up."""
    work()
    seconds: list[float] = []
    end = time.perf_counter() + budget_s
    while len(seconds) < least or (time.perf_counter() < end and len(seconds) < 1000):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def machine() -> dict[str, Any]:
    """Where the numbers come from; a load well above what the benchmark itself makes explains slow ones."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return (
        f"{cell:,.4g}"
        if isinstance(cell, float) and abs(cell) < 1000
        else f"{cell:,.0f}"
        if isinstance(cell, int | float)
        else cell
    )
