"""The stability gate on recorded recommendations: changes and reversals against replica-hours, by setting.

The log holds the size decided in each cycle of published control-loop runs; the gate sees the sizes one after
the other, at the log's own times. It has no predictions for other sizes, so every one is taken to keep its
objectives with a margin, and rules that need the replicas before rounding up have nothing to act on.
"""

import csv
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import Cell, Progress, Table
from schemas.base import Quality
from schemas.fleet import Objective, Server
from schemas.plan import Allocation, Inputs, PlanProposed, Prediction, ServerStatus
from schemas.telemetry import InventoryObserved, TelemetryObserved, VariantInventory
from services.actuator.gate import Case, Memory, Rule, Target, pass_gate, remember, total
from services.actuator.settings import ActuatorSettings
from services.runtime import plugins

PICTURE = Path("build") / "benchmarks" / "gate.png"
_STARTUP_S = 120.0
_WINDOWS_S = (60.0, 120.0, 180.0, 300.0, 600.0)
_STEEP_SHARES = (0.2, 0.3, 0.4, 0.6, 1.0)
_KEPT = Prediction(ttft_s=0, itl_s=0, wait_s=0, utilization_share=0.5, objectives_met=True)


@dataclass(frozen=True)
class Recording:
    """One server of one run: when each size was decided (Unix seconds), and the size."""

    name: str
    at_s: tuple[float, ...]
    replicas: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """Sizes given for a recording, and the rule that decided each where there was one."""

    replicas: tuple[int, ...]
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """What a policy comes to over all recordings.

    `hours_share` and `cycles_share` are what it gives above what was recommended, weighted by time and by
    cycle; `less_share` is the share of cycles in which it gives less.
    """

    changes: int
    reversals: int
    hours_share: float
    cycles_share: float
    less_share: float


def recordings(file: Path) -> list[Recording]:
    """The recorded series of `cycles.csv`, each in the order of time."""
    with file.open() as lines:
        rows = sorted(csv.DictReader(lines), key=lambda r: (r["run"], r["server"], r["ts"]))
    return [
        Recording(
            f"{run} {server}",
            tuple(datetime.fromisoformat(row["ts"][:26] + "+00:00").timestamp() for row in group),
            tuple(int(row["replicas_decided"]) for row in group),
        )
        for (run, server), found in itertools.groupby(rows, key=lambda r: (r["run"], r["server"]))
        for group in (list(found),)
    ]


def default_rules(**changed: dict[str, Any]) -> list[Rule]:
    """The gate's rules in their default order; settings of some may be given by the rule's name."""
    return [plugins.build("stoker.gates", name, changed.get(name)) for name in ActuatorSettings().rules]


def gate(recording: Recording, rules: Sequence[Rule]) -> Outcome:
    """What the gate makes of a recording."""
    keep_s, memory = ActuatorSettings().remember_s, Memory()
    current, sizes, names = _target(recording.replicas[0]), [], []
    for now_s, wanted in zip(recording.at_s, recording.replicas, strict=True):
        case = _case(current, _target(wanted), memory, now_s)
        gated = pass_gate(case, rules)
        memory, current = remember(case, gated, keep_s), gated.target
        sizes.append(total(current))
        names.append(gated.rule)
    return Outcome(tuple(sizes), tuple(names))


def largest_of_last(recording: Recording, cycles: int) -> Outcome:
    """The plain policy to be measured against: the largest of the last so many recommendations."""
    sizes = recording.replicas
    return Outcome(tuple(max(sizes[max(0, i - cycles + 1) : i + 1]) for i in range(len(sizes))))


def score(series: Sequence[Recording], outcomes: Sequence[Outcome]) -> Score:
    """Sum over all recordings; a cycle lasts until the next, the last one as long as the median."""
    changes = reversals = less = cycles = 0
    asked_s = given_s = asked = given = 0.0
    for one, outcome in zip(series, outcomes, strict=True):
        steps = [b - a for a, b in itertools.pairwise(outcome.replicas) if a != b]
        changes += len(steps)
        reversals += sum(1 for a, b in itertools.pairwise(steps) if a * b < 0)
        spans_s = [b - a for a, b in itertools.pairwise(one.at_s)]
        spans_s.append(median(spans_s))
        asked_s += sum(s * n for s, n in zip(spans_s, one.replicas, strict=True))
        given_s += sum(s * n for s, n in zip(spans_s, outcome.replicas, strict=True))
        asked, given = asked + sum(one.replicas), given + sum(outcome.replicas)
        less += sum(got < n for n, got in zip(one.replicas, outcome.replicas, strict=True))
        cycles += len(one.replicas)
    return Score(changes, reversals, given_s / asked_s - 1, given / asked - 1, less / cycles)


