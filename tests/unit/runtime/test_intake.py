"""What becomes of each message of a batch."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from schemas.base import Quality
from schemas.telemetry import InventoryObserved, TelemetryObserved
from services.runtime.envelope import Emit, Event, Raw, encode
from services.runtime.intake import Intake, Sorted

NOW_S = 1000.0


def window(
    server: str = "s", end_s: float = 60.0, sequence: int = 1, expires_at_s: float | None = None
) -> Raw:
    payload = TelemetryObserved(
        server=server, model="m", window_start_s=0, window_end_s=end_s, quality=Quality.OK
    )
    wire = encode(Emit(payload, expires_at_s=expires_at_s), "collector", NOW_S)
    return Raw(wire.subject, wire.data, wire.headers, "TELEMETRY", sequence)


def stock(server: str = "s", at_s: float = 60.0, sequence: int = 1) -> Raw:
    payload = InventoryObserved(server=server, model="m", observed_at_s=at_s, quality=Quality.OK)
    wire = encode(Emit(payload), "collector", NOW_S)
    return Raw(wire.subject, wire.data, wire.headers, "STATE", sequence)


def outcomes(found: Sorted) -> list[tuple[int, str]]:
    return sorted(
        [(raw.sequence, "good") for raw, _ in found.good]
        + [(raw.sequence, outcome) for raw, _, outcome in found.done]
        + [(raw.sequence, "refused") for raw, _ in found.refused]
    )


def events(found: Sorted) -> list[Event]:
    return [event for _, event in found.good]


def test_every_window_is_handled_where_every_window_matters():
    batch = [window(end_s=60, sequence=1), window(end_s=120, sequence=2), window("t", sequence=3)]
    assert outcomes(Intake("tuner").sort(batch, NOW_S)) == [(1, "good"), (2, "good"), (3, "good")]


def test_only_the_newest_of_each_subject_is_handled_where_that_is_enough():
    batch = [stock(at_s=1, sequence=1), stock("t", sequence=2), stock(at_s=2, sequence=3)]
    found = Intake("optimizer").sort(batch, NOW_S)
    assert outcomes(found) == [(1, "superseded"), (2, "good"), (3, "good")]
    assert found.done[0][1] == "inventory.observed"


def test_an_older_message_that_comes_after_a_newer_one_is_superseded_within_a_batch_and_across_batches():
    intake = Intake("optimizer")
    found = intake.sort([stock(at_s=2, sequence=9), stock(at_s=1, sequence=4)], NOW_S)
    assert outcomes(found) == [(4, "superseded"), (9, "good")]
    intake.remember(events(found))
    assert outcomes(intake.sort([stock(at_s=1.5, sequence=5)], NOW_S)) == [(5, "superseded")]
    assert outcomes(intake.sort([stock(at_s=3, sequence=10)], NOW_S)) == [(10, "good")]


def test_the_same_fact_twice_is_a_duplicate_within_a_batch_and_across_batches():
    intake = Intake("tuner")
    found = intake.sort([window(sequence=1), window(sequence=2)], NOW_S)
    assert outcomes(found) == [(1, "good"), (2, "duplicate")]
    intake.remember(events(found))
    assert outcomes(intake.sort([window(sequence=3)], NOW_S)) == [(3, "duplicate")]


def test_the_same_identifier_from_another_source_is_another_fact():
    theirs = window(sequence=2)
    foreign = Raw(theirs.subject, theirs.data, dict(theirs.headers) | {"ce-source": "/other"}, "TELEMETRY", 2)
    found = Intake("tuner").sort([window(sequence=1), foreign], NOW_S)
    assert outcomes(found) == [(1, "good"), (2, "good")]


def test_nothing_counts_as_seen_before_it_is_remembered():
    intake = Intake("optimizer")
    batch = [stock(at_s=2, sequence=9), window(sequence=3)]
    first = intake.sort(batch, NOW_S)
    assert outcomes(intake.sort(batch, NOW_S)) == outcomes(first) == [(3, "good"), (9, "good")]
    assert outcomes(intake.sort([stock(at_s=1, sequence=4)], NOW_S)) == [(4, "good")]


def test_what_is_too_old_to_act_upon_is_expired_from_the_moment_after_its_expiry():
    intake = Intake("tuner")
    assert outcomes(intake.sort([window(expires_at_s=NOW_S - 0.5)], NOW_S)) == [(1, "expired")]
    assert outcomes(intake.sort([window(expires_at_s=NOW_S)], NOW_S)) == [(1, "good")]


def test_what_is_unreadable_not_for_this_service_or_of_the_far_future_is_refused_with_the_reason():
    batch = [
        Raw("stoker.v1.inventory.observed.s", b"{", {}, "STATE", 1),
        stock(sequence=2),
        window(end_s=NOW_S + 3600, sequence=3),
    ]
    found = Intake("tuner").sort(batch, NOW_S)
    assert outcomes(found) == [(1, "refused"), (2, "refused"), (3, "refused")]
    assert "ce-specversion" in found.refused[0][1]
    assert found.refused[1][1] == "tuner does not read inventory.observed"
    assert "window_end_s is 3600 s ahead" in found.refused[2][1]


def test_what_was_seen_is_known_until_so_many_others_were_and_forgotten_after_twice_as_many():
    intake = Intake("tuner", remembered=10)

    def seen(first: int, last: int) -> None:
        for i in range(first, last):
            intake.remember(events(intake.sort([window(f"other-{i}")], NOW_S)))

    intake.remember(events(intake.sort([window()], NOW_S)))
    seen(0, 10)
    assert outcomes(intake.sort([window()], NOW_S)) == [(1, "duplicate")]
    seen(10, 22)
    assert outcomes(intake.sort([window()], NOW_S)) == [(1, "good")]


def some_message(kind: int, server: int, moment: int, sequence: int) -> Raw:
    name = f"s{server}"
    if kind == 0:
        return window(name, 1.0 + moment, sequence)
    if kind == 1:
        return stock(name, 1.0 + moment, sequence)
    if kind == 2:
        return window(name, 1.0 + moment, sequence, expires_at_s=1.0)
    return Raw(f"stoker.v1.inventory.observed.{name}", b"{}", {}, "STATE", sequence)


PARTS = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.integers(1, 12))


@given(st.lists(st.lists(PARTS, max_size=12), max_size=4), st.sampled_from(["tuner", "optimizer"]))
def test_every_message_ends_in_exactly_one_place_and_every_handled_fact_is_handled_once(
    batches: list[list[tuple[int, int, int, int]]], service: str
):
    intake = Intake(service)
    handled: Counter[tuple[str, str]] = Counter()
    newest: dict[str, int] = {}
    for parts in batches:
        batch = [some_message(*part) for part in parts]
        found = intake.sort(batch, NOW_S)
        placed = (
            [id(raw) for raw, _ in found.good]
            + [id(raw) for raw, _, _ in found.done]
            + [id(raw) for raw, _ in found.refused]
        )
        assert sorted(placed) == sorted(map(id, batch))
        intake.remember(events(found))
        handled.update((event.source, event.id) for event in events(found))
        for event in events(found):
            if service == "optimizer":
                assert event.sequence > newest.get(event.subject, 0)
                newest[event.subject] = event.sequence
    assert all(count == 1 for count in handled.values())
