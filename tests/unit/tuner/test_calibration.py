"""Proposed sweeps: when, of which points, and what they are good for."""

import random
from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import pytest
from simulated_telemetry import LAW, TRUTH, WRONG, Loop, declared, fleet

from schemas.fleet import ModelProfile, Objective, Server, ServiceClass
from schemas.parameters import (
    CalibrationPoint,
    CalibrationProposed,
    FitEvidence,
    Health,
    ParametersEstimated,
)
from services.perfmodel.law import Workload
from services.simulator.fleet import Fleet, Refused, UnknownName
from services.tuner.calibration import design, proposal
from services.tuner.core import step
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


def flat_loop() -> Loop:
    """A pair that one operating point does not identify, and that a declared server uses."""
    loop = Loop(
        fleet([(0.0, 1.0)], shape="fixed", replicas=2, input_tokens=300.0, output_tokens=100.0), prior=WRONG
    )
    with_server = declared(WRONG).model_copy(
        update={
            "revision": "2",
            "service_classes": (ServiceClass(name="c", priority=1, objectives=(Objective(model="m"),)),),
            "servers": (Server(name="s", model="m", service_class="c"),),
        }
    )
    loop.state, _ = step(loop.state, (), with_server, 1e9, loop.setup)
    return loop


def proposals(loop: Loop, cycles: int) -> list[CalibrationProposed]:
    found = []
    for _ in range(cycles):
        window = loop.scraper.next_window()
        loop.state, outputs = step(loop.state, [window], None, window.window_end_s, loop.setup)
        found.extend(outputs.proposals)
        loop.in_force = outputs.parameters[0] if outputs.parameters else loop.in_force
    return found


def test_a_pair_that_operation_does_not_identify_gets_one_proposal_and_its_sweep_identifies_it() -> None:
    loop = flat_loop()
    (proposed,) = proposals(loop, 20)
    assert loop.in_force is not None and loop.in_force.health is Health.LEARNING
    assert (proposed.model, proposed.accelerator, len(proposed.points)) == ("m", "H100", 4)
    assert "learning" in proposed.reason

    simulated = loop.scraper.fleet
    users = simulated.servers["s"].requests_total
    ends_s = simulated.calibrate(proposed.model, proposed.accelerator, proposed.points)
    assert simulated.free["H100"] == 8 - 2 - 1
    assert proposals(loop, 25) == []
    assert simulated.now_s > ends_s and simulated.free["H100"] == 6
    (measured,) = simulated.calibrations
    assert [replica.replica for replica in measured.replicas] == [f"point {k}" for k in (1, 2, 3, 4)]
    # Users' requests are counted where they were served, and none of the sweep's is among them.
    assert simulated.servers["s"].requests_total - users == pytest.approx(25 * 60, rel=0.15)

    loop.state, outputs = step(loop.state, [measured], None, simulated.now_s, loop.setup)
    (learned,) = outputs.parameters
    assert learned.health is Health.IDENTIFIED
    # Four points short of the knee, and so without a queue.
    assert all((replica.waiting or 0.0) < 6.4 for replica in measured.replicas)
    # Of some hundred requests each; the prior was off by 20 to 40 %.
    assert learned.values == pytest.approx(TRUTH, rel=0.13)


def test_nothing_is_proposed_for_a_pair_that_no_declared_server_may_use() -> None:
    loop = Loop(fleet([(0.0, 1.0)], shape="fixed"), prior=WRONG)
    assert proposals(loop, 12) == []


def test_a_sweep_that_finds_no_free_accelerator_or_no_such_model_is_refused() -> None:
    simulated: Fleet = fleet([(0.0, 1.0)], replicas=8)
    point = CalibrationPoint(rate_rps=1.0, input_tokens=100, output_tokens=10)
    with pytest.raises(Refused, match="free"):
        simulated.calibrate("m", "H100", [point])
    with pytest.raises(UnknownName, match="other"):
        simulated.calibrate("other", "H100", [point])
    with pytest.raises(Refused, match="at most"):
        simulated.calibrate("m", "H100", [point.model_copy(update={"rate_rps": 1e4})])