def run(progress: Progress) -> list[Table]:
    """The curve of the recorded series under STOKER_DATA or ../shared/data; nothing where they are absent."""
    file = Path(os.environ.get("STOKER_DATA", "../shared/data")) / "control-logs" / "cycles.csv"
    if not file.is_file():
        return [Table("gate", ("nothing",), (), (f"No recording at {file}.",))]
    series = recordings(file)
    raw = score(series, [Outcome(one.replicas) for one in series])
    plain = {
        f"largest of the last {n}": score(series, [largest_of_last(s, n) for s in series])
        for n in range(2, 7)
    }
    gated = {"gate, default": score(series, [gate(s, default_rules()) for s in series])}
    for window_s, steep_share in itertools.product(_WINDOWS_S, _STEEP_SHARES):
        progress.say(f"gate: window {window_s:.0f} s, steep {steep_share:.0%}")
        rules = default_rules(
            down={"window_s": window_s, "steep_share": steep_share}, flap={"steep_share": steep_share}
        )
        name = f"gate, window {window_s:.0f} s, steep {steep_share:.0%}"
        gated[name] = score(series, [gate(s, rules) for s in series])
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    _draw(PICTURE, raw, plain, gated)
    rows = [_row(name, one, raw) for name, one in ({"recommended": raw} | plain | gated).items()]
    notes = (
        f"{len(series)} series, {sum(len(s.replicas) for s in series)} cycles of 30 or 120 s.",
        "Hours are weighted by time, cycles are not.",
        "best: nothing else shown has as few changes, reversals and hours.",
        f"Drawn in {PICTURE}.",
    )
    columns = ("policy", "changes", "fewer", "reversals", "fewer", "hours", "cycles", "less given", "best")
    everything = [*plain.values(), *gated.values()]
    marks = [None, *("*" if _is_best(one, everything) else "" for one in everything)]
    return [Table("gate", columns, tuple((*r, m) for r, m in zip(rows, marks, strict=True)), notes)]


def _is_best(one: Score, others: Iterable[Score]) -> bool:
    def figures(s: Score) -> tuple[float, float, float]:
        return s.changes, s.reversals, s.hours_share

    mine = figures(one)
    return not any(
        figures(other) != mine and all(b <= a for a, b in zip(mine, figures(other), strict=True))
        for other in others
    )


def _row(name: str, one: Score, raw: Score) -> tuple[Cell, ...]:
    return (
        name,
        one.changes,
        f"{1 - one.changes / raw.changes:.0%}",
        one.reversals,
        f"{1 - one.reversals / raw.reversals:.0%}",
        f"{one.hours_share:+.1%}",
        f"{one.cycles_share:+.1%}",
        f"{one.less_share:.1%}",
    )


def _draw(file: Path, raw: Score, plain: dict[str, Score], gated: dict[str, Score]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    default, *others = gated.values()
    for axes, what in zip(figure.subplots(1, 2), ("changes", "reversals"), strict=True):
        for label, shown, mark in (
            ("recommended", [raw], "x"),
            ("largest of the last 2 to 6", list(plain.values()), "o-"),
            ("gate by window and steep share", others, "."),
            ("gate, default", [default], "*"),
        ):
            axes.plot(
                [100 * s.hours_share for s in shown], [getattr(s, what) for s in shown], mark, label=label
            )
        axes.set(xlabel="replica-hours above the recommended, %", ylabel=what)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=100)


def _target(replicas: int) -> Target:
    return (Allocation(accelerator="A", replicas=replicas, max_batch=64),)


def _case(current: Target, wanted: Target, memory: Memory, now_s: float) -> Case:
    """A case in which everything is known and fresh, and every size keeps its objectives."""
    held = VariantInventory(
        accelerator="A", desired=total(current), ready=total(current), pending=0, max_batch=64
    )
    return Case(
        server=Server(name="s", model="m", service_class="c"),
        objective=Objective(model="m"),
        plan=PlanProposed(
            server="s",
            generation=1,
            status=ServerStatus.PLANNED,
            allocations=wanted,
            predicted=_KEPT,
            predicted_current=_KEPT,
            inputs=Inputs(fleet_revision="r"),
            issued_at_s=now_s,
            expires_at_s=now_s + 90,
        ),
        current=current,
        inventory=InventoryObserved(
            server="s", model="m", observed_at_s=now_s, quality=Quality.OK, variants=(held,)
        ),
        telemetry=TelemetryObserved(
            server="s", model="m", window_start_s=now_s - 30, window_end_s=now_s, quality=Quality.OK
        ),
        memory=memory,
        paused=False,
        startup_s=_STARTUP_S,
        now_s=now_s,
    )
