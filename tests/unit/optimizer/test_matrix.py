"""Sparse matrices of programs against the same in arrays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import sparse

from services.optimizer.solvers.matrix import Matrix

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))
VALUES = st.sampled_from([0.0, 0.0, 1.0, -2.5, 7.0])


def dense(matrix: Matrix) -> np.ndarray:
    return sparse.csc_matrix(
        (matrix.value, (matrix.row, matrix.column)), shape=(matrix.rows, matrix.columns)
    ).toarray()


@given(st.data(), SHAPES)
def test_it_is_the_array_it_was_made_of_in_everything_that_programs_ask(data, shape):
    one = data.draw(arrays.arrays(float, shape, elements=VALUES))
    other = data.draw(arrays.arrays(float, shape, elements=VALUES))
    kept = data.draw(arrays.arrays(bool, shape[1]))
    weights = data.draw(arrays.arrays(float, shape[0], elements=VALUES))
    matrix = Matrix.of(one)
    assert (dense(matrix) == one).all()
    assert (dense(matrix.over(Matrix.of(other))) == np.vstack([one, other])).all()
    assert (dense(matrix.some(kept)) == one[:, kept]).all()
    # The values and their sums are multiples of a quarter: nothing is rounded.
    assert (matrix.weighted(weights) == weights @ one).all()
    starts, rows, values = matrix.over(Matrix.of(other)).by_column()
    expected = sparse.csc_matrix(np.vstack([one, other]))
    assert (starts == expected.indptr).all()
    assert (rows == expected.indices).all()
    assert (values == expected.data).all()
