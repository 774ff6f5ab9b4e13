"""What the predictor saves, and that a predictor which restarts is the one that ended."""

import random
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.base import Quality
from schemas.telemetry import TelemetryObserved
from schemas.topics import TOPIC_BY_NAME
from services.predictor.journal import Journal, key_of, number_of, written
from services.predictor.service import PredictorService
from services.predictor.settings import Settings
from services.runtime.envelope import Event

START_S = 1e9


def event(server: str, index: int, rate: float) -> Any:
    payload = TelemetryObserved(
        server=server,
        model="m",
        window_start_s=START_S + 30 * index,
        window_end_s=START_S + 30 * (index + 1),
        quality=Quality.OK,
        offered_rate_rps=rate,
        input_tokens=100.0 * rate,
    )
    return SimpleNamespace(
        payload=payload, id=f"{server}-{index}", correlation_id="c", topic=TOPIC_BY_NAME["telemetry.observed"]
    )


class Restarting:
    """A predictor with its bucket, which a new one can be made from."""

    def __init__(self) -> None:
        self.bucket: dict[str, bytes] = {}
        self.bytes_written = 0
        self.service = PredictorService(Settings())

    def restart(self) -> None:
        self.service = PredictorService(Settings())
        self.service.host = SimpleNamespace(log=SimpleNamespace(warning=self._refuse))  # type: ignore[assignment]
        self.service.restore(dict(self.bucket))

    def handle(
        self, events: list[Event], keep: float = 1.0, chance: random.Random | None = None
    ) -> list[Any]:
        """One step; with `keep` below 1 the process ends after that share of what is saved, and nothing is."""
        outcome = self.service.handle(events)
        saving: list[tuple[str, bytes | None]] = list(outcome.snapshots.items())
        if chance is not None:
            chance.shuffle(saving)
        for key, value in saving[: round(keep * len(saving))]:
            self.bytes_written += len(value or b"")
            if value is None:
                self.bucket.pop(key, None)
            else:
                self.bucket[key] = value
        if keep == 1.0 and outcome.accept is not None:
            outcome.accept()
        return [emit.payload for emit in outcome.emits]

    @staticmethod
    def _refuse(message: str, **details: Any) -> None:
        raise AssertionError(f"{message}: {details}")


def test_a_predictor_that_restarts_again_and_again_says_what_one_that_never_did_says() -> None:
    chance = random.Random(1)
    steady, restarted = Restarting(), Restarting()
    for index in range(150):
        came = [event(f"s{i}", index, chance.uniform(0, 20)) for i in range(3) if chance.random() < 0.7]
        if chance.random() < 0.06:
            restarted.restart()
        assert restarted.handle(came) == steady.handle(came)
    # So rarely that whole series are saved in between, and entries deleted for them.
    assert {"s0", "s1", "s2"} <= restarted.bucket.keys() and len(restarted.bucket) < 100


def test_a_predictor_that_ends_while_it_saves_continues_with_what_is_delivered_again() -> None:
    chance = random.Random(2)
    steady, killed = Restarting(), Restarting()
    for index in range(120):
        came = [event(f"s{i}", index, chance.uniform(0, 20)) for i in range(3)]
        expected = steady.handle(came)
        if chance.random() < 0.1:
            killed.handle(came, keep=chance.random() * 0.999, chance=chance)
            killed.restart()
            # What was saved of the step is a duplicate now, the rest is said as ever.
            assert {f.server: f for f in killed.handle(came)}.items() <= {
                f.server: f for f in expected
            }.items()
        else:
            assert killed.handle(came) == expected
    assert {"s0", "s1", "s2"} <= killed.bucket.keys() and len(killed.bucket) < 100


def test_a_tenth_of_what_whole_snapshots_would_take_is_written() -> None:
    one = Restarting()
    for index in range(120):
        one.handle([event("s", index, 1.0 + index % 7)])
    whole = max(len(value) for key, value in one.bucket.items() if key == "s")
    assert one.bytes_written < 0.1 * 120 * whole
    assert len(one.bucket) <= 2 * 32 + 2


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1), max_size=150), data=st.data())
def test_every_window_is_in_an_entry_or_in_a_whole_series_and_entries_do_not_pile_up(
    steps: list[set[str]], data: st.DataObject
) -> None:
    journal, whole, stored = Journal(), dict[str, float](), dict[str, Mapping[str, float]]()
    for number, servers in enumerate(steps):
        ends = {name: float(number) for name in servers}
        journal, due = written(journal, [servers])
        for key in due.delete:
            lost = stored.pop(key)
            assert all(whole.get(name, -1.0) >= end for name, end in lost.items())
        stored[due.new[0]] = ends
        # A whole series holds all that its server sent up to this step.
        newest = {name: max(e[name] for e in stored.values() if name in e) for name in due.whole}
        whole |= newest
        # For 32 windows a server is saved; after eight servers an entry and all before it are done with.
        assert sum(map(len, stored.values())) <= 32 * 8 + 4 * 8


def test_keys_of_entries_are_told_from_those_of_servers() -> None:
    assert number_of(key_of(17)) == 17
    assert number_of("journal-17") is None
    with pytest.raises(ValueError):
        number_of("\x1ejournal-x")
