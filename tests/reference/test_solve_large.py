"""The large sample system is answered whole, and from a cold interpreter in under two seconds."""

import json
import resource
import subprocess
import sys
from pathlib import Path

LOOP, LOOP_S = 2_000_000, 0.12
"""A loop in Python, and the seconds that it takes where the bound is meant: 60 ns a turn."""
MOST_S = 1.5
"""Of CPU; the rest of the two seconds is for a machine that has other things to do."""


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def took_s(*command: str) -> tuple[float, str]:
    before_s = children_s()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return children_s() - before_s, done.stdout


def test_the_large_system_is_answered_whole_in_under_two_seconds(reference_data: Path) -> None:
    system = reference_data / "systems" / "large"
    solve = (str(Path(sys.executable).parent / "stoker"), "solve", str(system))
    declared = json.loads((system / "server-data.json").read_text())["servers"]
    loop = f"for number in range({LOOP}): number + 1"
    empty_s, _ = took_s(sys.executable, "-c", "pass")
    least: list[float] = []
    while len(least) < 5 and not (least and min(least) * LOOP_S < MOST_S):
        looped_s, _ = took_s(sys.executable, "-c", loop)
        solved_s, answer = took_s(*solve)
        assert all(server["name"] in answer for server in declared), answer
        # In units of a loop: how fast the machine is, and what else it does, is in both.
        least.append(solved_s / max(looped_s - empty_s, 1e-3))
    assert min(least) * LOOP_S < MOST_S, least
