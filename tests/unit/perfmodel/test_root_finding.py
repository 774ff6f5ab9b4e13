"""The bracketed root finder on functions whose roots are known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.perfmodel.law import Array
from services.perfmodel.root_finding import Rows, largest_below


def test_rows_of_different_shapes_all_reach_their_root() -> None:
    functions = [
        lambda x: x - 0.3,
        lambda x: x**9 - 1e-6,
        lambda x: np.where(x < 0.7, -50.0, 50.0),
        lambda x: np.maximum(x - 0.9, 100 * (x - 0.5)),
        lambda x: np.exp(50 * (x - 0.8)) - 1,
        lambda x: np.log(np.maximum(x, 1e-300) / 1e-7),
    ]
    roots = np.array([0.3, 1e-6 ** (1 / 9), 0.7, 0.5, 0.8, 1e-7])
    calls = 0

    def function(x: Array, rows: Rows) -> Array:
        nonlocal calls
        calls += 1
        return np.array([float(functions[row](value)) for row, value in zip(rows, x, strict=True)])

    everything = np.arange(len(functions))
    low, high = np.zeros(len(functions)), np.ones(len(functions))
    found = largest_below(function, low, high, function(low, everything), function(high, everything))
    np.testing.assert_allclose(found, roots, rtol=1e-9)
    assert (function(found, everything) <= 0).all()
    assert calls < 150


@given(root=st.floats(1e-9, 1), power=st.integers(1, 30))
def test_the_answer_is_never_above_the_root(root: float, power: int) -> None:
    found = largest_below(
        lambda x, _: (x / root) ** power - 1, np.zeros(1), np.full(1, 1.5), np.full(1, -1.0), np.full(1, 0.5)
    )
    assert (found[0] / root) ** power <= 1
    assert found[0] >= root * (1 - 1e-9)
