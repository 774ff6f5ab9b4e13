"""The performance models: sizing and analysis beside the reference, one call, a mixed fleet, the simulation."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Progress, Table, median_s
from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import QueueingModel, ServerModel, Statistic, Targets
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.perfmodel.queueing_models.interference import InterferenceModel

BATCH = 10_000
MIXED = 16_000
# What the recorded figures of the reference are for: α, β, γ in seconds, prompt and output tokens.
PARAMETERS = (0.0067, 2.08e-5, 4.9e-8)
PROMPT, OUTPUT = 1024.0, 512.0
TARGETS = Targets(ttft_s=0.5, itl_s=0.03)
REPOSITORY = Path(__file__).parent.parent


def run(progress: Progress) -> list[Table]:
    """Microseconds a server; the least of five runs of a batch, medians of single calls."""
    reference = _reference()
    model = BirthDeathModel()
    rows = []
    for places in (8, 64, 256, 1024):
        for queue in (0, 128, 10 * places):
            progress.say(f"perfmodel: N={places} Q={queue}")
            many, one = _servers(BATCH, places, queue), _servers(1, places, queue, shape=())
            size_us = _least_us(lambda s=many: model.max_rate(_anew(s), TARGETS)) / BATCH
            rates = model.max_rate(many, TARGETS).max_rate_rps * 0.8
            analyze_us = _least_us(lambda s=many, r=rates: model.analyze(_anew(s), r)) / BATCH
            alone_us = median_s(lambda s=one: model.max_rate(s, TARGETS), budget_s=0.3) * 1e6
            known = reference.get((places, queue), {})
            recorded = known.get("size_ttft_itl_ns")
            rows.append(
                (
                    f"N={places} Q={queue}",
                    size_us,
                    recorded / 1e3 if recorded else None,
                    analyze_us,
                    known["analyze_90pct_ns"] / 1e3 if known else None,
                    alone_us,
                )
            )
    columns = (
        "birth-death",
        f"size, batch of {BATCH}",
        "reference, size",
        "analyze, the same batch",
        "reference, analyze",
        "size, one call",
    )
    sizing = Table(
        "Two-target sizing, us a server",
        columns,
        tuple(rows),
        (
            "One core. What does not depend on the rate is made anew for every batch, and kept for single calls.",
        ),
    )
    return [sizing, _mixed(progress), _simulation(progress), _imports(progress)]


def _mixed(progress: Progress) -> Table:
    rng = np.random.default_rng(3)
    places = rng.choice([8, 16, 32, 64, 128, 256], MIXED).astype(float)
    mixed = ServerModel(
        ThreeParameterLaw(),
        np.array(PARAMETERS) * rng.uniform(0.5, 3.0, (MIXED, 3)),
        Workload(rng.uniform(64, 4096, MIXED), rng.uniform(32, 1024, MIXED)),
        Limits(places, rng.choice([0.0, 10.0, 100.0], MIXED) * places),
    )
    targets = Targets(rng.uniform(0.2, 5.0, MIXED), rng.uniform(0.02, 0.1, MIXED))
    rows = []
    asked: tuple[tuple[QueueingModel, Statistic], ...] = (
        (BirthDeathModel(), Statistic.MEAN),
        (CorrectedModel(), Statistic.MEAN),
        (InterferenceModel(), Statistic.MEAN),
        (InterferenceModel(), Statistic.P95),
    )
    for model, statistic in asked:
        progress.say(f"perfmodel: mixed fleet, {model.name} {statistic.value}")
        seconds = _least_us(lambda m=model, s=statistic: m.max_rate(_anew(mixed), targets, s), 2) / 1e6
        rows.append((f"{model.name}, {statistic.value}", seconds))
    return Table(
        f"{MIXED} mixed candidates sized, N 8 to 256, some with chunked prompts", ("model", "s"), tuple(rows)
    )


def _simulation(progress: Progress) -> Table:
    from services.perfmodel.queueing_models.simulation import draw, serve

    progress.say("perfmodel: simulation")
    one = _servers(1, 64, 100_000, shape=())
    rows = []
    for load in (0.5, 0.9):
        rate = load * float(BirthDeathModel().analyze(one, 1.0).capacity_rps)
        requests = draw(one, rate, 200_000, seed=1)
        steps = serve(one, requests).decoded_tokens
        seconds = median_s(lambda r=requests: serve(one, r), budget_s=1.0)
        rows.append((f"N=64, load {load:g}", steps / seconds, seconds / 200_000 * 1e6))
    return Table("Simulation", ("case", "token-steps a second", "us a request"), tuple(rows))


def _imports(progress: Progress) -> Table:
    progress.say("perfmodel: imports")
    rows = []
    for module in ("services.perfmodel.queueing_models.birth_death", "services.perfmodel.segment_kernels"):
        command = [sys.executable, "-c", f"import {module}"]
        seconds = median_s(lambda c=command: subprocess.run(c, check=True, cwd=REPOSITORY), budget_s=2.0)
        rows.append((module, seconds))
    return Table("A new interpreter, kernels compiled before", ("import", "s"), tuple(rows))


def _servers(count: int, places: int, queue: int, shape: tuple[int, ...] | None = None) -> ServerModel:
    rng = np.random.default_rng(1)
    shape = (count,) if shape is None else shape
    parameters = np.array(PARAMETERS) * rng.uniform(0.7, 1.5, (*shape, 3))
    workload = Workload(PROMPT * rng.uniform(0.7, 1.5, shape), OUTPUT * rng.uniform(0.7, 1.5, shape))
    return ServerModel(ThreeParameterLaw(), parameters, workload, Limits(float(places), float(queue)))


def _anew(server: ServerModel) -> ServerModel:
    """The servers without what was made of them before."""
    return ServerModel(server.law, server.parameters, server.workload, server.limits)


def _least_us(work: Callable[[], Any], times: int = 5) -> float:
    work()
    least = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - began)
    return least * 1e6


def _reference() -> dict[tuple[int, int], dict[str, float]]:
    """The recorded figures of the reference in nanoseconds, by places and queue; none without the data."""
    folder = Path(os.environ.get("STOKER_DATA", REPOSITORY.parent / "shared" / "data"))
    path = folder / "queue-golden" / "go_benchmark.json"
    if not path.is_file():
        return {}
    return {(row["maxBatch"], row["maxQueue"]): row for row in json.loads(path.read_text())["rows"]}
