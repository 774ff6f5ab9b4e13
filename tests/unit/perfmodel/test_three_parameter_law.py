"""The three-parameter law against its definition, written out plainly."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.perfmodel.law import Limits, Workload, require_parameters
from services.perfmodel.laws.three_parameter import ThreeParameterLaw, chunk_counts

LAW = ThreeParameterLaw()
PARAMETERS = np.array([0.008, 3.3e-5, 3.3e-7])


@given(
    prompt=st.integers(0, 20_000),
    output=st.integers(1, 4_000),
    budget=st.integers(256, 16_384),
    batch=st.integers(1, 300),
)
def test_chunk_counts_are_the_fewest_that_admit_the_batch(
    prompt: int, output: int, budget: int, batch: int
) -> None:
    def admitted(chunks: int) -> int:
        room = Fraction(chunks + output) * (budget - Fraction(prompt, chunks)) / (prompt + output)
        return math.floor(max(Fraction(0), room))

    counted = int(chunk_counts(batch, Workload(prompt, output), budget))
    assert admitted(counted) >= batch
    assert counted == 1 or admitted(counted - 1) < batch


def test_service_time_is_prefill_and_the_decode_intervals() -> None:
    workload = Workload(2000.0, 150.0)
    batch = np.arange(1.0, 65.0)
    service = LAW.iterations_per_request(PARAMETERS, batch, workload, 2048) * LAW.iteration_time(
        PARAMETERS, batch, workload, 2048
    )
    prefill = LAW.prefill_time(PARAMETERS, batch, workload, 2048)
    interval = LAW.inter_token_time(PARAMETERS, batch, workload, 2048)
    np.testing.assert_allclose(service, prefill + 150.0 * interval, rtol=1e-12)


def test_times_of_one_request_follow_from_its_tokens() -> None:
    alpha, beta, gamma = PARAMETERS
    prompt, output = 1000.0, 10.0
    decode = sum(beta + gamma * (prompt + token) for token in range(1, 11))
    prefill = (beta + gamma) * prompt
    workload = Workload(prompt, output)
    assert float(LAW.prefill_time(PARAMETERS, 1.0, workload)) == pytest.approx(alpha + prefill, rel=1e-12)
    assert float(LAW.inter_token_time(PARAMETERS, 1.0, workload)) == pytest.approx(
        alpha + decode / 10.0, rel=1e-12
    )
    assert float(LAW.work_per_request(PARAMETERS, 1.0, workload)) == pytest.approx(
        prefill + decode, rel=1e-12
    )


def test_variable_output_lengths_cost_their_second_moment() -> None:
    gamma_only = np.array([0.0, 0.0, 1e-6])
    exponential = Workload(0.0, 100.0, output_tokens_sq=2 * 100.0**2)
    # Half of E[K²] + E[K] KV tokens are read per request.
    assert float(LAW.work_per_request(gamma_only, 1.0, exponential)) == pytest.approx(1e-6 * 20_100 / 2)


def test_correlated_lengths_cost_their_product_moment() -> None:
    gamma_only = np.array([0.0, 0.0, 1e-6])
    plain, correlated = Workload(50.0, 100.0), Workload(50.0, 100.0, input_output_tokens=7_000.0)
    difference = LAW.work_per_request(gamma_only, 1.0, correlated) - LAW.work_per_request(
        gamma_only, 1.0, plain
    )
    assert float(difference) == pytest.approx(1e-6 * 2_000)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((np.nan, 10.0), "input_tokens"),
        ((-1.0, 10.0), "input_tokens"),
        ((10.0, 0.5), "output_tokens"),
        ((10.0, np.inf), "output_tokens"),
        ((10.0, 10.0, 50.0), "output_tokens_sq"),
        ((10.0, 10.0, None, -5.0), "input_output_tokens"),
    ],
)
def test_a_workload_that_cannot_be_is_refused_by_name(arguments: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Workload(*arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 1), "max_batch"),
        ((2.5, 1), "max_batch"),
        ((4, -1), "max_queue"),
        ((4, 1, 0), "token_budget"),
        ((4, 1, -1), "token_budget"),
        ((4, 1, 8192, np.nan), "kv_tokens"),
    ],
)
def test_limits_that_cannot_be_are_refused_by_name(arguments: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Limits(*arguments)


@pytest.mark.parametrize(
    "parameters", [[0.0, 0.0, 0.0], [-1.0, 1.0, 1.0], [np.nan, 1.0, 1.0], [1.0, 1.0], 1.0]
)
def test_parameters_that_cannot_be_are_refused(parameters: object) -> None:
    with pytest.raises(ValueError, match="parameters of three-parameter"):
        require_parameters(LAW, parameters)
