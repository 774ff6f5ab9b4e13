"""From benchmark sweeps to parameters, how well they are known, and how far predictions are off.

A law's figures on the sweeps it was fitted to flatter it, so each token shape is also predicted from all others
(`left_out`). Every figure is given over all points and over those that published figures usually count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.perfmodel.law import Array, IterationLaw
from services.perfmodel.laws.seven_parameter import SevenParameterLaw
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.tuner.sweeps.sweep import Sweep
from services.tuner.training.conditions import Conditions, Flags, kv_capacity
from services.tuner.training.least_squares import LARGEST_STANDARD_ERROR, Estimate, estimate
from services.tuner.training.observation import (
    Observation,
    SevenParameterObservation,
    observation_of,
)


class TrainingRefused(ValueError):
    """Sweeps that no law can be fitted to; its text says what is missing."""


@dataclass(frozen=True)
class Scores:
    """Errors over some load points, as shares; None where no point has the measurement.

    WAPE is the sum of absolute errors over the sum of the measured, MAPE the mean of the relative errors. TTFT
    is scored where it is that of a steady state (`Conditions.ttft_counts`): `ttft_points` of the `points`.
    """

    points: int
    ttft_points: int
    ttft_wape: float | None
    ttft_mape: float | None
    itl_wape: float | None
    itl_mape: float | None
    ttft_p95_mape: float | None


@dataclass(frozen=True)
class Figures:
    """Scores over all points, over the usual ones, and over all points of each file."""

    all: Scores
    usual: Scores
    sweeps: tuple[tuple[str, Scores], ...]


@dataclass(frozen=True, eq=False)
class LawFit:
    """One law's parameters and figures; `left_out` is None for sweeps of a single token shape."""

    law: IterationLaw
    estimate: Estimate
    training: Figures
    left_out: Figures | None
    test: Figures | None


@dataclass(frozen=True, eq=False)
class Training:
    """What sweeps tell.

    fits: the law that was asked for where it can be fitted, and the three-parameter law; `chosen` is in force.
    refused: why the law that was asked for is not in force, None where it is.
    converted: three parameters fitted to the chosen law's predictions, for formats that hold no other law.
    kv_tokens: tokens that the KV cache holds, infinite where the sweeps do not show it.
    """

    fits: tuple[LawFit, ...]
    chosen: LawFit
    refused: str | None
    converted: Estimate
    kv_tokens: float


def train(
    sweeps: Sequence[Sweep],
    tests: Sequence[Sweep] = (),
    law: IterationLaw | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Training:
    """Fits the law, the seven-parameter one by default, and the three-parameter law beside it.

    progress: called with the share of the fits that are done.

    Raises TrainingRefused where not even the three-parameter law has enough measurements.
    """
    asked = SevenParameterLaw() if law is None else law
    simple = ThreeParameterLaw()
    laws = [asked] if asked.name == simple.name else [asked, simple]
    shapes = sorted({one.shape for one in sweeps})
    steps, done = len(laws) * (1 + len(shapes)), 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done / steps)

    fits: list[LawFit] = []
    refused = None
    for one in laws:
        try:
            fits.append(_fit(one, sweeps, tests, shapes, step))
        except ValueError as error:
            if one.name == simple.name:
                raise TrainingRefused(f"{error}; expected more load points") from None
            refused = str(error)
    if refused is None and not fits[0].estimate.identified and len(laws) > 1:
        refused = _unidentified(fits[0])
    chosen = fits[-1] if refused else fits[0]
    kv_tokens = kv_capacity(sweeps)
    return Training(tuple(fits), chosen, refused, _converted(chosen, sweeps, kv_tokens), kv_tokens)


def _fit(
    law: IterationLaw,
    sweeps: Sequence[Sweep],
    tests: Sequence[Sweep],
    shapes: Sequence[tuple[int, int]],
    step: Callable[[], None],
) -> LawFit:
    observation, kv_tokens = observation_of(law), kv_capacity(sweeps)
    at = Conditions.of(sweeps, kv_tokens)
    found = estimate(observation, at)
    step()
    training = _figures(sweeps, at, _predictions(observation, found, at))
    tested = None
    if tests:
        unseen = Conditions.of(tests, kv_tokens)
        tested = _figures(tests, unseen, _predictions(observation, found, unseen))
    return LawFit(law, found, training, _left_out(observation, sweeps, at, shapes, step), tested)


