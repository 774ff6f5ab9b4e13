"""Proposed sweeps: when, of which points, and what they are good for."""

import random
from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import pytest
from simulated_telemetry import LAW, TRUTH, fleet

from schemas.fleet import ModelProfile
from schemas.parameters import (
    CalibrationPoint,
    FitEvidence,
    Health,
    ParametersEstimated,
)
from services.perfmodel.law import Workload
from services.simulator.fleet import Fleet, Refused, UnknownName
from services.tuner.calibration import design, proposal
from services.tuner.settings import CalibrationSettings

PROFILE = ModelProfile(accelerator="H100", max_batch=64)
KNOWN_LITTLE = tuple(tuple(0.25 if i == j else 0.0 for j in range(3)) for i in range(3))


def taught(points: Sequence[CalibrationPoint]) -> np.ndarray:
    """The information of each point, shape (n, 3, 3), by differences of the law's times at the observed batch."""
    values = np.array([TRUTH[name] for name in LAW.parameter_names])
    rates, inputs, outputs = np.array([(p.rate_rps, p.input_tokens, p.output_tokens) for p in points]).T
    load, batch = Workload(inputs, outputs), np.ones(len(points))
    for _ in range(200):
        question = (values, batch + 1, load)
        batch = 0.5 * batch + 0.5 * rates * LAW.iterations_per_request(*question) * LAW.iteration_time(
            *question
        )
    slopes = [
        [
            (np.log(time(values * up, batch + 1, load)) - np.log(time(values / up, batch + 1, load))) / 2e-4
            for up in np.exp(1e-4 * np.eye(3))
        ]
        for time in (LAW.inter_token_time, LAW.prefill_time)
    ]
    return np.einsum("fin,fjn->nij", slopes, slopes) / 0.02**2


def log_determinant(information: np.ndarray) -> float:
    """ln det of what the prior and the points of an information, shape (n, 3, 3), know together."""
    return float(np.linalg.slogdet(np.eye(3) / 0.25 + information.sum(axis=0))[1])


def test_the_points_chosen_teach_about_as_much_as_the_best_of_all_sets() -> None:
    chosen = design(TRUTH, KNOWN_LITTLE, LAW, PROFILE, 3)
    everything = design(TRUTH, KNOWN_LITTLE, LAW, PROFILE, 50)
    different = list({point.model_dump_json(): point for point in everything}.values())
    best = max(map(log_determinant, map(np.array, combinations_with_replacement(taught(different), 3))))
    # Greedy choices are known to be within a constant of the best; here they are next to it.
    assert log_determinant(taught(chosen)) > best - 0.5


def test_no_sweep_is_designed_for_an_estimate_whose_covariance_is_unknown() -> None:
    evidence = FitEvidence(observations=100)
    asked = {"model": "m", "accelerator": "H100", "law": LAW.name, "law_version": 1, "values": TRUTH}
    asked |= {"health": Health.LEARNING, "evidence": evidence, "estimator": "e", "estimated_at_s": 1.0}
    known = ParametersEstimated(**asked, covariance=KNOWN_LITTLE)
    assert proposal(known, LAW, PROFILE, CalibrationSettings(), 2.0) is not None
    assert proposal(ParametersEstimated(**asked), LAW, PROFILE, CalibrationSettings(), 2.0) is None


def short_of_the_knee(input_tokens: float, output_tokens: float, share: float) -> CalibrationPoint:
    """A point that fills a share of the batch of an engine slower by a standard deviation of its parameters."""
    values = np.exp(0.5) * np.array([TRUTH[name] for name in LAW.parameter_names])
    batch, load = share * PROFILE.max_batch, Workload(input_tokens, output_tokens)
    stay_s = LAW.iterations_per_request(values, batch + 1, load) * LAW.iteration_time(values, batch + 1, load)
    return CalibrationPoint(
        rate_rps=batch / float(stay_s), input_tokens=input_tokens, output_tokens=output_tokens
    )


def test_the_points_chosen_beat_points_drawn_at_random() -> None:
    chance = random.Random(51)
    chosen = log_determinant(taught(design(TRUTH, KNOWN_LITTLE, LAW, PROFILE, 4)))
    drawn = [
        short_of_the_knee(chance.uniform(64, 2048), chance.uniform(16, 512), chance.uniform(0.02, 0.45))
        for _ in range(4 * 50)
    ]
    for four in taught(drawn).reshape(50, 4, 3, 3):
        assert log_determinant(four) < chosen


def test_a_sweep_that_finds_no_free_accelerator_or_no_such_model_is_refused() -> None:
    simulated: Fleet = fleet([(0.0, 1.0)], replicas=8)
    point = CalibrationPoint(rate_rps=1.0, input_tokens=100, output_tokens=10)
    with pytest.raises(Refused, match="free"):
        simulated.calibrate("m", "H100", [point])
    with pytest.raises(UnknownName, match="other"):
        simulated.calibrate("other", "H100", [point])
    with pytest.raises(Refused, match="at most"):
        simulated.calibrate("m", "H100", [point.model_copy(update={"rate_rps": 1e4})])
