"""Parameters and one-step-ahead errors of replays, cycle by cycle, as a picture. Imports matplotlib when it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from services.tuner.replay import Recording, Update


def draw(file: Path, replays: Sequence[tuple[Recording, Sequence[Update]]], names: Sequence[str]) -> None:
    """Writes a PNG: a row of panels for each recording, one for every parameter, one for the errors."""
    from matplotlib.figure import Figure

    columns = len(names) + 1
    figure = Figure(figsize=(3.4 * columns, 2.6 * len(replays)), layout="constrained")
    rows = figure.subplots(len(replays), columns, squeeze=False)
    for panels, (recording, updates) in zip(rows, replays, strict=True):
        known = [update for update in updates if update.estimate is not None]
        values: Sequence[Mapping[str, float]] = [u.estimate.values for u in known if u.estimate is not None]
        for panel, name in zip(panels, names, strict=False):
            panel.plot([update.cycle for update in known], [value[name] for value in values])
            panel.set(xlabel="cycle", ylabel=name, title=f"{recording.run} {recording.server}")
        for label, errors in (
            ("ITL", [(u.cycle, u.itl_error_share) for u in updates]),
            ("TTFT", [(u.cycle, u.ttft_error_share) for u in updates]),
        ):
            there = [(cycle, error) for cycle, error in errors if error is not None]
            panels[-1].plot([cycle for cycle, _ in there], [error for _, error in there], label=label)
        panels[-1].set(xlabel="cycle", ylabel="error one step ahead", yscale="log")
        panels[-1].legend()
    figure.savefig(file, dpi=120)
