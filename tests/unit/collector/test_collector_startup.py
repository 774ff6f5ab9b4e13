"""Start-up times that are learned."""

import numpy as np
import pytest

from services.collector.source import ReplicaState, ReplicaStatus
from services.collector.startup import StartupTimes, dump, learn, learned, load


def started(name: str, created_s: float | None, ready_s: float | None) -> tuple[str, ReplicaStatus]:
    return "m", ReplicaStatus(name, "A", ReplicaState.READY, created_s, ready_s)


def test_percentiles_are_those_of_the_start_ups_seen() -> None:
    durations_s = np.random.default_rng(1).gamma(4.0, 20.0, 40)
    seen = [started(f"r{i}", 10.0 * i, 10.0 * i + d) for i, d in enumerate(durations_s.tolist())]
    (found,) = learned(learn(StartupTimes(), seen, 1e6, 64), "m")
    assert (found.accelerator, found.samples) == ("A", 40)
    assert found.p50_s == pytest.approx(np.quantile(durations_s, 0.5))
    assert found.p95_s == pytest.approx(np.quantile(durations_s, 0.95))
    assert learned(StartupTimes(), "m") == ()


def test_a_replica_is_learned_once_however_often_it_is_seen() -> None:
    seen = [started("a", 0.0, 60.0), started("b", 0.0, 60.0), started("c", 10.0, None)]
    once = learn(StartupTimes(), seen, 100.0, 64)
    assert learn(once, seen, 130.0, 64) is once
    more = learn(once, [*seen[:2], started("c", 10.0, 150.0)], 160.0, 64)
    assert more.reservoirs["m", "A"].samples_s == (60.0, 60.0, 140.0)


def test_only_the_newest_are_kept() -> None:
    seen = [started(f"r{i}", 0.0, float(i)) for i in range(1, 101)]
    assert learn(StartupTimes(), seen, 1e6, 3).reservoirs["m", "A"].samples_s == (98.0, 99.0, 100.0)


def test_times_that_make_no_sense_are_left_out() -> None:
    odd = [
        started("a", 100.0, 50.0),
        started("b", None, 50.0),
        started("c", 0.0, 2e6),
        started("d", 0.0, None),
        started("found running", 40.0, 40.0),
    ]
    assert learn(StartupTimes(), odd, 1e6, 64).reservoirs == {}


def test_what_was_learned_survives_a_restart() -> None:
    times = learn(StartupTimes(), [started("a", 0.1, 60.3)], 100.0, 64)
    assert load(dump(times)) == times
    with pytest.raises(ValueError, match="reservoirs"):
        load(b'{"version": 1}')
