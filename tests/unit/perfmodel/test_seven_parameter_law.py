"""The seven-parameter law against its equations, written out plainly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.perfmodel.law import Workload, require_parameters
from services.perfmodel.laws.seven_parameter import SevenParameterLaw

LAW = SevenParameterLaw()
A, B_P, B_D, G, Q, H, R = PARAMETERS = np.array([7e-3, 2e-5, 1e-4, 3e-8, 2e-9, 0.012, 0.8])
NAMES = ("iteration", "prompt token", "sequence", "read", "square")


@given(prompt=st.floats(0.0, 8000.0), output=st.floats(1.0, 2000.0), load=st.floats(0.01, 0.98))
def test_its_iteration_solves_the_fixed_point_at_the_batch_that_a_rate_makes(
    prompt: float, output: float, load: float
) -> None:
    decode, prefill = B_D + G * (prompt + output / 2.0), B_P * prompt + Q * prompt**2
    rate = load / (output * decode + prefill)
    time = A
    # Each round leaves the share `load` of the error.
    for _ in range(int(40.0 / -math.log(load))):
        time = A + rate * output * time * decode + rate * time * prefill
    batch = rate * output * time
    found = float(LAW.iteration_time(PARAMETERS, batch, Workload(prompt, output)))
    assert found == pytest.approx(time, rel=1e-9)
    assert float(LAW.work_per_request(PARAMETERS, batch, Workload(prompt, output))) == pytest.approx(
        load / rate, rel=1e-12
    )


@given(others=st.floats(0.0, 300.0), prompt=st.floats(0.0, 8000.0), output=st.floats(1.0, 2000.0))
def test_a_prompt_is_computed_beside_the_decoding_and_the_prompts_of_the_others(
    others: float, prompt: float, output: float
) -> None:
    own = B_P * prompt + Q * prompt**2
    expected = A + others * (B_D + G * (prompt + output / 2.0) + own / output) + own
    found = LAW.prefill_time(PARAMETERS, others + 1.0, Workload(prompt, output))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_a_lone_request_decodes_without_prompts_beside_it() -> None:
    found = LAW.inter_token_time(PARAMETERS, 1.0, Workload(1000.0, 100.0))
    assert float(found) == pytest.approx(A + B_D + G * 1050.0, rel=1e-12)


def test_overhead_and_residual_are_parameters_of_their_own() -> None:
    many = np.stack([PARAMETERS, 2.0 * PARAMETERS])
    assert LAW.overhead_time(many, Workload(10.0, 10.0)).tolist() == [H, 2.0 * H]
    assert LAW.residual_share(many).tolist() == [R, 2.0 * R]


def test_the_iterations_of_a_request_are_its_output_tokens_whatever_the_batch() -> None:
    found = LAW.iterations_per_request(PARAMETERS, np.array([1.0, 64.0]), Workload(9000.0, 77.0), 512.0)
    assert found.tolist() == [77.0, 77.0]


@pytest.mark.parametrize("cached", [0.0, 0.25, 0.9])
def test_a_cached_part_of_a_prompt_costs_neither_its_tokens_nor_their_attention_to_each_other(
    cached: float,
) -> None:
    prompt, output = 2000.0, 50.0
    computed = np.arange(int(cached * prompt) + 1, int(prompt) + 1)
    # The square of a length is the sum of twice a token's place less one.
    expected = B_P * computed.size + Q * (2.0 * computed - 1.0).sum()
    alone = LAW.prefill_time(PARAMETERS, 1.0, Workload(prompt, output, cached_share=cached))
    assert float(alone) - A == pytest.approx(expected, rel=1e-9)


def test_exponential_lengths_cost_their_second_moments() -> None:
    fixed = Workload(100.0, 200.0)
    varying = Workload(100.0, 200.0, output_tokens_sq=2 * 200.0**2, input_tokens_sq=2 * 100.0**2)
    more = LAW.work_per_request(PARAMETERS, 1.0, varying) - LAW.work_per_request(PARAMETERS, 1.0, fixed)
    assert float(more) == pytest.approx(G * 200.0**2 / 2.0 + Q * 100.0**2, rel=1e-9)


def test_token_costs_are_its_parameters_and_the_first_token_comes_with_the_prefill() -> None:
    costs = LAW.token_costs(PARAMETERS)
    found = (
        costs.iteration_s,
        costs.prefill_token_s,
        costs.decode_s,
        costs.decode_read_s,
        costs.prefill_square_s,
    )
    for name, value, expected in zip(NAMES, found, (A, B_P, B_D, G, Q), strict=True):
        assert float(value) == expected, name
    assert float(costs.prefill_read_s) == 0.0
    assert costs.prefill_tokens == 1


@pytest.mark.parametrize("parameters", [np.zeros(7), np.ones(3), -PARAMETERS, PARAMETERS * np.nan])
def test_parameters_that_cannot_be_are_refused(parameters: object) -> None:
    with pytest.raises(ValueError, match="parameters of seven-parameter"):
        require_parameters(LAW, parameters)
