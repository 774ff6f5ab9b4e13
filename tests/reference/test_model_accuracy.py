"""How far the fast models are from the token-level engine, on few and small servers.

`benchmarks/model_accuracy.py` has many servers, other families of lengths and less noise.
"""

import numpy as np
import pytest

from services.perfmodel.law import Array, Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import Metrics, QueueingModel, ServerModel
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.perfmodel.queueing_models.interference import InterferenceModel
from services.perfmodel.queueing_models.simulation import SimulationModel, SimulationSettings

POINTS = 30
MODELS: tuple[QueueingModel, ...] = (BirthDeathModel(), CorrectedModel(), InterferenceModel())
SIMULATION = SimulationModel(SimulationSettings(requests=60_000))
FIGURES = ("mean wait", "p95 TTFT", "mean ITL")


def figures(metrics: Metrics) -> list[float]:
    p95 = np.nan if metrics.ttft_s.p95 is None else float(metrics.ttft_s.p95)
    return [float(metrics.wait_s.mean), p95, float(metrics.itl_s.mean)]


def errors(shortest: float, longest: float) -> dict[str, Array]:
    """|predicted / measured − 1| by model, shape (POINTS, 3), of random servers with prompts in a range.

    Their rates are 0.3 to 0.9 of the capacity of their chain.
    """
    rng, engine, found = np.random.default_rng(4), [], {model.name: [] for model in MODELS}
    for _ in range(POINTS):
        # Fixed, about as variable as a uniform length, and exponential.
        prompt_scv, output_scv = rng.choice([0.0, 1.0 / 12.0, 1.0], 2)
        prompt, output = (
            np.exp(rng.uniform(np.log(low), np.log(high)))
            for low, high in ((shortest, longest), (32.0, 512.0))
        )
        workload = Workload(
            prompt,
            output,
            output_tokens_sq=output**2 * (1.0 + output_scv),
            input_tokens_sq=prompt**2 * (1.0 + prompt_scv),
        )
        limits = Limits(
            int(np.exp(rng.uniform(np.log(4.0), np.log(128.0)))), 1e7, rng.choice([2048.0, 8192.0])
        )
        parameters = np.array([0.008, 2e-5, 4e-7]) * np.exp(rng.uniform(-0.7, 0.7, 3))
        server = ServerModel(ThreeParameterLaw(), parameters, workload, limits)
        rate = rng.uniform(0.3, 0.9) * float(BirthDeathModel().analyze(server, 0.0).capacity_rps)
        engine.append(figures(SIMULATION.analyze(server, rate)))
        for model in MODELS:
            found[model.name].append(figures(model.analyze(server, rate)))
    return {name: np.abs(np.array(said) / np.array(engine) - 1.0) for name, said in found.items()}


@pytest.fixture(scope="module")
def short_prompts() -> dict[str, Array]:
    return errors(20.0, 512.0)


@pytest.fixture(scope="module")
def long_prompts() -> dict[str, Array]:
    return errors(1000.0, 8000.0)


@pytest.mark.parametrize("figure", FIGURES)
def test_corrected_is_close_to_the_engine_for_short_prompts(
    short_prompts: dict[str, Array], figure: str
) -> None:
    off = short_prompts["corrected"][:, FIGURES.index(figure)]
    # What is asked of the model, noise of the engine included.
    assert np.median(off) <= 0.12
    assert np.percentile(off, 90) <= 0.35


@pytest.mark.parametrize("figure", FIGURES)
def test_interference_is_close_to_the_engine_for_long_prompts(
    long_prompts: dict[str, Array], figure: str
) -> None:
    assert np.median(long_prompts["interference"][:, FIGURES.index(figure)]) <= 0.2


def test_each_model_is_closer_to_the_engine_than_the_coarser_one(
    short_prompts: dict[str, Array], long_prompts: dict[str, Array]
) -> None:
    def typical(of: dict[str, Array], model: str, figure: str) -> float:
        return float(np.median(of[model][:, FIGURES.index(figure)]))

    coarse = typical(short_prompts, "birth-death", "mean wait")
    assert typical(short_prompts, "corrected", "mean wait") < 0.5 * coarse
    assert typical(long_prompts, "interference", "p95 TTFT") < typical(long_prompts, "corrected", "p95 TTFT")
