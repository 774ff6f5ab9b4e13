"""Curves of the performance models as a picture: four figures over the request rate, a line for each problem."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from services.perfmodel.problems.figures import IN_SERVICE, ITL, RATE, TTFT, WAIT, name_of

MOST_LINES = 12


def draw(file: Path, bodies: Sequence[Mapping[str, Any]]) -> None:
    """Draw the curves of answers into a PNG file; p95 is dashed where a model has it. Raises OSError."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    curves = [(name_of(body, k), body["curve"]) for k, body in enumerate(bodies) if body.get("curve")]
    panels = figure.subplots(2, 2).ravel()
    for axes, shown in zip(panels, (TTFT, ITL, WAIT, IN_SERVICE), strict=True):
        axes.set(title=shown.title, xlabel=RATE.title)
        axes.grid(alpha=0.3)
        for name, points in curves[:MOST_LINES]:
            rates = [RATE.of(point) for point in points]
            (line,) = axes.plot(rates, [shown.of(point) for point in points], label=name)
            tails = [shown.of(point, "p95") for point in points]
            if None not in tails:
                axes.plot(rates, tails, "--", color=line.get_color(), label=f"{name}, p95")
        axes.set_ylim(bottom=0)
    if curves:
        panels[0].legend(fontsize="small")
    figure.savefig(file, dpi=100)
