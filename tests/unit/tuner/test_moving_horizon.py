"""The estimator over a window of observations."""

import random
from dataclasses import replace

import numpy as np
import pytest
from estimator_suite import LAW, START_S, TRUTH, cycles_of, learned, observed, synthetic_cycle, worst_error

from schemas.parameters import Health
from services.tuner.estimators.moving_horizon import MovingHorizon, MovingHorizonSettings
from services.tuner.fit import Window, noise, predict, waiting
from services.tuner.memory import Memory, distinct_points, most_diverse
from services.tuner.observation import Observation

ESTIMATOR = MovingHorizon(MovingHorizonSettings())


def one_point(cycles: int, noise_share: float = 0.0) -> list[list[Observation]]:
    """Cycles that all see the same rate and the same token lengths."""
    base = synthetic_cycle(random.Random(8), 0, 0.0, replicas=1)[0]
    chance = random.Random(9)
    return [
        [
            replace(
                base,
                itl_s=base.itl_s * chance.lognormvariate(0, noise_share),
                window_end_s=START_S + 30 * cycle,
            )
        ]
        for cycle in range(cycles)
    ]


def test_many_operating_points_identify_every_parameter() -> None:
    state, estimate = learned(ESTIMATOR, ESTIMATOR.start(TRUTH, LAW), cycles_of(5, 12))
    assert estimate is not None
    assert estimate.health is Health.IDENTIFIED
    assert state.condition is not None and state.condition < 1e3
    assert estimate.evidence.itl_error_share is not None and estimate.evidence.itl_error_share < 0.06


def test_one_operating_point_identifies_nothing_however_small_its_residuals() -> None:
    prior = {name: value * 1.3 for name, value in TRUTH.items()}
    _, estimate = learned(ESTIMATOR, ESTIMATOR.start(prior, LAW), one_point(30))
    assert estimate is not None
    assert estimate.health is Health.LEARNING
    # Two latencies cannot tell three parameters apart, so the prior must go on to speak.
    assert worst_error(estimate) < 0.45


def test_without_a_prior_one_operating_point_publishes_nothing() -> None:
    _, estimate = learned(ESTIMATOR, ESTIMATOR.start(None, LAW), one_point(30))
    assert estimate is None


def test_without_a_prior_two_operating_points_publish_a_set_that_is_still_learning_or_better() -> None:
    # 30 %: two observations of two latencies each, with 2 % noise, for three parameters.
    cycles = cycles_of(6, 12)
    _, early = learned(ESTIMATOR, ESTIMATOR.start(None, LAW), cycles[:1])
    _, late = learned(ESTIMATOR, ESTIMATOR.start(None, LAW), cycles)
    assert early is not None and late is not None
    assert early.health in (Health.LEARNING, Health.IDENTIFIED)
    assert worst_error(late) < 0.15


def test_a_parameter_declared_as_zero_stays_zero() -> None:
    prior = {**TRUTH, "gamma_s": 0.0}
    _, estimate = learned(ESTIMATOR, ESTIMATOR.start(prior, LAW), cycles_of(7, 5))
    assert estimate is not None
    assert estimate.values["gamma_s"] == 0.0
    position = sorted(TRUTH).index("gamma_s")
    assert not any(estimate.covariance[position])


def test_latencies_that_the_law_cannot_explain_make_the_set_suspect() -> None:
    chance = random.Random(10)
    cycles = [
        [replace(o, itl_s=o.itl_s * chance.choice((0.2, 5.0))) for o in seen] for seen in cycles_of(11, 12)
    ]
    _, estimate = learned(ESTIMATOR, ESTIMATOR.start(TRUTH, LAW), cycles)
    assert estimate is not None
    assert estimate.health is Health.SUSPECT


def test_a_full_batch_teaches_through_the_inter_token_latency_at_that_batch() -> None:
    full = replace(
        observed("r", 0, 50.0, 1000, 300, 0.02, None), saturated=True, decoding=48.0, served_rps=0.0
    )
    truth = np.array([[TRUTH[name] for name in LAW.parameter_names]])
    window = Window.of([full])
    expected = LAW.inter_token_time(truth[0], 48.0, window.workload, 8192)
    assert np.exp(predict(LAW, truth, window, 0).log_times[0, 0, 0]) == pytest.approx(
        float(expected[0]), rel=1e-12
    )


def test_the_noise_falls_with_requests_and_waiting_leaves_the_first_token_in_doubt_as_the_batch_fills() -> (
    None
):
    base = observed("a", 0, 1.0, 1000, 300, 0.012, 0.05)
    fuller = replace(base, served_rps=10.0, decoding=39.0)
    window = Window.of([replace(base, requests=4.0), replace(base, requests=400.0), fuller])
    truth = np.array([[TRUTH[name] for name in LAW.parameter_names]])
    found = predict(LAW, truth, window, 0)
    few, many, _ = noise(window, found, 0.03, 0.1)[0]
    assert np.all(few > many)
    doubt = waiting(window, found)[0]
    assert doubt[0] < 1e-4 < 1.0 < doubt[2]


def test_slow_drift_of_the_engine_is_followed() -> None:
    chance = random.Random(12)
    cycles = []
    for cycle in range(60):
        slower = 1.0 + 0.01 * cycle
        cycles.append(
            [
                replace(o, itl_s=o.itl_s * slower, ttft_s=(o.ttft_s or 0) * slower)
                for o in synthetic_cycle(chance, cycle)
            ]
        )
    _, estimate = learned(ESTIMATOR, ESTIMATOR.start(TRUTH, LAW), cycles)
    assert estimate is not None
    # The engine is 1.6 times as slow in the end; the window remembers the way there.
    assert 1.25 < estimate.values["alpha_s"] / TRUTH["alpha_s"] < 1.75


def test_the_diverse_set_keeps_what_is_unlike_the_rest() -> None:
    alike = [(i, observed(f"r{i}", i, 1.0 + 0.001 * i, 1000, 100, 0.01, 0.05)) for i in range(30)]
    unlike = (0, observed("unlike", 0, 20.0, 4000, 700, 0.05, 0.2))
    kept = most_diverse((unlike, *alike), 5)
    assert len(kept) == 5
    assert unlike in kept


def test_the_newest_cycle_is_kept_whole_however_many_replicas_it_has() -> None:
    seen = [observed(f"r{i}", 0, 1.0, 1000, 100, 0.01, 0.05) for i in range(30)]
    memory = Memory().extended(1, seen, newest=20, diverse=60)
    assert [one for _, one in memory.newest] == seen


def test_operating_points_are_distinct_by_batch_or_by_tokens() -> None:
    base = observed("r", 0, 1.0, 1000, 100, 0.01, 0.05)
    assert not distinct_points([base, replace(base, decoding=base.decoding * 1.05)], 1.25)
    assert distinct_points([base, replace(base, input_tokens=2000)], 1.25)
    assert distinct_points([base, replace(base, decoding=base.decoding * 3.0)], 1.25)


def test_a_decode_iteration_within_the_time_to_first_token_is_taken_off_when_told() -> None:
    cycles = [[replace(o, ttft_s=(o.ttft_s or 0) + o.itl_s) for o in seen] for seen in cycles_of(13, 12)]
    told = MovingHorizon(MovingHorizonSettings(ttft_iterations=1))
    _, estimate = learned(told, told.start(TRUTH, LAW), cycles)
    assert estimate is not None
    assert worst_error(estimate) < 0.15
