"""Active calibration: the small sweep that would tell apart what operation alone does not.

Of candidate points, rates × token shapes, the next is always the one that makes ln det of the information largest
(D-optimal, greedily; Fedorov, Theory of Optimal Experiments, 1972), where a point adds Σ ∇f ∇fᵀ/σ² of ITL and TTFT.
Points are chosen for an engine that is slower than believed by a standard deviation of each parameter: past the
knee a batch is full whatever the rate, and a time to first token that is mostly waiting says nothing.
It is only proposed: who carries it out does so on a replica without users.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np

from schemas.fleet import ModelProfile
from schemas.parameters import CalibrationPoint, CalibrationProposed, Health, ParametersEstimated
from services.perfmodel.law import Array, IterationLaw, Workload
from services.tuner.logarithms import inverse_of
from services.tuner.settings import CalibrationSettings

INPUT_TOKENS = (64.0, 512.0, 2048.0)
OUTPUT_TOKENS = (16.0, 128.0, 512.0)
# Shares of the batch limit in use: from alone to well short of the knee.
FULLNESS = (0.02, 0.2, 0.45)
STEP = 1e-4
# Noise of a mean over a sweep's point.
NOISE_SHARE = 0.02


def proposal(
    estimate: ParametersEstimated,
    law: IterationLaw,
    profile: ModelProfile,
    settings: CalibrationSettings,
    now_s: float,
) -> CalibrationProposed | None:
    """A sweep for parameters that are not identified; None where they are, or too little was tried yet.

    None as well where the covariance is unknown, for then nothing says which points would teach the most.
    """
    seen = estimate.evidence.observations
    if estimate.health is Health.IDENTIFIED or seen < settings.least_observations or not estimate.covariance:
        return None
    points = design(estimate.values, estimate.covariance, law, profile, settings.points)
    return CalibrationProposed(
        model=estimate.model,
        accelerator=estimate.accelerator,
        points=points,
        reason=(
            f"after {seen} observations the parameters are {estimate.health}: condition number "
            f"{estimate.evidence.condition_number or float('nan'):.3g}; servers of {estimate.model} may use "
            f"{estimate.accelerator}"
        ),
        proposed_at_s=now_s,
    )


def design(
    values: Mapping[str, float],
    covariance: tuple[tuple[float, ...], ...],
    law: IterationLaw,
    profile: ModelProfile,
    count: int,
) -> tuple[CalibrationPoint, ...]:
    """So many points, in the order in which they teach most; one may be there twice.

    values: parameters in SI units.
    covariance: of their logarithms, in the order of the sorted names; what is known already.
    """
    names = sorted(values)
    doubt = dict(zip(names, np.sqrt(np.diag(covariance)), strict=True))
    slow = {name: value * float(np.exp(doubt[name])) for name, value in values.items()}
    free = [name for name in names if values[name] > 0]
    rows = [names.index(name) for name in free]
    candidates = np.array(list(product(INPUT_TOKENS, OUTPUT_TOKENS, FULLNESS))).T
    batch = np.maximum(candidates[2] * profile.max_batch, 0.2)
    load = Workload(candidates[0], candidates[1])

    def log_times(log_values: Array) -> Array:
        known = dict(zip(free, np.exp(log_values), strict=True))
        parameters = np.array([known.get(name, 0.0) for name in law.parameter_names])
        question = (parameters, batch + 1.0, load, profile.token_budget)
        return np.log(np.stack([law.inter_token_time(*question), law.prefill_time(*question)]))

    centre = np.log([slow[name] for name in free])
    steps = STEP * np.eye(len(free))
    slopes = np.stack(
        [(log_times(centre + step) - log_times(centre - step)) / (2.0 * STEP) for step in steps], axis=-1
    )
    # Both latencies of a point, in units of their noise.
    gains = np.einsum("fci,fcj->cij", slopes, slopes) / NOISE_SHARE**2
    information = inverse_of(np.array(covariance)[np.ix_(rows, rows)])
    chosen: list[int] = []
    for _ in range(count):
        _, determinants = np.linalg.slogdet(information + gains)
        best = int(np.argmax(determinants))
        chosen.append(best)
        information = information + gains[best]
    parameters = np.array([slow[name] for name in law.parameter_names])
    question = (parameters, batch + 1.0, load, profile.token_budget)
    stay = law.iterations_per_request(*question) * law.iteration_time(*question)
    return tuple(
        CalibrationPoint(
            rate_rps=float(batch[row] / stay[row]),
            input_tokens=float(candidates[0][row]),
            output_tokens=float(candidates[1][row]),
        )
        for row in chosen
    )
