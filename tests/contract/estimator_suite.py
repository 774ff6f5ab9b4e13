"""What every estimator must keep. Subclass `EstimatorContract` and override its `estimator` fixture."""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.parameters import Health
from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.tuner.estimator import Estimate, Estimator
from services.tuner.observation import Observation

LAW = ThreeParameterLaw()
TRUTH = {"alpha_s": 8e-3, "beta_s": 16e-6, "gamma_s": 5e-7}
CYCLE_S = 30.0
START_S = 1e9


def synthetic_cycle(
    chance: random.Random, cycle: int, noise: float = 0.02, replicas: int = 3
) -> list[Observation]:
    """Replicas at moderate load whose latencies are the corrected queueing model's, times log-normal noise."""
    drawn = [
        (
            chance.uniform(0.1, 1.0),
            chance.uniform(200, 3000),
            chance.uniform(100, 800),
            math.exp(chance.gauss(0, noise)),
            math.exp(chance.gauss(0, noise)),
        )
        for _ in range(replicas)
    ]
    rates, prompts, outputs, _, _ = np.array(drawn).T
    values = np.array([TRUTH[name] for name in LAW.parameter_names])
    server = ServerModel(LAW, values, Workload(prompts, outputs), Limits(64, 128))
    metrics = CorrectedModel().analyze(server, rates, ())
    means = zip(metrics.itl_s.mean.tolist(), metrics.ttft_s.mean.tolist(), strict=True)
    return [
        observed(f"r{replica}", cycle, *asked, itl * itl_noise, ttft * ttft_noise)
        for replica, ((*asked, itl_noise, ttft_noise), (itl, ttft)) in enumerate(
            zip(drawn, means, strict=True)
        )
    ]


def observed(
    replica: str, cycle: int, rate: float, prompt: float, output: float, itl: float, ttft: float | None
) -> Observation:
    """One replica's window of one cycle."""
    return Observation(
        server="s",
        replica=replica,
        window_end_s=START_S + cycle * CYCLE_S,
        epoch="0",
        rate_rps=rate,
        input_tokens=prompt,
        output_tokens=output,
        ttft_s=ttft,
        itl_s=itl,
        requests=40.0,
        saturated=False,
        decoding=min(rate * output * itl, 64.0),
        decoding_measured=False,
        served_rps=rate,
        max_batch=64,
        token_budget=8192,
    )


def learned(
    estimator: Estimator[Any], state: Any, cycles: Sequence[Sequence[Observation]], first: int = 0
) -> tuple[Any, Estimate | None]:
    """The state and last estimate after cycles of observations."""
    estimate = estimator.estimate(state)
    for cycle, seen in enumerate(cycles, start=first):
        state, estimate = estimator.update(state, seen, START_S + cycle * CYCLE_S)
    return state, estimate


def worst_error(estimate: Estimate) -> float:
    """The largest relative error of a parameter against the truth."""
    return max(abs(estimate.values[name] / true - 1) for name, true in TRUTH.items())


def cycles_of(seed: int, count: int) -> list[list[Observation]]:
    """So many synthetic cycles."""
    chance = random.Random(seed)
    return [synthetic_cycle(chance, cycle) for cycle in range(count)]


class SnapshotContract:
    """An estimator forgets nothing in a snapshot and refuses what is none of its own."""

    @pytest.fixture
    def estimator(self) -> Estimator[Any]:
        raise NotImplementedError

    def test_a_snapshot_continues_bit_by_bit(self, estimator: Estimator[Any]) -> None:
        cycles = cycles_of(3, 12)
        half, _ = learned(estimator, estimator.start(TRUTH, LAW), cycles[:6])
        restored = estimator.load(estimator.dump(half), LAW)
        through, expected = learned(estimator, half, cycles[6:], first=6)
        resumed, found = learned(estimator, restored, cycles[6:], first=6)
        assert found == expected
        assert estimator.dump(resumed) == estimator.dump(through)

    @pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'{"version": 999, "law": {}}', b"\xff"])
    def test_an_unreadable_snapshot_is_a_value_error(self, estimator: Estimator[Any], raw: bytes) -> None:
        with pytest.raises(ValueError):
            estimator.load(raw, LAW)

    def test_a_snapshot_of_another_law_is_a_value_error(self, estimator: Estimator[Any]) -> None:
        raw = estimator.dump(estimator.start(TRUTH, LAW))
        with pytest.raises(ValueError, match="law"):
            estimator.load(raw, ThreeParameterLaw(version="2"))


