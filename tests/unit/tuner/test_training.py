"""The trainer on sweeps of engines whose parameters are known."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_builders import LONG_S, SHAPES, TRUTH, Engine, counted, sweep

from services.perfmodel.laws.seven_parameter import SevenParameterLaw
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.tuner.sweeps.sweep import LoadPoint, Sweep
from services.tuner.training.conditions import Conditions, kv_capacity
from services.tuner.training.least_squares import estimate
from services.tuner.training.observation import (
    FluidObservation,
    SevenParameterObservation,
    observation_of,
    prefills_met,
    prefills_shared,
    settled_rate,
)
from services.tuner.training.trainer import Training, TrainingRefused, train

SEVEN = SevenParameterObservation(SevenParameterLaw())
NAMES = SEVEN.law.parameter_names


WHOLE = [sweep(shape) for shape in SHAPES]
# As WHOLE has it but for the ITL, which is twice as long.
WRONG = replace(WHOLE[0], points=tuple(replace(p, itl_s=2 * p.itl_s) for p in WHOLE[0].points))


@dataclass(frozen=True)
class Trained:
    """A training and the shares of it that were told to be done."""

    found: Training
    progress: list[float]


@pytest.fixture(scope="module")
def whole() -> Trained:
    """The training on all shapes with Poisson arrivals, tested on a sweep that is wrong."""
    told: list[float] = []
    return Trained(train(WHOLE, [WRONG], progress=told.append), told)


def ratios(found: np.ndarray, truth: dict[str, float]) -> np.ndarray:
    return found / np.array([truth[name] for name in NAMES])


@pytest.mark.parametrize("arrivals", ["constant rate", "Poisson"])
def test_the_parameters_of_an_engine_are_found_from_exact_sweeps(arrivals: str, whole: Trained) -> None:
    constant = arrivals == "constant rate"
    found = train([sweep(shape, scv=0.0) for shape in SHAPES[:4]]) if constant else whole.found
    assert found.refused is None
    assert found.chosen.law.name == "seven-parameter"
    # The fixed point is iterated until the fifth digit; nothing else is inexact.
    assert ratios(found.chosen.estimate.parameters, TRUTH) == pytest.approx(1.0, abs=2e-3)
    assert found.chosen.estimate.identified
    assert found.chosen.training.all.ttft_wape == pytest.approx(0.0, abs=1e-3)
    assert found.chosen.left_out is not None
    assert found.chosen.left_out.all.itl_wape == pytest.approx(0.0, abs=1e-3)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.floats(0.4, 2.5), min_size=7, max_size=7))
def test_any_engine_within_a_factor_of_two_and_a_half_is_found(factors: list[float]) -> None:
    truth = {name: value * factor for (name, value), factor in zip(TRUTH.items(), factors, strict=True)}
    at = Conditions.of([sweep(shape, truth) for shape in SHAPES], math.inf)
    found = estimate(SEVEN, at)
    # The residual's edge at 3 % is far; q and g are the least certain and still exact data tell them.
    assert ratios(found.parameters, truth) == pytest.approx(1.0, abs=1e-2)


def test_standard_errors_cover_the_truth_under_noise() -> None:
    misses = []
    for seed in range(8):
        sweeps = [sweep(shape, noise=0.02, seed=seed) for shape in SHAPES]
        found = estimate(SEVEN, Conditions.of(sweeps, math.inf))
        assert found.identified
        misses.append(np.log(ratios(found.parameters, TRUTH)) / found.standard_errors)
    # 56 normal scores of unit spread: their root mean square is within 0.6 and 1.4 but for one in 10 000, were they
    # independent; the robust loss and correlated parameters widen it.
    assert 0.5 < np.sqrt(np.mean(np.square(misses))) < 1.6


def test_outliers_hardly_move_the_parameters() -> None:
    sweeps = [sweep(shape, noise=0.01) for shape in SHAPES]
    clean = estimate(SEVEN, Conditions.of(sweeps, math.inf)).parameters
    spoilt = [
        replace(
            one,
            points=(
                *one.points[:3],
                replace(one.points[3], ttft_s=one.points[3].ttft_s * 3),
                *one.points[4:],
            ),
        )
        for one in sweeps[:2]
    ]
    found = estimate(SEVEN, Conditions.of([*spoilt, *sweeps[2:]], math.inf)).parameters
    # Squared errors of 200 % on two of 84 measurements would move r and h by tens of percent.
    assert found[:5] == pytest.approx(clean[:5], rel=0.06)


def test_one_shape_does_not_identify_seven_parameters_and_three_take_over_with_the_reason() -> None:
    found = train([sweep((256, 256), noise=0.01)])
    assert found.chosen.law.name == "three-parameter"
    assert found.refused is not None
    assert "do not identify the seven-parameter law" in found.refused
    assert "b_p_s" in found.refused or "q_s" in found.refused
    assert found.chosen.left_out is None
    assert [one.law.name for one in found.fits] == ["seven-parameter", "three-parameter"]


def test_two_points_are_too_few_for_seven_parameters_and_one_for_any() -> None:
    whole = sweep((256, 256))
    few = train([replace(whole, points=whole.points[:2])])
    assert few.refused is not None and "4 measurements for 7 parameters" in few.refused
    with pytest.raises(TrainingRefused, match="2 measurements for 3 parameters"):
        train([replace(whole, points=whole.points[:1])])


def test_the_three_parameter_law_is_found_by_its_own_observation_function() -> None:
    truth = np.array([8e-3, 2.5e-5, 1.2e-7])
    observation = observation_of(ThreeParameterLaw())
    assert isinstance(observation, FluidObservation)
    at = Conditions.of([sweep(shape) for shape in SHAPES], math.inf)
    predicted = observation.predict(truth[None], at)
    found = estimate(observation, at.relabelled(predicted.itl_s[0], predicted.ttft_s[0]))
    assert found.parameters == pytest.approx(truth, rel=1e-4)


def test_the_conversion_is_the_three_parameter_set_nearest_to_the_predictions(whole: Trained) -> None:
    found = whole.found
    observation = observation_of(ThreeParameterLaw())
    at = Conditions.of(WHOLE, found.kv_tokens)
    seven = SEVEN.predict(found.chosen.estimate.parameters[None], at)
    target = at.relabelled(seven.itl_s[0], seven.ttft_s[0])
    for factor in (0.9, 1.1):
        for k in range(3):
            start = found.converted.parameters.copy()
            start[k] *= factor
            # From any neighbour the search comes back to the same set.
            assert estimate(observation, target, start[None]).parameters == pytest.approx(
                found.converted.parameters, rel=1e-3
            )


def test_the_law_that_was_asked_for_is_fitted_alone_when_it_is_the_simple_one() -> None:
    found = train(WHOLE[:2], law=ThreeParameterLaw())
    assert [one.law.name for one in found.fits] == ["three-parameter"]
    assert found.refused is None


def test_a_shape_is_predicted_from_the_other_shapes_alone() -> None:
    twice = (replace(p, ttft_s=2 * p.ttft_s, itl_s=2 * p.itl_s) for p in WHOLE[0].points)
    found = train([replace(WHOLE[0], points=tuple(twice)), *WHOLE[1:5]])
    assert found.chosen.left_out is not None
    [(_, left_out), *_] = found.chosen.left_out.sweeps
    # The strange shape is twice what the others say, so the error is one half, however it enters the whole fit.
    assert left_out.itl_wape == pytest.approx(0.5, abs=0.02)
    assert left_out.ttft_wape == pytest.approx(0.5, abs=0.02)


def test_test_sweeps_are_scored_and_not_fitted(whole: Trained) -> None:
    chosen = whole.found.chosen
    assert chosen.test is not None
    assert chosen.test.all.itl_wape == pytest.approx(0.5, abs=0.01)
    alone = estimate(SEVEN, Conditions.of(WHOLE, math.inf))
    assert np.array_equal(chosen.estimate.parameters, alone.parameters)


def test_progress_rises_and_ends_at_one(whole: Trained) -> None:
    told = whole.progress
    assert len(told) > 2 and told == sorted(told) and told[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("stay_s", [10.0, 40.0, 80.0])
def test_the_edges_of_a_run_are_corrected_as_counting_requests_one_by_one_says(stay_s: float) -> None:
    run_s, rate = 400.0, 5.0
    arrivals = np.arange(0.0, run_s, 1.0 / rate)
    completed = arrivals[arrivals + stay_s <= run_s]
    # What each completed request saw: the requests in flight at a hundred moments of its stay.
    moments = completed[:, None] + stay_s * (np.arange(100) + 0.5) / 100
    in_flight = np.searchsorted(arrivals, moments, side="right") - np.searchsorted(
        arrivals, moments - stay_s, side="right"
    )
    point = replace(Engine(TRUTH).point(1, 1.0, 64, 64), rate_rps=len(completed) / run_s, duration_s=run_s)
    at = Conditions.of([Sweep("run", (point,), ())], math.inf)
    # One request in hundreds is the resolution of counting.
    assert settled_rate(at, np.array([stay_s])) * stay_s == pytest.approx(in_flight.mean(), rel=0.01)


@pytest.mark.parametrize("arrivals", [0.2, 0.5, 0.7, 1.0, 1.3, 2.5, 6.75])
def test_prefills_met_and_shared_are_what_counting_arrivals_says(arrivals: float) -> None:
    x = np.array([arrivals])
    met, shared = counted(arrivals)
    # Counting over 10 000 phases is right to a few of them.
    assert prefills_met(x, np.zeros(1))[0] == pytest.approx(met, abs=2e-3)
    assert prefills_shared(x, np.zeros(1))[0] == pytest.approx(shared, abs=2e-3)
    assert prefills_met(x, np.ones(1))[0] == arrivals
    assert prefills_shared(x, np.ones(1))[0] == arrivals


def closed(clients: float, capacity: float, ttft_s: float) -> LoadPoint:
    """A closed loop of which `capacity` requests are in service, of 1024 prompt and 1024 output tokens."""
    engine = Engine(TRUTH)
    d, p = engine.work(1024, 1024)
    itl = TRUTH["a_s"] + capacity * (d + p / 1024)
    latency = ttft_s + 1023 * itl
    rate = clients / latency
    return LoadPoint(
        row=2,
        label="throughput",
        rate_rps=rate,
        input_tokens=1024.0,
        output_tokens=1024.0,
        ttft_s=ttft_s,
        itl_s=itl,
        concurrency=clients,
        duration_s=LONG_S,
        requests=rate * LONG_S,
        clients=clients,
    )


def test_the_kv_cache_follows_from_a_closed_loop_whose_requests_wait() -> None:
    served = 200.0
    itl = TRUTH["a_s"] + served * (
        Engine(TRUTH).work(1024, 1024)[0] + Engine(TRUTH).work(1024, 1024)[1] / 1024
    )
    # 500 clients of which 200 are in service: the wait is three fifths of the latency.
    point = closed(500.0, served, 1.5 * 1023 * itl)
    sweeps = [Sweep("closed", (point,), ())]
    assert kv_capacity(sweeps) == pytest.approx(served * (1024 + 512))
    at = Conditions.of(sweeps, kv_capacity(sweeps))
    assert not at.ttft_counts.any(), "a wait for slots is a transient of the run, not the engine's TTFT"
    truth = np.array([[TRUTH[name] for name in NAMES]])
    assert SEVEN.predict(truth, at).itl_s[0] == pytest.approx([itl])


def test_an_unsaturated_closed_loop_shows_no_kv_limit_and_its_ttft_counts() -> None:
    sweeps = [Sweep("closed", (closed(8.0, 8.0, 0.04),), ())]
    assert kv_capacity(sweeps) == math.inf
    assert Conditions.of(sweeps, math.inf).ttft_counts.all()


def test_an_open_load_at_the_rate_of_the_closed_loop_is_taken_at_the_batch_that_was_seen() -> None:
    loop = closed(300.0, 300.0, 0.1)
    open_load = replace(loop, row=3, clients=None, rate_rps=0.99 * loop.rate_rps, concurrency=120.0)
    low_load = replace(open_load, row=4, rate_rps=0.5 * loop.rate_rps)
    at = Conditions.of([Sweep("sweep", (loop, open_load, low_load), ())], math.inf)
    assert at.saturated.tolist() == [False, True, False]
    assert at.largest_batch[:2].tolist() == [300.0, 120.0]


def test_the_usual_points_lack_the_burst_and_the_two_highest_loads() -> None:
    whole = sweep((64, 64))
    points = (*whole.points, replace(closed(300.0, 300.0, 0.1), row=9))
    at = Conditions.of([Sweep("sweep", points, ())], math.inf)
    assert at.usual().tolist() == [True] * 5 + [False] * 2 + [False]


def test_the_95th_percentile_is_that_of_prompts_and_residuals_drawn_one_by_one() -> None:
    spread = 1024 / math.sqrt(12)
    point = replace(Engine(TRUTH).point(1, 4.0, 1024, 256, scv=0.0), input_tokens_sd=spread)
    at = Conditions.of([Sweep("sweep", (point,), ())], math.inf)
    truth = np.array([TRUTH[name] for name in NAMES])
    rng = np.random.default_rng(5)
    prompts, phases = rng.uniform(512, 1536, 400_000), rng.uniform(size=400_000)
    engine = Engine(TRUTH)
    d, _ = engine.work(1024, 256)
    # The batch follows from the mean work, in which the spread of prompts enters through q·E[L²].
    p = TRUTH["b_p_s"] * 1024 + TRUTH["q_s"] * (1024**2 + spread**2)
    t = TRUTH["a_s"] / (1 - 4.0 * 256 * (d + p / 256))
    n = 4.0 * 256 * t
    busy = 1 - math.exp(-n)
    residual = (TRUTH["r"] - 0.5 + phases) * (TRUTH["a_s"] + n * d) * busy
    prefill = TRUTH["b_p_s"] * prompts + TRUTH["q_s"] * prompts**2
    drawn = TRUTH["h_s"] + residual + TRUTH["a_s"] + n * d + prefill
    # 400 000 draws know the percentile to 0.05 %; the quadrature of 32 × 32 cells to a cell, below 1 %.
    assert SEVEN.ttft_p95(truth, at)[0] == pytest.approx(np.quantile(drawn, 0.95), rel=0.01)
