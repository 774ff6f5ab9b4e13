"""Windows from hand-made counters."""

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.base import Quality
from schemas.telemetry import OfferedFrom
from services.collector.population import ServerRecord, ServerView
from services.collector.settings import CollectorSettings
from services.collector.source import (
    GatewayReading,
    HistogramReading,
    ReplicaReading,
    ReplicaState,
    ReplicaStatus,
    ServerInventory,
    VariantReading,
)
from services.collector.windows import Window, difference

SETTINGS = CollectorSettings(cycle_s=30, stale_after_s=90)
EDGES_S = (0.1, 0.2, 0.4)
T0 = 1000.0


def reading(replica: str, at_s: float, completed: float, **more: object) -> ReplicaReading:
    figures: dict[str, object] = {
        "accelerator": "A",
        "input_tokens": completed * 100,
        "output_tokens": completed * 20,
        "ttft": HistogramReading(EDGES_S, (0.0, completed, completed, completed), completed * 0.15),
        "running": 0.0,
        "waiting": 0.0,
    }
    return ReplicaReading("chat", replica, at_s, completed=completed, **(figures | more))  # type: ignore[arg-type]


def status(name: str, ready_at_s: float | None, state: ReplicaState = ReplicaState.READY) -> ReplicaStatus:
    return ReplicaStatus(name, "A", state, 0.0, ready_at_s)


def inventory(*replicas: ReplicaStatus, max_batch: int = 8) -> ServerInventory:
    ready = sum(one.state is ReplicaState.READY for one in replicas)
    return ServerInventory("chat", T0, (VariantReading("A", ready, ready, 0, max_batch=max_batch),), replicas)


def view(
    *replicas: ReplicaReading, gateway: GatewayReading | None = None, has: ServerInventory | None = None
) -> ServerView:
    return ServerView("chat", "m", {one.replica: one for one in replicas}, gateway, has)


def run(*polls: tuple[float, ServerView]) -> list[Window]:
    """Windows of polls at their times."""
    record: ServerRecord | None = None
    windows = []
    for now_s, one in polls:
        windows.append(difference(record, one, now_s, SETTINGS))
        record = windows[-1].record
    return windows


def test_the_first_poll_has_no_figures_and_the_second_has_exact_ones() -> None:
    first, second = run(
        (T0, view(reading("a", T0, 100), reading("b", T0, 7))),
        (T0 + 30, view(reading("a", T0 + 30, 160, running=3.0, waiting=6.0), reading("b", T0 + 30, 67))),
    )
    assert first.observed.quality is Quality.MISSING and first.observed.completed_rate_rps is None
    seen = second.observed
    assert seen.quality is Quality.OK and seen.reporting_share == 1.0
    assert (seen.window_start_s, seen.window_end_s) == (T0, T0 + 30)
    assert seen.completed_rate_rps == pytest.approx(4.0, rel=1e-12)
    assert seen.offered_rate_rps == pytest.approx(4.3, rel=1e-12)
    assert seen.offered_from is OfferedFrom.COUNTERS
    assert (seen.input_tokens, seen.output_tokens) == (100.0, 20.0)
    assert (seen.running, seen.waiting) == (3.0, 6.0)
    assert seen.ttft is not None and seen.ttft.count == 120
    assert seen.ttft.mean_s == pytest.approx(0.15, rel=1e-12)
    assert seen.ttft.p50_s == pytest.approx(0.15, rel=1e-12)
    assert [one.replica for one in seen.replicas] == ["a", "b"]


def test_arrivals_are_seen_in_overload_where_completions_are_not() -> None:
    _, window = run(
        (T0, view(reading("a", T0, 0, waiting=0.0))),
        (T0 + 30, view(reading("a", T0 + 30, 30, waiting=270.0))),
    )
    assert window.observed.offered_rate_rps == pytest.approx(10.0)
    assert window.observed.completed_rate_rps == pytest.approx(1.0)


def test_a_source_that_sees_only_completions_says_so() -> None:
    _, window = run(
        (T0, view(reading("a", T0, 0, running=None))),
        (T0 + 30, view(reading("a", T0 + 30, 30, running=None))),
    )
    assert window.observed.offered_from is OfferedFrom.COMPLETIONS
    assert window.observed.offered_rate_rps == pytest.approx(1.0)
    assert window.observed.running is None and window.observed.waiting == 0.0


