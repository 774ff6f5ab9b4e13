"""The reference's chain: compiled and on NumPy alone it is the same to the last bit."""

import numpy as np
import pytest

from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.compat_chain import CompatChain, contents


def chain_of(count: int, seed: int) -> CompatChain:
    rng = np.random.default_rng(seed)
    return CompatChain.of(
        ServerModel(
            ThreeParameterLaw(),
            np.array([0.01, 5e-5, 2e-7]) * rng.uniform(0.1, 5.0, (count, 3)),
            Workload(rng.uniform(1.0, 9000.0, count), rng.uniform(1.0, 900.0, count)),
            Limits(rng.integers(2, 300, count), rng.choice([0, 1, 30, 2000], count)),
        ).rows()
    )


@pytest.mark.parametrize("load", [1e-30, 1e-3, 0.7, 0.999, 1.0, 3.0, 1e4])
def test_compiled_contents_are_those_on_numpy_alone_bit_by_bit(load: float) -> None:
    kernels = pytest.importorskip("services.perfmodel.queueing_models.compat_kernels")
    chain, rows = chain_of(60, seed=3), np.repeat(np.arange(60), 2)
    per_ms = (chain.full_rate[rows] * np.float32(load)).astype(np.float32)
    compiled = kernels.contents(chain.rates, chain.places, rows, per_ms)
    plain = contents(chain.rates, chain.places, rows, per_ms)
    np.testing.assert_array_equal(compiled, plain)


def test_weights_beyond_the_range_of_a_double_are_rescaled_and_not_lost() -> None:
    chain, rows = chain_of(20, seed=4), np.arange(20)
    in_system, in_service, blocked = contents(chain.rates, chain.places, rows, chain.full_rate * 1e4)
    # At ten thousand times its capacity a server is full but for about a share of 1e-4.
    np.testing.assert_allclose(in_system, chain.places[1], atol=1e-3)
    np.testing.assert_allclose(in_service, chain.places[0], atol=1e-3)
    np.testing.assert_allclose(blocked, 1.0, atol=2e-4)


def test_a_target_that_no_rate_meets_has_a_negative_one_and_no_target_the_largest() -> None:
    chain, rows = chain_of(5, seed=5), np.arange(5)
    assert (chain.rate_for(np.full(5, 1e-3, np.float32), "itl", rows) < 0).all()
    np.testing.assert_array_equal(chain.rate_for(np.zeros(5, np.float32), "itl", rows), chain.most_rate)