def _left_out(
    observation: Observation,
    sweeps: Sequence[Sweep],
    at: Conditions,
    shapes: Sequence[tuple[int, int]],
    step: Callable[[], None],
) -> Figures | None:
    """Figures with the points of each shape predicted from the sweeps of all other shapes alone."""
    if len(shapes) < 2:
        return None
    predicted = np.full((3, len(at.itl_s)), np.nan)
    for shape in shapes:
        kept = [one for one in sweeps if one.shape != shape]
        kv_tokens = kv_capacity(kept)
        try:
            # One start: neither the parameters of all sweeps, which know the shape, nor the time of several.
            found = estimate(observation, Conditions.of(kept, kv_tokens), observation.starts[:1])
        except ValueError:
            return None
        left = np.array([sweeps[index].shape == shape for index in at.sweep])
        unseen = Conditions.of([one for one in sweeps if one.shape == shape], kv_tokens)
        predicted[:, left] = _predictions(observation, found, unseen)
        step()
    return _figures(sweeps, at, predicted)


def _predictions(observation: Observation, found: Estimate, at: Conditions) -> Array:
    """Shape (3, n): mean ITL, mean TTFT and its 95th percentile, NaN where the law has none."""
    predicted = observation.predict(found.parameters[None], at)
    p95 = (
        observation.ttft_p95(found.parameters, at)
        if isinstance(observation, SevenParameterObservation)
        else np.full(len(at.itl_s), np.nan)
    )
    return np.stack([predicted.itl_s[0], predicted.ttft_s[0], p95])


def _figures(sweeps: Sequence[Sweep], at: Conditions, predicted: Array) -> Figures:
    every = np.ones(len(at.itl_s), dtype=bool)
    by_sweep = tuple(
        (one.file, _scores(at, predicted, at.sweep == index)) for index, one in enumerate(sweeps)
    )
    return Figures(_scores(at, predicted, every), _scores(at, predicted, at.usual()), by_sweep)


def _scores(at: Conditions, predicted: Array, mask: Flags) -> Scores:
    itl, ttft, p95 = predicted
    steady = mask & at.ttft_counts
    told = steady & np.isfinite(at.ttft_p95_s) & np.isfinite(p95)
    return Scores(
        points=int(mask.sum()),
        ttft_points=int(steady.sum()),
        ttft_wape=_wape(ttft[steady], at.ttft_s[steady]),
        ttft_mape=_mape(ttft[steady], at.ttft_s[steady]),
        itl_wape=_wape(itl[mask], at.itl_s[mask]),
        itl_mape=_mape(itl[mask], at.itl_s[mask]),
        ttft_p95_mape=_mape(p95[told], at.ttft_p95_s[told]),
    )


def _wape(predicted: Array, measured: Array) -> float | None:
    return float(np.abs(predicted - measured).sum() / measured.sum()) if len(measured) else None


def _mape(predicted: Array, measured: Array) -> float | None:
    return float(np.mean(np.abs(predicted / measured - 1.0))) if len(measured) else None


def _unidentified(fit: LawFit) -> str:
    errors = zip(fit.law.parameter_names, fit.estimate.standard_errors, strict=True)
    vague = [f"{name} (±{error:.0%})" for name, error in errors if not error <= LARGEST_STANDARD_ERROR]
    named = f": {', '.join(vague)}" if vague else ""
    return (
        f"the sweeps do not identify the {fit.law.name} law, condition number "
        f"{fit.estimate.condition_number:.2g}{named}; it needs sweeps of several prompt and output lengths"
    )


def _converted(chosen: LawFit, sweeps: Sequence[Sweep], kv_tokens: float) -> Estimate:
    """Three parameters by least squares on what the law predicts at the loads of the sweeps."""
    simple = ThreeParameterLaw()
    if chosen.law.name == simple.name:
        return chosen.estimate
    at = Conditions.of(sweeps, kv_tokens)
    predicted = observation_of(chosen.law).predict(chosen.estimate.parameters[None], at)
    return estimate(observation_of(simple), at.relabelled(predicted.itl_s[0], predicted.ttft_s[0]))
