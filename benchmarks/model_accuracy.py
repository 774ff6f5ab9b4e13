"""The performance models against the token-level engine, over random servers, loads and lengths.

A point is a server of random size, cost, token budget, mean lengths and families of lengths, at a random share of
the capacity of its birth-death chain. The models are told the moments of the very lengths that the engine serves.
What the engine says is the mean over seeds; its standard error is shown beside the errors of the models, which
hold it too: where lengths are heavy-tailed and the load high, most of the largest errors are the engine's noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Progress, Table
from services.perfmodel.law import Array, Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import Metrics, QueueingModel, ServerModel
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.perfmodel.queueing_models.interference import InterferenceModel
from services.perfmodel.queueing_models.simulation import Requests, serve

SEEDS = 10
REQUESTS = 200_000
WARM_UP_SHARE = 0.2
DRAWN = 200_000
LONGEST = 16_384
FAMILIES = ("fixed", "uniform", "exponential", "lognormal")
LOGNORMAL_SCV = 3.0
FIGURES = ("mean wait", "p95 TTFT", "mean ITL")
# A point counts as quiet where the standard error of what the engine says is below this share of it.
QUIET = 0.02
_PARAMETERS = (0.008, 2e-5, 4e-7)
_NO_END = 1e7


@dataclass(frozen=True)
class Regime:
    """Prompts of one kind: the range of their mean length, how many points, and the models that are for it."""

    name: str
    shortest: float
    longest: float
    points: int
    models: tuple[QueueingModel, ...]


REGIMES = (
    Regime("prompts of 20-512 tokens", 20.0, 512.0, 240, (CorrectedModel(), BirthDeathModel())),
    Regime(
        "prompts of 1,000-8,000 tokens",
        1000.0,
        8000.0,
        200,
        (InterferenceModel(), CorrectedModel(), BirthDeathModel()),
    ),
)


@dataclass(frozen=True, eq=False)
class Point:
    """A server, a rate in requests per second, and the lengths in tokens that requests draw from, in pairs."""

    server: ServerModel
    rate_rps: float
    prompts: NDArray[np.int64]
    outputs: NDArray[np.int64]


def run(progress: Progress) -> list[Table]:
    """Relative errors of the models, and the noise of the engine, for each regime."""
    return [_table(regime, progress) for regime in REGIMES]


def _table(regime: Regime, progress: Progress) -> Table:
    rng = np.random.default_rng(17)
    points, measured, noise = [], [], []
    for index in range(regime.points):
        progress.say(f"model_accuracy: {regime.name}, {index + 1} of {regime.points}")
        points.append(_point(rng, regime))
        runs = np.array([_simulated(points[-1], seed) for seed in range(SEEDS)])
        measured.append(runs.mean(axis=0))
        noise.append(runs.std(axis=0, ddof=1) / np.sqrt(SEEDS) / runs.mean(axis=0))
    rows = []
    for figure, name in enumerate(FIGURES):
        truth, error = np.array(measured)[:, figure], np.array(noise)[:, figure]
        quiet = error < QUIET
        for model in regime.models:
            said = np.array([_figures(model.analyze(p.server, p.rate_rps))[figure] for p in points])
            off = said / truth - 1.0
            if np.isnan(off).any():
                continue
            size = np.abs(off)
            rows.append(
                (
                    f"{name}, {model.name}",
                    *np.percentile(size, (50, 90)).tolist(),
                    float(np.median(off)),
                    *np.percentile(size[quiet], (50, 90)).tolist(),
                    f"{quiet.mean():.0%}",
                )
            )
        rows.append((f"{name}, noise", *np.percentile(error, (50, 90)).tolist(), None, None, None, None))
    columns = ("figure, model", "median", "p90", "signed median", "quiet median", "quiet p90", "quiet")
    notes = (
        f"{regime.points} points, {SEEDS} seeds of {REQUESTS:,} requests each, loads 0.3-0.95, batches of 4-256.",
        "Median and 90th percentile of |predicted / measured - 1|; noise: standard error / measured.",
        f"Quiet: only the points whose noise is below {QUIET:.0%} of the figure.",
    )
    return Table(f"Accuracy against the token-level engine, {regime.name}", columns, tuple(rows), notes)


def _point(rng: np.random.Generator, regime: Regime) -> Point:
    batch = int(_log_uniform(rng, 4.0, 257.0))
    means = _log_uniform(rng, regime.shortest, regime.longest), _log_uniform(rng, 32.0, 1024.0)
    parameters = np.array(_PARAMETERS) * np.exp(rng.uniform(-0.7, 0.7, 3))
    budget, load = float(rng.choice((2048, 8192))), rng.uniform(0.3, 0.95)
    prompts, outputs = (_lengths(rng, str(rng.choice(FAMILIES)), mean) for mean in means)
    workload = Workload(
        prompts.mean(),
        outputs.mean(),
        output_tokens_sq=np.square(outputs, dtype=float).mean(),
        input_output_tokens=(prompts * outputs).mean(),
        input_tokens_sq=np.square(prompts, dtype=float).mean(),
    )
    server = ServerModel(ThreeParameterLaw(), parameters, workload, Limits(batch, _NO_END, budget))
    capacity = float(BirthDeathModel().analyze(server, 0.0).capacity_rps)
    return Point(server, load * capacity, prompts, outputs)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _lengths(rng: np.random.Generator, family: str, mean: float) -> NDArray[np.int64]:
    """Whole lengths of a family and a mean, made whole by chance so that the mean stays."""
    real = np.full(DRAWN, mean)
    if family == "uniform":
        real = rng.uniform(0.5 * mean, 1.5 * mean, DRAWN)
    elif family == "exponential":
        real = rng.exponential(mean, DRAWN)
    elif family == "lognormal":
        variance = np.log1p(LOGNORMAL_SCV)
        real = rng.lognormal(np.log(mean) - variance / 2.0, np.sqrt(variance), DRAWN)
    whole: NDArray[np.int64] = np.clip(np.floor(real + rng.random(DRAWN)), 1, LONGEST).astype(np.int64)
    return whole


def _simulated(point: Point, seed: int) -> Array:
    """The figures of one run, in the order of FIGURES."""
    rng = np.random.default_rng(1000 + seed)
    pairs = rng.integers(0, DRAWN, REQUESTS)
    arrival_s = np.cumsum(rng.exponential(1.0 / point.rate_rps, REQUESTS))
    output = point.outputs[pairs]
    requests = Requests(arrival_s, point.prompts[pairs], np.zeros(REQUESTS, dtype=np.int64), output)
    ran = serve(point.server, requests)
    counted = slice(int(WARM_UP_SHARE * REQUESTS), None)
    ttft_s = (ran.first_token_s - arrival_s)[counted]
    wait_s = (ran.admitted_s - arrival_s)[counted]
    itl_s = ((ran.finish_s - ran.first_token_s) / output)[counted]
    return np.array([wait_s.mean(), np.percentile(ttft_s, 95.0), itl_s.mean()])


def _figures(metrics: Metrics) -> Array:
    """The figures a model predicts, in the order of FIGURES; NaN where it has no percentiles."""
    ttft = np.nan if metrics.ttft_s.p95 is None else float(metrics.ttft_s.p95)
    return np.array([float(metrics.wait_s.mean), ttft, float(metrics.itl_s.mean)])
