"""The tuner's core over telemetry and fleets."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, LawParameters, Model, ModelProfile
from schemas.parameters import Health
from schemas.telemetry import Latency, ReplicaTelemetry, TelemetryObserved
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.tuner.core import Setup, Skipped, State, dump, key_of, load, step
from services.tuner.estimators.moving_horizon import MovingHorizon, MovingHorizonSettings
from services.tuner.observation import Excluded
from services.tuner.settings import TunerSettings

SETUP = Setup(
    MovingHorizon(MovingHorizonSettings()), {"three-parameter": ThreeParameterLaw()}, TunerSettings()
)
VALUES = {"alpha_s": 8e-3, "beta_s": 16e-6, "gamma_s": 5e-7}
PARAMETERS = LawParameters(values=VALUES)
NOW_S = 1e9
PAIR = ("m", "A100")


def fleet(
    revision: str = "1", parameters: LawParameters | None = PARAMETERS, name: str = "m"
) -> FleetDeclared:
    return FleetDeclared(
        declared_at_s=NOW_S - 100,
        revision=revision,
        accelerators=(Accelerator(name="A100", type="A100", cost_per_hour=1),),
        models=(Model(name=name, profiles=(ModelProfile(accelerator="A100", parameters=parameters),)),),
        service_classes=(),
        servers=(),
    )


def telemetry(cycle: int, server: str = "s", replicas: int = 2, **changed: Any) -> TelemetryObserved:
    chance = random.Random(f"{cycle} {server}")
    seen = tuple(
        ReplicaTelemetry(
            replica=f"{server}-{i}",
            accelerator="A100",
            offered_rate_rps=chance.uniform(0.2, 1.0),
            input_tokens=chance.uniform(300, 3000),
            output_tokens=chance.uniform(100, 600),
            ttft=Latency(count=30, mean_s=chance.uniform(0.03, 0.06)),
            itl=Latency(count=30, mean_s=chance.uniform(0.009, 0.012)),
        )
        for i in range(replicas)
    )
    figures: dict[str, Any] = {
        "server": server,
        "model": "m",
        "window_start_s": NOW_S + 30 * cycle - 30,
        "window_end_s": NOW_S + 30 * cycle,
        "quality": Quality.OK,
        "replicas": seen,
    }
    return TelemetryObserved(**(figures | changed))


def declared(**changed: Any) -> State:
    return step(State(), (), fleet(**changed), NOW_S, SETUP)[0]


def test_a_new_fleet_publishes_the_declared_parameters_at_once() -> None:
    _, outputs = step(State(), (), fleet(), NOW_S, SETUP)
    (published,) = outputs.parameters
    assert (published.model, published.accelerator) == PAIR
    assert (published.health, published.values, published.law_version) == (Health.PRIOR, VALUES, 1)
    assert published.estimated_at_s == NOW_S - 100
    assert outputs.changed == (key_of(PAIR),)


def test_the_same_fleet_again_publishes_nothing() -> None:
    _, outputs = step(declared(), (), fleet(), NOW_S, SETUP)
    assert outputs.parameters == ()
    assert outputs.changed == ()


def test_a_new_revision_with_the_same_parameters_keeps_what_was_learned() -> None:
    learned, _ = step(declared(), [telemetry(0)], None, NOW_S, SETUP)
    state, outputs = step(learned, (), fleet(revision="2"), NOW_S, SETUP)
    assert outputs.parameters == ()
    assert state.pairs == learned.pairs


def test_other_declared_parameters_start_the_pair_again() -> None:
    learned, _ = step(declared(), [telemetry(0)], None, NOW_S, SETUP)
    other = LawParameters(values={name: value * 2 for name, value in VALUES.items()})
    state, outputs = step(learned, (), fleet(revision="2", parameters=other), NOW_S, SETUP)
    assert outputs.parameters[0].values == other.values
    assert outputs.parameters[0].health is Health.PRIOR
    assert step(state, [telemetry(0)], None, NOW_S, SETUP)[1].skipped == {Skipped.DUPLICATE: 1}


def test_a_pair_that_is_no_longer_declared_is_dropped() -> None:
    state, outputs = step(declared(), (), fleet(revision="2", name="other"), NOW_S, SETUP)
    assert list(state.pairs) == [("other", "A100")]
    assert outputs.dropped == (key_of(PAIR),)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (LawParameters(law="unheard-of", values={"a": 1.0}), "unheard-of"),
        (LawParameters(law_version=7, values=VALUES), "version 7"),
        (LawParameters(values={"speed": 1.0}), "speed"),
        (LawParameters(values=dict.fromkeys(VALUES, 0.0)), "zero"),
    ],
)
def test_declared_parameters_that_cannot_be_used_are_refused_with_a_reason(
    parameters: LawParameters, named: str
) -> None:
    _, outputs = step(State(), (), fleet(parameters=parameters), NOW_S, SETUP)
    assert outputs.parameters == ()
    (reason,) = outputs.refused
    assert named in reason


def test_all_replicas_of_all_servers_of_a_pair_are_learned_from_at_once() -> None:
    _, outputs = step(declared(), [telemetry(0, "s1"), telemetry(0, "s2", 3)], None, NOW_S, SETUP)
    (published,) = outputs.parameters
    assert published.evidence.observations == 5
    assert published.estimated_at_s == NOW_S


def test_an_estimate_does_not_look_older_for_a_server_whose_windows_come_late() -> None:
    state, _ = step(declared(), [telemetry(5, "on time")], None, NOW_S + 150, SETUP)
    _, outputs = step(state, [telemetry(3, "late")], None, NOW_S + 151, SETUP)
    (published,) = outputs.parameters
    # What is older than the newest that the optimizer knows, it leaves out.
    assert (published.evidence.observations, published.estimated_at_s) == (4, NOW_S + 150)


def test_the_order_of_servers_within_a_cycle_does_not_matter() -> None:
    # Windows of one cycle end together; a sort by their end alone would leave the order to chance.
    cycle = [telemetry(0, "s1"), telemetry(0, "s2")]
    one, other = (step(declared(), order, None, NOW_S, SETUP)[1] for order in (cycle, cycle[::-1]))
    assert one.parameters == other.parameters


def test_a_window_that_comes_twice_is_used_once() -> None:
    state, _ = step(declared(), [telemetry(0)], None, NOW_S, SETUP)
    again, outputs = step(state, [telemetry(0)], None, NOW_S, SETUP)
    assert outputs.skipped == {Skipped.DUPLICATE: 1}
    assert outputs.parameters == ()
    assert again == state


def test_a_window_that_is_delivered_twice_in_one_step_is_used_once() -> None:
    _, outputs = step(declared(), [telemetry(0), telemetry(0)], None, NOW_S, SETUP)
    assert outputs.skipped == {Skipped.DUPLICATE: 1}
    assert outputs.parameters[0].evidence.observations == 2


def test_an_older_window_after_a_newer_one_is_a_duplicate() -> None:
    state, _ = step(declared(), [telemetry(1)], None, NOW_S + 30, SETUP)
    assert step(state, [telemetry(0)], None, NOW_S + 30, SETUP)[1].skipped == {Skipped.DUPLICATE: 1}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (telemetry(-200), Skipped.STALE),
        (telemetry(100), Skipped.FUTURE),
        (telemetry(0, replicas=0), Skipped.NO_REPLICAS),
        (telemetry(0, model="unheard-of"), Skipped.UNDECLARED),
    ],
)
def test_a_message_that_cannot_be_used_is_counted_by_reason(
    message: TelemetryObserved, reason: Skipped
) -> None:
    before = declared()
    state, outputs = step(before, [message], None, NOW_S, SETUP)
    assert outputs.skipped == {reason: 1}
    assert state == before


def test_telemetry_before_any_fleet_is_counted() -> None:
    assert step(State(), [telemetry(0)], None, NOW_S, SETUP)[1].skipped == {Skipped.NO_FLEET: 1}


def test_the_first_window_after_a_change_of_configuration_is_left_out_and_the_next_is_not() -> None:
    state, _ = step(declared(), [telemetry(0)], None, NOW_S, SETUP)
    state, first = step(state, [telemetry(1, epoch="1")], None, NOW_S + 30, SETUP)
    assert first.excluded == {Excluded.EPOCH_CHANGED: 2}
    assert first.parameters == ()
    _, second = step(state, [telemetry(2, epoch="1")], None, NOW_S + 60, SETUP)
    assert second.parameters[0].evidence.rejected == 2


def test_one_pair_without_parameters_does_not_stop_the_others() -> None:
    both = fleet().models[0], Model(name="young", profiles=(ModelProfile(accelerator="A100"),))
    state, outputs = step(State(), (), fleet().model_copy(update={"models": both}), NOW_S, SETUP)
    assert [p.model for p in outputs.parameters] == ["m"]
    _, outputs = step(state, [telemetry(0), telemetry(0, "y", 1, model="young")], None, NOW_S, SETUP)
    assert [p.model for p in outputs.parameters] == ["m"]


def test_a_snapshot_continues_bit_by_bit() -> None:
    state = declared()
    for cycle in range(5):
        state, _ = step(state, [telemetry(cycle)], None, NOW_S + 30 * cycle, SETUP)
    key = key_of(PAIR)
    restored = load(replace(state, pairs={}), key, dump(state, key, SETUP), SETUP)
    for cycle in range(5, 9):
        state, expected = step(state, [telemetry(cycle)], None, NOW_S + 30 * cycle, SETUP)
        restored, found = step(restored, [telemetry(cycle)], None, NOW_S + 30 * cycle, SETUP)
        assert found == expected
    assert restored.pairs == state.pairs


def test_a_snapshot_loaded_before_the_fleet_arrives_is_not_started_again() -> None:
    state, _ = step(declared(), [telemetry(0)], None, NOW_S, SETUP)
    key = key_of(PAIR)
    restored = load(State(), key, dump(state, key, SETUP), SETUP)
    restored, outputs = step(restored, (), fleet(), NOW_S, SETUP)
    assert outputs.parameters == ()
    assert SETUP.estimator.estimate(restored.pairs[PAIR].estimator) == SETUP.estimator.estimate(
        state.pairs[PAIR].estimator
    )


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"7", b'{"version": 0, "estimator": "moving-horizon"}', b"\xff\xfe"]
)
def test_a_snapshot_that_cannot_be_read_is_a_value_error_that_names_its_key(raw: bytes) -> None:
    with pytest.raises(ValueError, match="A100"):
        load(State(), key_of(PAIR), raw, SETUP)


def test_a_step_leaves_the_state_that_it_was_given_alone() -> None:
    state = declared()
    before = dump(state, key_of(PAIR), SETUP)
    step(state, [telemetry(0)], fleet(revision="2"), NOW_S, SETUP)
    assert dump(state, key_of(PAIR), SETUP) == before


LATENCIES = st.none() | st.builds(Latency, count=st.floats(0, 1e9), mean_s=st.floats(0, 86_400))
REPLICAS = st.builds(
    ReplicaTelemetry,
    replica=st.sampled_from(["r0", "r1"]),
    accelerator=st.just("A100"),
    max_batch=st.none() | st.integers(1, 1_000_000),
    quality=st.just(Quality.OK),
    warming_up=st.just(False),
    offered_rate_rps=st.none() | st.floats(0, 1e7),
    completed_rate_rps=st.none() | st.floats(0, 1e7),
    input_tokens=st.none() | st.floats(0, 1e9),
    output_tokens=st.none() | st.floats(0, 1e9),
    ttft=LATENCIES,
    itl=LATENCIES,
    running=st.none() | st.floats(0, 1e9),
    waiting=st.none() | st.floats(0, 1e9),
    kv_used_share=st.none(),
)


@settings(max_examples=60, deadline=None)
@given(cycles=st.lists(st.lists(REPLICAS, min_size=1, max_size=3), max_size=5), known=st.booleans())
def test_no_message_makes_it_raise_or_publish_what_is_not_a_number(
    cycles: list[list[ReplicaTelemetry]], known: bool
) -> None:
    state = declared(parameters=PARAMETERS if known else None)
    for cycle, replicas in enumerate(cycles):
        seen = telemetry(cycle, replicas=0).model_copy(update={"replicas": tuple(replicas)})
        state, outputs = step(state, [seen], None, NOW_S + 30 * cycle, SETUP)
        taken = sum(p.evidence.observations + p.evidence.rejected for p in outputs.parameters[-1:])
        assert not outputs.parameters or taken >= len(replicas)
        for key in outputs.changed:
            load(State(), key, dump(state, key, SETUP), SETUP)