def test_the_gateways_counter_is_preferred_and_its_queue_counts_as_waiting() -> None:
    _, window = run(
        (T0, view(reading("a", T0, 0), gateway=GatewayReading("chat", T0, 500, 0))),
        (
            T0 + 30,
            view(reading("a", T0 + 30, 30, waiting=2.0), gateway=GatewayReading("chat", T0 + 30, 650, 9)),
        ),
    )
    assert window.observed.offered_from is OfferedFrom.GATEWAY
    assert window.observed.offered_rate_rps == pytest.approx(5.0)
    assert window.observed.waiting == 11.0


def test_a_gateways_queue_is_not_taken_for_all_that_waits_where_an_engine_does_not_say() -> None:
    _, window = run(
        (T0, view(reading("a", T0, 0), gateway=GatewayReading("chat", T0, 500, 0))),
        (
            T0 + 30,
            view(reading("a", T0 + 30, 30, waiting=None), gateway=GatewayReading("chat", T0 + 30, 650, 0)),
        ),
    )
    assert window.observed.quality is Quality.OK
    assert window.observed.waiting is None


def test_a_gateway_that_restarted_counts_from_zero() -> None:
    _, window = run(
        (T0, view(gateway=GatewayReading("chat", T0, 500))),
        (T0 + 30, view(gateway=GatewayReading("chat", T0 + 30, 60))),
    )
    assert window.observed.offered_rate_rps == pytest.approx(2.0)


def test_a_server_scaled_to_zero_is_still_seen_by_its_gateway() -> None:
    empty = inventory()
    _, window = run(
        (T0, view(gateway=GatewayReading("chat", T0, 0), has=empty)),
        (T0 + 30, view(gateway=GatewayReading("chat", T0 + 30, 60, 60), has=empty)),
    )
    assert window.observed.quality is Quality.OK
    assert window.observed.offered_rate_rps == pytest.approx(2.0)
    assert window.observed.completed_rate_rps is None and window.observed.waiting == 60.0


def test_a_restarted_replica_counts_what_it_did_since_and_is_warming_up() -> None:
    _, window = run(
        (T0, view(reading("a", T0, 1000, running=5.0), reading("b", T0, 1000))),
        (T0 + 30, view(reading("a", T0 + 30, 30, running=3.0), reading("b", T0 + 30, 1060))),
    )
    restarted, steady = window.observed.replicas
    assert restarted.warming_up and not steady.warming_up
    assert restarted.completed_rate_rps == pytest.approx(1.0)
    assert restarted.offered_rate_rps == pytest.approx(1.1)
    assert window.observed.completed_rate_rps == pytest.approx(3.0)
    assert window.observed.ttft is not None and window.observed.ttft.count == 60


def test_a_silent_replica_scales_the_sum_and_never_lowers_it() -> None:
    has = inventory(status("a", T0 - 500), status("b", T0 - 500))
    full, part, back = run(
        (T0, view(reading("a", T0, 0), reading("b", T0, 0), has=has)),
        (T0 + 30, view(reading("a", T0 + 30, 60, running=4.0), has=has)),
        (T0 + 60, view(reading("a", T0 + 60, 120), reading("b", T0 + 60, 90), has=has)),
    )[0:3]
    assert full.observed.quality is Quality.MISSING
    assert part.observed.quality is Quality.PARTIAL and part.observed.reporting_share == 0.5
    assert part.observed.completed_rate_rps == pytest.approx(4.0)
    assert part.observed.offered_rate_rps == pytest.approx(2 * 64 / 30)
    assert part.observed.running == 8.0
    assert [one.replica for one in part.observed.replicas] == ["a"]
    # Back again, its difference spans the windows that it missed: 90 in 60 s.
    assert back.observed.quality is Quality.OK
    assert back.observed.completed_rate_rps == pytest.approx(2.0 + 1.5)


def test_without_an_inventory_a_replica_that_falls_silent_is_expected_until_its_sample_is_stale() -> None:
    polls = [(T0, view(reading("a", T0, 0), reading("b", T0, 0)))]
    polls += [(T0 + s, view(reading("a", T0 + s, 2 * s))) for s in range(30, 151, 30)]
    windows = run(*polls)[1:]
    assert [w.observed.reporting_share for w in windows] == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert [w.observed.completed_rate_rps for w in windows] == pytest.approx([4.0, 4.0, 4.0, 2.0, 2.0])


