"""Recommendations of published control-loop runs through the gate: steadier, and no less than was asked for.

The log has the size decided in each cycle, which answers the observation before it; the gate sees the sizes one
after the other, at the log's own times. It has no predictions for other sizes, so every one is taken to keep its
objectives with a margin, and the deadband, which needs the replicas before rounding up, has nothing to act on.
"""

import csv
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from gate_cases import ask, built_in_rules, case, hold, measure, propose

from services.actuator.gate import Memory, pass_gate, remember, total
from services.actuator.settings import ActuatorSettings

STARTUP_S = 120.0


@dataclass(frozen=True)
class Series:
    """One server of one run: sizes in the order of time, raw and gated, and the rule that decided each."""

    raw: list[int]
    gated: list[int]
    rules: list[str]


def turns(sizes: Sequence[int]) -> tuple[int, int]:
    """Changes, and how many of them go against the one before."""
    steps = [b - a for a, b in itertools.pairwise(sizes) if a != b]
    return len(steps), sum(1 for a, b in itertools.pairwise(steps) if a * b < 0)


def replay(rows: list[dict[str, str]]) -> Series:
    rules, memory, keep_s = built_in_rules(), Memory(), ActuatorSettings().remember_s
    raw = [int(row["replicas_decided"]) for row in rows]
    current, gated, names = ask(A=raw[0]), [], []
    for row, wanted in zip(rows, raw, strict=True):
        now_s = datetime.fromisoformat(row["ts"][:26] + "+00:00").timestamp()
        looked_at = case(
            current,
            propose(ask(A=wanted), issued_at_s=now_s, expires_at_s=now_s + 90),
            inventory=hold(current, now_s),
            telemetry=measure(now_s),
            memory=memory,
            startup_s=STARTUP_S,
            now_s=now_s,
        )
        outcome = pass_gate(looked_at, rules)
        memory, current = remember(looked_at, outcome, keep_s), outcome.target
        gated.append(total(current))
        names.append(outcome.rule)
    return Series(raw, gated, names)


@pytest.fixture(scope="module")
def series(reference_data: Path) -> list[Series]:
    with (reference_data / "control-logs" / "cycles.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda r: (r["run"], r["server"], r["ts"]))
    return [
        replay(list(group)) for _, group in itertools.groupby(rows, key=lambda r: (r["run"], r["server"]))
    ]


def test_recorded_recommendations_become_steadier(series: list[Series]) -> None:
    raw = [sum(column) for column in zip(*(turns(s.raw) for s in series), strict=True)]
    gated = [sum(column) for column in zip(*(turns(s.gated) for s in series), strict=True)]
    cycles = sum(len(s.raw) for s in series)
    asked, given = sum(sum(s.raw) for s in series), sum(sum(s.gated) for s in series)
    rules = Counter(rule for s in series for rule in s.rules)
    print(f"\n{len(series)} series, {cycles} cycles; decided by {dict(rules.most_common())}")
    print(f"changes   raw {raw[0]:4d}  gated {gated[0]:4d}")
    print(f"reversals raw {raw[1]:4d}  gated {gated[1]:4d}")
    print(f"replica-cycles raw {asked}  gated {given}  ({given / asked - 1:+.1%})")
    assert (len(series), raw) == (19, [268, 159])
    assert gated[0] < raw[0] / 2
    assert gated[1] < raw[1] / 4


def test_the_gate_gives_less_than_was_asked_for_only_while_it_steps_up(series: list[Series]) -> None:
    cycles = [row for s in series for row in zip(s.raw, s.gated, s.rules, strict=True)]
    less = [rule for raw, gated, rule in cycles if gated < raw]
    print(f"\nless than asked for in {len(less)} of {len(cycles)} cycles, by {dict(Counter(less))}")
    assert sum(1 for rule in less if rule != "up") <= 0.01 * len(cycles)
    assert len(less) <= 0.05 * len(cycles)
