"""Recorded observations, read from CSV and given to an estimator cycle by cycle.

A row is one replica in one cycle: `server, collect_seq, pod, max_batch, arrival_rpm, in_tok, out_tok, itl_ms` and
`ttft_ms`, and where they are there `log`, which tells runs apart, `acc`, `requests`, `waiting` and `running`.
Without `requests` a row is taken for a mean over many, and its noise is learned from the rows.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from schemas.base import Quality
from schemas.fleet import ModelProfile
from schemas.telemetry import Latency, ReplicaTelemetry, TelemetryObserved
from services.perfmodel.law import IterationLaw
from services.tuner.ahead import error_shares
from services.tuner.estimator import Estimate, Estimator
from services.tuner.fit import Window
from services.tuner.observation import observations
from services.tuner.settings import ObservationSettings

CYCLE_S = 30.0
MANY_REQUESTS = 10_000.0
# The least and the most of each column, as telemetry has them.
RANGES = {
    "arrival_rpm": (0.0, 6e8),
    "in_tok": (0.0, 1e9),
    "out_tok": (1.0, 1e9),
    "itl_ms": (0.0, 8.64e7),
    "ttft_ms": (0.0, 8.64e7),
    "max_batch": (1.0, 1e6),
}
LONGEST_NAME = 253
OPTIONAL = ("requests", "waiting", "running")
NAMES = ("server", "pod", "collect_seq")


class ObservationsRefused(ValueError):
    """A file that cannot be read; names the file, the line, the column, the value and what was expected."""


@dataclass(frozen=True)
class Recording:
    """One server of one run: its windows in their order."""

    run: str
    server: str
    windows: tuple[TelemetryObserved, ...]


@dataclass(frozen=True)
class Update:
    """One cycle of a replay.

    estimate: what is in force after it; None while nothing is.
    used, left_out: rows that became observations, and those that did not.
    itl_error_share, ttft_error_share: mean absolute error of what was in force before, on this cycle, each row
        predicted from its rate; None without anything in force or anything to compare with.
    """

    cycle: int
    estimate: Estimate | None
    used: int
    left_out: int
    itl_error_share: float | None
    ttft_error_share: float | None


def read_recordings(path: Path) -> tuple[Recording, ...]:
    """Every server of every run in a file; raises ObservationsRefused."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            missing = [name for name in (*NAMES, *RANGES) if name not in (reader.fieldnames or ())]
            if missing:
                raise ObservationsRefused(f"{path}:1: expected the columns {', '.join(missing)} too")
            rows = [_row(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise ObservationsRefused(f"{path}: {error.strerror}: expected a readable CSV file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ObservationsRefused(f"{path}: expected CSV text: {error}") from None
    if not rows:
        raise ObservationsRefused(f"{path}: expected at least one row below the header")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["log"], row["server"]), []).append(row)
    return tuple(Recording(run, server, _windows(server, group)) for (run, server), group in found.items())


def replay(
    recording: Recording,
    estimator: Estimator[Any],
    law: IterationLaw,
    prior: dict[str, float] | None,
    settings: ObservationSettings,
    ttft_iterations: int,
) -> Iterator[Update]:
    """Every cycle of a recording through an estimator, in its order.

    Raises ValueError for a prior that is not of the law.
    """
    state = estimator.start(prior, law)
    for cycle, window in enumerate(recording.windows):
        found, left_out = observations(window, profiles_of(window), settings)
        seen = [observation for _, observation in found]
        before = estimator.estimate(state)
        errors: list[float | None] = [None, None]
        if before is not None and seen:
            values = np.array([before.values[name] for name in law.parameter_names])
            shares = error_shares(law, values, Window.of(seen), ttft_iterations)
            errors = [float(share.mean()) if share.size else None for share in shares]
        state, estimate = estimator.update(state, seen, window.window_end_s)
        yield Update(cycle, estimate, len(seen), left_out.total(), *errors)


def profiles_of(window: TelemetryObserved) -> dict[str, ModelProfile]:
    """What the rows of a cycle say of the engines that they are from."""
    return {
        r.accelerator: ModelProfile(accelerator=r.accelerator, max_batch=r.max_batch or 1)
        for r in window.replicas
    }


def _row(path: Path, line: int, row: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {"log": row.get("log") or path.stem}
    for name, text in [*((name, row[name]) for name in NAMES), ("acc", row.get("acc") or "unknown")]:
        if not text or len(text) > LONGEST_NAME or not text.isprintable():
            shown = f"{text!r:.60}" if text else "nothing"
            raise ObservationsRefused(
                f"{path}:{line}: {name}: expected a name of up to {LONGEST_NAME} letters, got {shown}"
            )
        read[name] = text
    for name, (least, most) in RANGES.items():
        value = _number(path, line, name, row[name])
        nothing = value == least == 0.0 and name != "in_tok"
        if not least <= value <= most or nothing or (name == "max_batch" and value != int(value)):
            kind = (
                "a whole number of at least"
                if name == "max_batch"
                else "above"
                if least == 0.0
                else "at least"
            )
            raise ObservationsRefused(
                f"{path}:{line}: {name}: {row[name]!r}: expected {kind} {least:g} and at most {most:g}"
            )
        read[name] = value
    for name in OPTIONAL:
        read[name] = _number(path, line, name, row[name]) if row.get(name) else None
        if read[name] is not None and read[name] < 0:
            raise ObservationsRefused(f"{path}:{line}: {name}: {row[name]!r}: expected at least 0")
    return read


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ObservationsRefused(f"{path}:{line}: {name}: {text!r}: expected a finite number")
    return value


def _windows(server: str, rows: Sequence[dict[str, Any]]) -> tuple[TelemetryObserved, ...]:
    cycles = groupby(rows, key=lambda row: row["collect_seq"])
    return tuple(
        TelemetryObserved(
            server=server,
            model=server,
            window_start_s=CYCLE_S * cycle,
            window_end_s=CYCLE_S * (cycle + 1),
            quality=Quality.OK,
            replicas=tuple(_replica(row) for row in group),
        )
        for cycle, (_, group) in enumerate(cycles)
    )


def _replica(row: dict[str, Any]) -> ReplicaTelemetry:
    count = MANY_REQUESTS if row["requests"] is None else row["requests"]
    return ReplicaTelemetry(
        replica=row["pod"],
        accelerator=row["acc"],
        max_batch=int(row["max_batch"]),
        offered_rate_rps=row["arrival_rpm"] / 60.0,
        input_tokens=row["in_tok"],
        output_tokens=row["out_tok"],
        ttft=Latency(count=count, mean_s=row["ttft_ms"] / 1000.0),
        itl=Latency(count=count, mean_s=row["itl_ms"] / 1000.0),
        running=row["running"],
        waiting=row["waiting"],
    )
