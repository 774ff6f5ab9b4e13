"""The predictor's core over windows, inventories and fleets."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predictor_windows import NAMES, POOL, SETTINGS, START_S, WIDTH_S, inventory, poisson, run, window

from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile
from schemas.forecast import rate_at, tokens_at
from schemas.telemetry import StartupTime, TelemetryObserved
from services.predictor.core import State, lead_time_s, observe, played_back, step
from services.predictor.quantiles import LEVELS, pinball
from services.predictor.series import Measured, Series, advance, due_for_fit, fitted, speak
from services.predictor.snapshot import dump, dump_entry, load, load_entry


def fleet(**profile: Any) -> FleetDeclared:
    return FleetDeclared(
        declared_at_s=START_S,
        revision="1",
        accelerators=(
            Accelerator(name="A100", type="A100", cost_per_hour=1),
            Accelerator(name="H100", type="H100", cost_per_hour=2),
        ),
        models=(
            Model(
                name="m",
                profiles=(
                    ModelProfile(accelerator="A100", **profile),
                    ModelProfile(accelerator="H100", startup_s=400),
                ),
            ),
        ),
        service_classes=(),
        servers=(),
    )


def test_one_sample_is_enough_for_a_forecast_with_a_poisson_margin() -> None:
    _, (forecast,) = run([2.0])
    assert forecast.forecaster == "last"
    assert "0 of 20" in forecast.reason
    assert [q.quantile for q in forecast.rate] == list(LEVELS)
    assert rate_at(forecast, 0.9) > 2.0
    assert forecast.issued_at_s == START_S + WIDTH_S
    assert forecast.score is None


def test_a_constant_load_is_forecast_as_it_is_once_enough_has_come_due() -> None:
    _, issued = run([5.0] * 200)
    assert rate_at(issued[-1], 0.99) == pytest.approx(5.0, rel=1e-6)


def test_no_traffic_is_forecast_as_no_traffic() -> None:
    _, issued = run([0.0] * 120)
    assert all(q.rate_rps == 0.0 for forecast in issued for q in forecast.rate)


def test_a_steady_ramp_is_covered_by_what_ramps_did_before() -> None:
    rates = [1.0 + 0.02 * i for i in range(300)]
    _, issued = run(list(rates))
    horizon = round(issued[0].horizon_s / WIDTH_S)
    covered = [rate_at(f, 0.9) >= 0.99 * rates[i + horizon] for i, f in enumerate(issued[100:250], start=100)]
    assert sum(covered) / len(covered) > 0.85


def test_a_step_up_is_followed() -> None:
    _, issued = run([1.0] * 100 + [10.0] * 60)
    assert rate_at(issued[-1], 0.5) == pytest.approx(10.0, rel=0.1)


def test_an_outage_leaves_no_forecast_and_is_not_a_fall_to_zero() -> None:
    state, before = run([6.0] * 100)
    late = [window(200 + i, 6.0) for i in range(3)]
    state, outputs = step(state, late, POOL, SETTINGS)
    (forecast,) = outputs.issued
    assert rate_at(forecast, 0.5) == pytest.approx(rate_at(before[-1], 0.5), rel=0.05)
    assert rate_at(forecast, 0.99) < 2 * rate_at(before[-1], 0.99)


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        (window(5, None), "window without a rate"),
        (window(5, 1.0, quality=Quality.STALE), "stale window"),
        (window(5, 1.0, quality=Quality.MISSING), "missing window"),
        (window(-5, 1.0), "duplicate window"),
        (window(0, 1.0), "duplicate window"),
        (window(5, 9.0, calibration=True), "calibration"),
    ],
)
def test_a_window_that_cannot_be_used_is_counted_and_issues_nothing(
    left_out: TelemetryObserved, reason: str
) -> None:
    before, _ = run([3.0])
    after, outputs = step(before, [left_out], POOL, SETTINGS)
    assert outputs.issued == ()
    assert outputs.taken == {}
    assert outputs.skipped == {reason: 1}
    assert after.series["s"] is before.series["s"]


def test_a_window_that_is_delivered_twice_in_one_step_is_used_once() -> None:
    once, _ = run([3.0])
    twice, outputs = step(State(), [window(0, 3.0), window(0, 3.0)], POOL, SETTINGS)
    assert dump(twice.series["s"], NAMES) == dump(once.series["s"], NAMES)
    assert outputs.skipped == {"duplicate window": 1}


def test_a_wide_window_counts_as_the_windows_that_it_covers() -> None:
    narrow, _ = run([4.0] * 11)
    wide, _ = step(State(), [window(0, 4.0)], POOL, SETTINGS)
    wide, _ = step(wide, [window(1, 4.0, width_s=10 * WIDTH_S)], POOL, SETTINGS)
    assert wide.series["s"].history.rates.tolist() == narrow.series["s"].history.rates.tolist()


def test_narrow_windows_are_averaged_into_one() -> None:
    state, _ = run([4.0])
    for place, rate in enumerate((1.0, 2.0, 6.0)):
        part = window(
            1, rate, window_start_s=START_S + 30 + 10 * place, window_end_s=START_S + 40 + 10 * place
        )
        state, _ = step(state, [part], POOL, SETTINGS)
    # The first ten seconds are nearer to the window before and join it: (4·30 + 1·10) / 40.
    assert state.series["s"].history.rates.tolist() == pytest.approx([3.25, 4.0])


def test_the_ensemble_beats_the_last_value_on_noise_and_says_so() -> None:
    chance = random.Random(1)
    _, issued = run([poisson(chance, 60.0) / WIDTH_S for _ in range(400)])
    last = issued[-1]
    assert last.forecaster == "ensemble"
    assert last.score is not None
    assert last.score.pinball_p90 < last.score.pinball_p90_last
    assert "the ensemble at 0.5, 0.75, 0.9" in last.reason


def test_the_last_value_is_kept_to_on_a_random_walk_where_nothing_does_clearly_better() -> None:
    chance, level, rates = random.Random(2), 100.0, []
    for _ in range(400):
        level = max(1.0, level * math.exp(chance.gauss(0, 0.3)))
        rates.append(level)
    _, issued = run(list(rates))
    judged = [f for f in issued[100:] if f.score is not None]
    # Weights follow losses late; what that costs is below a hundredth.
    assert all(f.score.pinball_p90 <= 1.01 * f.score.pinball_p90_last for f in judged if f.score)
    # Of its median nothing can be better than the last value in the long run.
    kept = [f for f in judged if "the ensemble at 0.5" not in f.reason]
    assert len(kept) > len(judged) / 2


def test_while_history_is_short_the_poisson_floor_covers() -> None:
    # At least the nominal 90 % less 4 points: 300 starts have a standard error of 1.7 points.
    covered = 0
    for seed in range(300):
        chance = random.Random(seed)
        first = poisson(chance, 90.0) / WIDTH_S
        _, (forecast,) = run([first])
        windows = round(forecast.horizon_s / WIDTH_S)
        # Against counts around the rate that was seen: what is not known of the rate itself is not its part.
        covered += (
            max(poisson(chance, first * WIDTH_S) for _ in range(windows)) <= rate_at(forecast, 0.9) * WIDTH_S
        )
    assert covered / 300 >= 0.86


def test_the_lead_time_is_learned_before_declared_before_assumed() -> None:
    empty = State()
    assert lead_time_s(empty, "s", "m") == 120
    declared = observe(empty, fleet(startup_s=90))
    assert lead_time_s(declared, "s", "m") == 400
    held = observe(declared, inventory())
    assert lead_time_s(held, "s", "m") == 90
    learned = observe(held, inventory((StartupTime(accelerator="A100", p50_s=50, p95_s=70, samples=9),)))
    assert lead_time_s(learned, "s", "m") == 70
    _, outputs = step(learned, [window(0, 1.0)], POOL, SETTINGS)
    assert outputs.issued[0].horizon_s == 70 + WIDTH_S


def test_an_older_fleet_does_not_replace_a_newer_one() -> None:
    newer = fleet()
    older = newer.model_copy(update={"declared_at_s": START_S - 1, "revision": "0"})
    assert observe(observe(State(), newer), older).fleet == newer


def test_an_inventory_that_is_missing_does_not_replace_what_is_known() -> None:
    known = observe(State(), inventory())
    assert observe(known, inventory().model_copy(update={"quality": Quality.MISSING})) == known


def test_token_means_follow_the_load_and_are_kept_while_nothing_is_measured() -> None:
    tokens = {"input_tokens": 1000, "output_tokens": 100, "completed_rate_rps": 1.0}
    state, outputs = step(State(), [window(i, 1.0, **tokens) for i in range(5)], POOL, SETTINGS)
    assert outputs.issued[0].input_tokens == pytest.approx(1000)
    changed = tokens | {"input_tokens": 2000}
    state, outputs = step(state, [window(i, 1.0, **changed) for i in range(5, 100)], POOL, SETTINGS)
    assert outputs.issued[0].input_tokens == pytest.approx(2000, rel=0.05)
    _, outputs = step(state, [window(100, 0.0)], POOL, SETTINGS)
    assert outputs.issued[0].output_tokens == pytest.approx(100)


def test_token_means_are_taken_by_offered_load_where_completions_are_not_measured() -> None:
    _, outputs = step(State(), [window(0, 1.0, input_tokens=700, output_tokens=70)], POOL, SETTINGS)
    assert (outputs.issued[0].input_tokens, outputs.issued[0].output_tokens) == (700, 70)


def test_before_a_request_was_measured_there_are_no_token_quantiles() -> None:
    _, outputs = step(State(), [window(0, 0.0)], POOL, SETTINGS)
    assert tokens_at(outputs.issued[0], 0.9) == (None, None)


def test_narrow_windows_are_joined_until_they_are_wide_enough_to_forecast_from() -> None:
    parts = [
        window(
            0,
            rate,
            window_start_s=START_S + 1.25 * place,
            window_end_s=START_S + 1.25 * (place + 1),
            input_tokens=tokens,
        )
        for place, (rate, tokens) in enumerate([(1.0, 100), (3.0, 500), (0.0, None), (4.0, 1000)])
    ]
    state, issued = State(), []
    for part in parts:
        state, outputs = step(state, [part, part], POOL, SETTINGS)
        issued += outputs.issued
        assert outputs.skipped == {"duplicate window": 1}
    (forecast,) = issued
    assert forecast.issued_at_s == START_S + 5.0
    assert state.series["s"].history.rates.tolist() == pytest.approx([2.0])
    # By requests: (1·100 + 3·500 + 4·1 000) / 8.
    assert forecast.input_tokens == pytest.approx(700.0)
    assert not state.narrow


def test_narrow_windows_are_not_joined_over_a_silence() -> None:
    first = window(0, 1.0, window_end_s=START_S + 2.0)
    later = window(10, 5.0)
    _, outputs = step(State(), [first, later], POOL, SETTINGS)
    assert [w.rate_rps for w in outputs.taken["s"].windows] == [5.0]
    assert outputs.skipped == {"narrow window before a silence": 1}
    assert outputs.issued[0].issued_at_s == later.window_end_s


def test_a_server_that_never_had_traffic_remembers_nothing_to_be_scored() -> None:
    state, issued = run([0.0] * 60)
    assert state.series["s"].open == ()
    assert state.series["s"].record is None
    assert "no request in all that is remembered" in issued[-1].reason


def test_servers_do_not_touch_each_other() -> None:
    alone, _ = step(State(), [window(0, 1.0)], POOL, SETTINGS)
    both, _ = step(State(), [window(0, 1.0), window(0, 50.0, server="other")], POOL, SETTINGS)
    assert dump(both.series["s"], NAMES) == dump(alone.series["s"], NAMES)


def test_a_snapshot_continues_bit_by_bit() -> None:
    chance = random.Random(5)
    rates = [chance.uniform(0, 20) for _ in range(160)]
    half, _ = run(list(rates[:80]))
    restored = State(series={"s": load(dump(half.series["s"], NAMES), NAMES)})
    for index in range(80, 160):
        half, expected = step(half, [window(index, rates[index])], POOL, SETTINGS)
        restored, found = step(restored, [window(index, rates[index])], POOL, SETTINGS)
        assert found == expected
    assert dump(restored.series["s"], NAMES) == dump(half.series["s"], NAMES)


def test_playing_back_what_was_taken_gives_the_same_series_bit_by_bit() -> None:
    chance = random.Random(6)
    state, series = State(), {"s": Series(), "other": Series()}
    few = SETTINGS.model_copy(update={"fits_per_step": 1})
    for index in range(120):
        state = observe(
            state, inventory((StartupTime(accelerator="A100", p50_s=0, p95_s=60 + index, samples=1),))
        )
        came = [window(index, chance.uniform(0, 20), server=name) for name in series if chance.random() < 0.8]
        state, outputs = step(state, came, POOL, few)
        for name, taken in load_entry(dump_entry(outputs.taken)).items():
            series[name] = played_back(series[name], taken, POOL, few)
            series[name] = played_back(series[name], taken, POOL, few)
    for name, one in series.items():
        assert dump(one, NAMES) == dump(state.series[name], NAMES)


def test_the_history_of_a_series_outlives_a_change_of_forecasters() -> None:
    state, _ = run([5.0] * 60)
    restored = load(dump(state.series["s"], NAMES), ["last"])
    assert len(restored.history) == 60
    assert restored.record is None
    assert restored.open == ()


def test_what_was_fitted_to_a_longer_history_than_is_now_kept_is_forgotten() -> None:
    series, day_s = Series(), 86_400.0
    for index in range(220):
        start_s = START_S + index * 600.0
        rate = 5.0 + 2.0 * math.sin(2.0 * math.pi * start_s / day_s)
        series = advance(series, Measured(start_s, start_s + 600.0, rate), SETTINGS)
    series = fitted(series, 3, POOL)
    assert series.fits["ar-fourier"]["seasons"] == [1.0]

    shorter = SETTINGS.model_copy(update={"history_windows": 30})
    restored = load(dump(series, NAMES), NAMES)
    series = advance(restored, Measured(series.end_s, series.end_s + 600.0, 5.0), shorter)
    assert len(series.history) == 30 and due_for_fit(series, 3, shorter)
    # It has no day ago to look at any more.
    _, spoken = speak(series, 1800.0, POOL, shorter)
    assert all(math.isfinite(rate) for rate in spoken.rates_rps)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b"7", b"\xff", b'{"end_s": null}', b'{"a": [1]}'])
def test_a_snapshot_that_cannot_be_read_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load(raw, NAMES)
    if raw != b"{}":
        with pytest.raises(ValueError, match="cannot be read"):
            load_entry(raw)


def test_no_more_series_are_fitted_in_a_step_than_the_settings_say_and_none_is_forgotten() -> None:
    few = SETTINGS.model_copy(update={"fits_per_step": 2})
    state = State()
    for index in range(40):
        came = [window(index, 3.0 + index % 3, server=f"s{i}") for i in range(10)]
        state, outputs = step(state, came, POOL, few)
        assert sum(taken.fit for taken in outputs.taken.values()) <= 2
    assert all("ses" in one.fits for one in state.series.values())


def test_a_server_without_traffic_is_never_fitted() -> None:
    state = State()
    for index in range(60):
        state, outputs = step(state, [window(index, 0.0)], POOL, SETTINGS)
        assert not outputs.taken["s"].fit


@settings(max_examples=100, deadline=None)
@given(
    windows=st.lists(
        st.tuples(
            st.floats(0, 1e4),
            st.floats(0, 1e6, exclude_min=True),
            st.none() | st.floats(0, 1e7),
            st.none() | st.floats(0, 1e7),
            st.none() | st.floats(0, 1e9),
        ),
        max_size=40,
    ),
    startup_s=st.floats(0, 1e9),
    at_s=st.sampled_from([0.0, 1e9]),
)
def test_no_message_makes_it_raise_and_quantiles_are_finite_and_rise(
    windows: list[tuple[float, float, float | None, float | None, float | None]],
    startup_s: float,
    at_s: float,
) -> None:
    learned = inventory((StartupTime(accelerator="A100", p50_s=0, p95_s=startup_s, samples=1),))
    state = observe(State(), learned)
    end_s = at_s
    for gap_s, width_s, rate, completed, tokens in windows:
        start_s, end_s = end_s + gap_s, end_s + gap_s + width_s
        if not start_s < end_s < 1e11:
            continue
        seen = window(
            0,
            rate,
            window_start_s=start_s,
            window_end_s=end_s,
            completed_rate_rps=completed,
            input_tokens=tokens,
            output_tokens=tokens,
        )
        state, outputs = step(state, [seen], POOL, SETTINGS)
        for forecast in outputs.issued:
            rates = [q.rate_rps for q in forecast.rate]
            assert rates == sorted(rates)
            assert all(math.isfinite(r) and r >= 0 for r in rates)
        for server in outputs.taken:
            json.loads(dump(state.series[server], NAMES))


def test_pinball_loss_charges_shortage_and_excess_by_the_level() -> None:
    at = LEVELS.index(0.9)
    assert pinball(10.0, [8.0] * len(LEVELS))[at] == pytest.approx(1.8)
    assert pinball(8.0, [10.0] * len(LEVELS))[at] == pytest.approx(0.2)