class EstimatorContract(SnapshotContract):
    """An estimator starts at its prior, learns, forgets nothing in a snapshot, and survives any figures."""

    def test_the_prior_is_in_force_before_anything_is_observed(self, estimator: Estimator[Any]) -> None:
        estimate = estimator.estimate(estimator.start(TRUTH, LAW))
        assert estimate is not None
        assert estimate.health is Health.PRIOR
        assert estimate.values == TRUTH

    def test_nothing_is_in_force_without_a_prior_before_anything_is_observed(
        self, estimator: Estimator[Any]
    ) -> None:
        assert estimator.estimate(estimator.start(None, LAW)) is None

    def test_a_prior_of_another_law_is_refused(self, estimator: Estimator[Any]) -> None:
        with pytest.raises(ValueError, match="alpha_s"):
            estimator.start({"speed": 1.0}, LAW)

    def test_an_update_without_observations_changes_nothing(self, estimator: Estimator[Any]) -> None:
        before = estimator.start(TRUTH, LAW)
        state, estimate = estimator.update(before, (), START_S)
        assert estimate == estimator.estimate(before)
        assert estimator.dump(state) == estimator.dump(before)

    def test_known_parameters_are_recovered_from_a_wrong_prior(self, estimator: Estimator[Any]) -> None:
        # 15 %: the noise is 2 %, the prior is off by up to 100 %, and the estimator may model no waiting.
        prior = {"alpha_s": 16e-3, "beta_s": 10e-6, "gamma_s": 8e-7}
        _, estimate = learned(estimator, estimator.start(prior, LAW), cycles_of(1, 20))
        assert estimate is not None
        assert worst_error(estimate) < 0.15

    def test_the_covariance_is_symmetric_and_positive(self, estimator: Estimator[Any]) -> None:
        _, estimate = learned(estimator, estimator.start(TRUTH, LAW), cycles_of(2, 4))
        assert estimate is not None
        covariance = np.array(estimate.covariance)
        assert np.array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0

    def test_one_bad_window_does_no_harm(self, estimator: Estimator[Any]) -> None:
        cycles = cycles_of(4, 16)
        cycles[10] = [
            observed(
                o.replica, 10, o.rate_rps, o.input_tokens, o.output_tokens, o.itl_s * 10, (o.ttft_s or 0) * 10
            )
            for o in cycles[10]
        ]
        _, at_once = learned(estimator, estimator.start(TRUTH, LAW), cycles[:11])
        _, later = learned(estimator, estimator.start(TRUTH, LAW), cycles)
        assert at_once is not None and later is not None
        assert worst_error(at_once) < 0.25
        assert worst_error(later) < 0.15

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        figures=st.lists(
            st.tuples(
                st.floats(1e-6, 1e7),
                st.floats(0, 1e9),
                st.floats(1, 1e9),
                st.floats(1e-12, 86_400),
                st.none() | st.floats(1e-12, 86_400),
            ),
            min_size=1,
            max_size=6,
        ),
        known=st.booleans(),
    )
    def test_no_figures_make_it_raise_or_publish_nonsense(
        self,
        estimator: Estimator[Any],
        figures: list[tuple[float, float, float, float, float | None]],
        known: bool,
    ) -> None:
        state = estimator.start(TRUTH if known else None, LAW)
        cycles = [[observed("r", cycle, *row)] for cycle, row in enumerate(figures)]
        state, estimate = learned(estimator, state, cycles)
        json.loads(estimator.dump(state))
        if estimate is not None:
            assert all(math.isfinite(value) and value > 0 for value in estimate.values.values())
            assert np.isfinite(np.array(estimate.covariance)).all()