def test_a_long_silent_replica_is_named() -> None:
    has = inventory(status("a", T0 - 500), status("b", T0 - 500))
    polls = [(T0, view(reading("a", T0, 0), reading("b", T0, 0), has=has))]
    polls += [(T0 + s, view(reading("a", T0 + s, s), has=has)) for s in (30, 60, 90, 120)]
    assert [window.silent for window in run(*polls)] == [(), (), (), (), ("b",)]


def test_a_new_replica_counts_from_zero_and_is_warming_up() -> None:
    before = inventory(status("a", T0 - 500))
    after = inventory(status("a", T0 - 500), status("b", T0 + 20))
    _, window, later = run(
        (T0, view(reading("a", T0, 100), has=before)),
        (T0 + 30, view(reading("a", T0 + 30, 160), reading("b", T0 + 30, 15), has=after)),
        (T0 + 60, view(reading("a", T0 + 60, 190), reading("b", T0 + 60, 45), has=after)),
    )
    assert window.observed.quality is Quality.OK
    assert window.observed.completed_rate_rps == pytest.approx(2.5)
    assert [one.warming_up for one in window.observed.replicas] == [False, True]
    assert window.observed.ttft is not None and window.observed.ttft.count == 60
    assert [one.warming_up for one in later.observed.replicas] == [False, False]
    assert later.observed.completed_rate_rps == pytest.approx(2.0)


def test_a_replica_just_ready_that_was_not_sampled_yet_does_not_inflate_the_sum() -> None:
    before = inventory(status("a", T0 - 500))
    after = inventory(status("a", T0 - 500), status("b", T0 + 29))
    _, window = run(
        (T0, view(reading("a", T0, 0), has=before)), (T0 + 30, view(reading("a", T0 + 30, 60), has=after))
    )
    assert window.observed.quality is Quality.OK
    assert window.observed.completed_rate_rps == pytest.approx(2.0)


def test_an_old_replica_seen_for_the_first_time_gives_a_baseline_only() -> None:
    has = inventory(status("a", T0 - 500), status("b", T0 - 500))
    _, window, later = run(
        (T0, view(reading("a", T0, 0), has=has)),
        (T0 + 30, view(reading("a", T0 + 30, 30), reading("b", T0 + 30, 1_000_000), has=has)),
        (T0 + 60, view(reading("a", T0 + 60, 60), reading("b", T0 + 60, 1_000_030), has=has)),
    )
    assert window.observed.quality is Quality.PARTIAL
    assert window.observed.completed_rate_rps == pytest.approx(2.0)
    assert later.observed.quality is Quality.OK
    assert later.observed.completed_rate_rps == pytest.approx(2.0)


def test_the_first_replica_of_a_server_woken_from_zero_is_measured_from_when_silence_ended() -> None:
    empty, has = inventory(), inventory(status("a", T0 + 320))
    *_, window = run(
        *((T0 + s, view(has=empty)) for s in range(0, 301, 30)),
        (T0 + 330, view(reading("a", T0 + 330, 60), has=has)),
    )
    assert (window.observed.window_start_s, window.observed.window_end_s) == (T0 + 300, T0 + 330)
    assert window.observed.completed_rate_rps == pytest.approx(2.0)


def test_a_replica_that_drains_adds_what_it_still_does_and_is_not_expected() -> None:
    before = inventory(status("a", T0 - 500), status("b", T0 - 500))
    after = inventory(status("a", T0 - 500), status("b", T0 - 500, ReplicaState.TERMINATING))
    gone = inventory(status("a", T0 - 500))
    _, draining, last = run(
        (T0, view(reading("a", T0, 0), reading("b", T0, 0, running=6.0), has=before)),
        (T0 + 30, view(reading("a", T0 + 30, 60), reading("b", T0 + 30, 6), has=after)),
        (T0 + 60, view(reading("a", T0 + 60, 120), has=gone)),
    )
    assert draining.observed.completed_rate_rps == pytest.approx(2.2)
    assert draining.observed.offered_rate_rps == pytest.approx(2.0)
    assert last.observed.quality is Quality.OK and last.observed.completed_rate_rps == pytest.approx(2.0)
    assert set(last.record.replicas) == {"a"}


