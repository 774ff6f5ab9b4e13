"""Parameters and their logarithms: which are free, and covariances between the two."""

from collections.abc import Mapping, Sequence

import numpy as np

from services.perfmodel.law import Array, IterationLaw
from services.tuner.fit import Mask

LARGEST_CONDITION = 1e12
Rows = tuple[tuple[float, ...], ...]


def seed_of(prior: Mapping[str, float], law: IterationLaw) -> tuple[float, ...]:
    """Declared parameters in the law's order; raises ValueError for a prior that is not of the law."""
    if set(prior) != set(law.parameter_names) or not any(prior.values()):
        raise ValueError(
            f"parameters {dict(prior)} are not of the law {law.name}: expected "
            f"{', '.join(law.parameter_names)}, not all zero"
        )
    return tuple(float(prior[name]) for name in law.parameter_names)


def free(seed: Sequence[float]) -> Mask:
    """Which parameters are learned: one declared as zero stays zero."""
    return np.array(seed) > 0


def log_free(values: Sequence[float]) -> Array:
    """The logarithms of the free ones."""
    return np.log([value for value in values if value > 0])


def spread(learned: Mask, covariance: Array) -> Rows:
    """The covariance of all parameters: rows of zeros for those that are held at zero."""
    full = np.zeros((learned.size, learned.size))
    full[np.ix_(learned, learned)] = (covariance + covariance.T) / 2.0
    return tuple(tuple(row) for row in full.tolist())


def inverse_of(matrix: Array) -> Array:
    """The inverse: a covariance from an information matrix, or the other way round."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def by_sorted_name(covariance: Rows, law: IterationLaw) -> Rows:
    """A covariance in the law's order, in that of the sorted names."""
    names = law.parameter_names
    order = [names.index(name) for name in sorted(names)]
    return tuple(tuple(covariance[i][j] for j in order) for i in order)


def condition_of(information: Array) -> float:
    """The condition number of a symmetric matrix, at most `LARGEST_CONDITION`."""
    eigenvalues = np.linalg.eigvalsh(information)
    largest, smallest = float(eigenvalues[-1]), float(eigenvalues[0])
    if not largest > 0 or smallest <= largest / LARGEST_CONDITION:
        return LARGEST_CONDITION
    return largest / smallest
