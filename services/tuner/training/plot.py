"""Measured against predicted latencies of a training, as a picture. The only module that imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from services.tuner.sweeps.sweep import Sweep
from services.tuner.training.conditions import Conditions
from services.tuner.training.observation import observation_of
from services.tuner.training.trainer import Training


def draw(file: Path, training: Training, sweeps: Sequence[Sweep], tests: Sequence[Sweep]) -> None:
    """Writes a PNG: ITL and TTFT of every point, crosses for test sweeps; points on the diagonal are right."""
    from matplotlib.figure import Figure

    chosen = training.chosen
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for marker, group, label in (("o", sweeps, "training"), ("x", tests, "test")):
        if not group:
            continue
        at = Conditions.of(group, training.kv_tokens)
        predicted = observation_of(chosen.law).predict(chosen.estimate.parameters[None], at)
        counts = at.ttft_counts
        pairs = (
            (at.itl_s, predicted.itl_s[0], np.ones_like(counts)),
            (at.ttft_s, predicted.ttft_s[0], counts),
        )
        for panel, (measured, answer, shown) in zip(panels, pairs, strict=True):
            panel.plot(measured[shown] * 1e3, answer[shown] * 1e3, marker, alpha=0.7, label=label)
    for panel, name in zip(panels, ("ITL", "TTFT"), strict=True):
        ends = panel.get_xlim()
        panel.plot(ends, ends, color="grey", linewidth=1)
        panel.set(xscale="log", yscale="log", xlabel=f"measured {name}, ms", ylabel=f"predicted {name}, ms")
        panel.legend()
    figure.suptitle(f"{chosen.law.name}: {len(sweeps)} sweeps fitted, {len(tests)} tested")
    figure.savefig(file, dpi=120)