def test_samples_that_do_not_advance_are_stale_and_nothing_is_lost_once_they_do() -> None:
    _, stale, later = run(
        (T0, view(reading("a", T0, 0))),
        (T0 + 30, view(reading("a", T0, 0))),
        (T0 + 60, view(reading("a", T0 + 50, 100))),
    )
    assert stale.observed.quality is Quality.STALE
    assert stale.observed.completed_rate_rps is None and stale.observed.running is None
    assert later.observed.quality is Quality.OK
    assert (later.observed.window_start_s, later.observed.window_end_s) == (T0, T0 + 50)
    assert later.observed.completed_rate_rps == pytest.approx(2.0)


def test_a_late_sample_older_than_the_last_window_still_makes_a_newer_window() -> None:
    *_, late = run(
        (T0, view(reading("a", T0, 0))),
        (T0 + 30, view(reading("a", T0, 0))),
        (T0 + 60, view(reading("a", T0 + 20, 40))),
    )
    assert late.observed.completed_rate_rps == pytest.approx(2.0)
    assert late.observed.window_end_s == T0 + 60


def test_samples_that_advance_but_are_old_are_stale_with_their_figures() -> None:
    _, window = run((T0, view(reading("a", T0 - 200, 0))), (T0 + 30, view(reading("a", T0 - 170, 60))))
    assert window.observed.quality is Quality.STALE
    assert window.observed.completed_rate_rps == pytest.approx(2.0)


def test_nothing_at_all_is_missing_and_never_zero() -> None:
    _, window = run((T0, view(reading("a", T0, 0))), (T0 + 30, view()))
    seen = window.observed.model_dump()
    assert seen["quality"] is Quality.MISSING and seen["replicas"] == ()
    figures = ("offered_rate_rps", "completed_rate_rps", "input_tokens", "ttft", "itl", "running", "waiting")
    assert all(seen[name] is None for name in figures)


def test_a_window_across_a_change_of_batch_limit_is_partial_and_carries_the_new_epoch() -> None:
    small, large = (inventory(status("a", T0 - 500), max_batch=batch) for batch in (8, 16))
    _, before, across, after = run(
        (T0, view(reading("a", T0, 0), has=small)),
        (T0 + 30, view(reading("a", T0 + 30, 30), has=small)),
        (T0 + 60, view(reading("a", T0 + 60, 60), has=large)),
        (T0 + 90, view(reading("a", T0 + 90, 90), has=large)),
    )
    assert [w.observed.quality for w in (before, across, after)] == [Quality.OK, Quality.PARTIAL, Quality.OK]
    assert before.observed.epoch != across.observed.epoch == after.observed.epoch
    assert across.observed.replicas[0].quality is Quality.PARTIAL
    assert across.observed.completed_rate_rps == pytest.approx(1.0)


def test_a_failed_inventory_does_not_look_like_a_change_of_configuration() -> None:
    has = inventory(status("a", T0 - 500))
    _, _, without = run(
        (T0, view(reading("a", T0, 0), has=has)),
        (T0 + 30, view(reading("a", T0 + 30, 30), has=has)),
        (T0 + 60, view(reading("a", T0 + 60, 60))),
    )
    assert without.observed.quality is Quality.OK
    assert without.observed.replicas[0].max_batch == 8


def test_replicas_are_measured_over_their_own_samples() -> None:
    _, window = run(
        (T0, view(reading("a", T0 - 10, 0), reading("b", T0, 0))),
        (T0 + 30, view(reading("a", T0 + 20, 60), reading("b", T0 + 15, 30))),
    )
    assert window.observed.completed_rate_rps == pytest.approx(2.0 + 2.0)
    assert window.observed.window_end_s == T0 + 20


def test_figures_that_fit_no_contract_are_left_out_and_counted() -> None:
    _, window = run(
        (T0, view(reading("a", T0, 0), reading("b\n", T0, 0), reading("c", T0, 0, input_tokens=0.0))),
        (
            T0 + 30,
            view(
                reading("a", T0 + 30, 30),
                reading("b\n", T0 + 30, 30),
                reading("c", T0 + 30, 30, input_tokens=1e300, kv_used_share=7.0),
            ),
        ),
    )
    assert window.skipped == 1
    assert [one.replica for one in window.observed.replicas] == ["a", "c"]
    assert window.observed.replicas[1].input_tokens is None
    assert window.observed.replicas[1].kv_used_share is None
    assert window.observed.completed_rate_rps == pytest.approx(3.0)


counts = st.integers(0, 50)


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(counts, counts), min_size=3, max_size=3)), max_size=12
    )
)
def test_windows_add_up_to_the_difference_of_the_counters(
    polls: list[tuple[bool, list[tuple[int, int]]]],
) -> None:
    """Σ rate · duration equals what the counters rose by, whatever polls were lost in between."""
    totals, at_s, held = [100.0, 200.0, 300.0], T0, [0.0, 0.0, 0.0]
    start = tuple(reading(name, at_s, n) for name, n in zip("abc", totals, strict=True))
    window = difference(None, view(*start), at_s, SETTINGS)
    completed = offered = 0.0
    for lost, steps in [*polls, (False, [(0, 0)] * 3)]:
        at_s += 30
        totals = [total + done for total, (done, _) in zip(totals, steps, strict=True)]
        held = [float(waiting) for _, waiting in steps]
        seen = [reading(name, at_s, n, waiting=w) for name, n, w in zip("abc", totals, held, strict=True)]
        window = difference(window.record, view(*(() if lost else seen)), at_s, SETTINGS)
        if not lost:
            span_s = window.observed.window_end_s - window.observed.window_start_s
            completed += (window.observed.completed_rate_rps or 0.0) * span_s
            offered += (window.observed.offered_rate_rps or 0.0) * span_s
    assert completed == pytest.approx(sum(totals) - 600.0, rel=1e-9, abs=1e-6)
    # Requests that vanish from a queue without being completed are not un-offered: at least, not exactly.
    assert offered >= completed + sum(held) - 1e-6


@given(st.lists(st.floats(0.5, 60), min_size=2, max_size=20), st.integers(0, 3))
def test_ends_of_windows_only_grow(gaps_s: list[float], frozen: int) -> None:
    now_s, record, ends = T0, None, [T0 - 30]
    for index, gap_s in enumerate(gaps_s):
        sampled_s = T0 if index <= frozen else now_s - 5
        window = difference(record, view(reading("a", sampled_s, index)), now_s, SETTINGS)
        record = window.record
        ends.append(window.observed.window_end_s)
        now_s += gap_s
    assert all(earlier < later for earlier, later in pairwise(ends))


@given(
    st.lists(st.tuples(counts, counts, st.booleans()), min_size=1, max_size=6),
    st.integers(1, 60),
)
def test_partial_reporting_never_lowers_the_estimate(
    replicas: list[tuple[int, int, bool]], span_s: int
) -> None:
    names = [f"r{i}" for i in range(len(replicas))]
    has = inventory(*(status(name, T0 - 500) for name in names))
    first = view(*(reading(name, T0, 0) for name in names), has=has)
    second = view(
        *(
            reading(name, T0 + span_s, done, waiting=float(held))
            for name, (done, held, reports) in zip(names, replicas, strict=True)
            if reports
        ),
        has=has,
    )
    _, window = run((T0, first), (T0 + span_s, second))
    reported = [(done, held) for done, held, reports in replicas if reports]
    if not reported:
        assert window.observed.quality is Quality.MISSING and window.observed.offered_rate_rps is None
        return
    seen = sum(done + held for done, held in reported) / span_s
    assert window.observed.offered_rate_rps == pytest.approx(seen * len(replicas) / len(reported))
    assert (window.observed.quality is Quality.OK) == (len(reported) == len(replicas))


def test_a_record_is_complete_without_the_windows_before_it() -> None:
    polls = [
        (T0 + 30 * i, view(reading("a", T0 + 30 * i, 50 * i), reading("b", T0 + 30 * i, 7 * i)))
        for i in range(4)
    ]
    straight = run(*polls)[-1]
    record = dataclasses.replace(run(*polls[:3])[-1].record)
    assert difference(record, polls[3][1], polls[3][0], SETTINGS) == straight
