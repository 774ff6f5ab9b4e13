"""The estimators: on published runs with known truth, and what an update costs in processor time."""

import csv
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Cell, Progress, Table
from services.perfmodel.law import Array, Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.laws.three_parameter_early import EarlyThreeParameterLaw
from services.perfmodel.queueing import ServerModel
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.tuner.estimator import Estimator
from services.tuner.estimators.ekf import Ekf, EkfSettings
from services.tuner.estimators.moving_horizon import MovingHorizon, MovingHorizonSettings
from services.tuner.observation import Observation
from services.tuner.replay import read_recordings, replay
from services.tuner.settings import ObservationSettings

EARLY = EarlyThreeParameterLaw()
TRUTH = {"qa-granite": (8e-3, 16e-6, 5e-7), "qa-llama": (12e-3, 24e-6, 7.5e-7)}
RUNS = ("run7b", "run9", "run11", "run12")
FIRST_CYCLE = 3
CYCLES = 60
REPEATS = 20


def run(progress: Progress) -> list[Table]:
    """The replays, where the reference data is, and the cost."""
    folder = (
        Path(os.environ.get("STOKER_DATA", Path(__file__).parents[2] / "shared" / "data")) / "control-logs"
    )
    tables = [_cost(progress)]
    if folder.is_dir():
        tables.insert(0, _replays(folder, progress))
    return tables


def _replays(folder: Path, progress: Progress) -> Table:
    estimators: dict[str, Estimator[Any]] = {
        "moving-horizon": MovingHorizon(MovingHorizonSettings(ttft_iterations=1)),
        "ekf": Ekf(EkfSettings(ttft_iterations=1)),
        "ekf compat": Ekf(EkfSettings(compat=True, ttft_iterations=1)),
    }
    rows: list[tuple[Cell, ...]] = []
    for one in read_recordings(folder / "replica_observations.csv"):
        if one.run not in RUNS:
            continue
        truth = TRUTH.get(one.server)
        if truth is not None:
            found = _published(folder / "cycles.csv", one.run, one.server)[FIRST_CYCLE:]
            rows.append((f"{one.run} {one.server}", "published", *_errors(found, truth), None, None))
        for name, estimator in estimators.items():
            progress.say(f"tuner: {one.run} {one.server} {name}")
            updates = list(replay(one, estimator, EARLY, None, ObservationSettings(), 1))
            values = np.array(
                [
                    [update.estimate.values[parameter] for parameter in EARLY.parameter_names]
                    for update in updates[FIRST_CYCLE:]
                    if update.estimate is not None
                ]
            )
            errors = [None] * 6 if truth is None else _errors(values, truth)
            ahead = (
                _median([update.itl_error_share for update in updates]),
                _median([update.ttft_error_share for update in updates]),
            )
            rows.append((f"{one.run} {one.server}", name, *errors, *ahead))
    columns = (
        "run",
        "estimator",
        "α worst %",
        "β worst %",
        "γ worst %",
        "α median %",
        "β median %",
        "γ median %",
    )
    return Table(
        "errors of parameters after three cycles without a prior, and one step ahead",
        (*columns, "ITL ahead %", "TTFT ahead %"),
        tuple(rows),
        (
            f"law {EARLY.name}, ttft_iterations 1; run 12 has no truth",
            "published: what the runs' own filter logged",
            "ahead: median over cycles of the mean error of what was in force before",
        ),
    )


def _published(file: Path, run_name: str, server: str) -> Array:
    with file.open() as lines:
        return np.array(
            [
                [float(row[name]) / 1e3 for name in ("alpha", "beta", "gamma")]
                for row in csv.DictReader(lines)
                if row["run"].startswith(f"{run_name}/") and row["server"] == server and row["alpha"]
            ]
        )


def _errors(values: Array, truth: tuple[float, ...]) -> list[float]:
    shares = 100.0 * np.abs(values / truth - 1.0)
    return [float(x) for x in (*shares.max(axis=0), *np.median(shares, axis=0))]


def _median(shares: list[float | None]) -> float | None:
    known = [100.0 * share for share in shares if share is not None]
    return float(np.median(known)) if known else None


def _cost(progress: Progress) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for estimator in (MovingHorizon(MovingHorizonSettings()), Ekf(EkfSettings())):
        for replicas in (1, 4, 16):
            progress.say(f"tuner: cost of {estimator.name} with {replicas} replicas")
            seconds = _update_s(estimator, replicas)
            rows.append((estimator.name, replicas, 1e3 * seconds, 60.0 / seconds))
    return Table(
        "processor time of an update with a full memory",
        ("estimator", "replicas", "ms per update", "pairs per minute and core"),
        tuple(rows),
        (f"least processor time of {REPEATS} updates after {CYCLES} cycles; dump and load are not in it",),
    )


def _update_s(estimator: Estimator[Any], replicas: int) -> float:
    law, chance = ThreeParameterLaw(), random.Random(1)
    values = {"alpha_s": 8e-3, "beta_s": 16e-6, "gamma_s": 5e-7}
    parameters = np.array([values[name] for name in law.parameter_names])
    state = estimator.start(values, law)
    cycles = [[_seen(law, parameters, chance, k, c) for k in range(replicas)] for c in range(CYCLES + 1)]
    for cycle, seen in enumerate(cycles[:-1]):
        state, _ = estimator.update(state, seen, float(cycle))
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        estimator.update(state, cycles[-1], float(CYCLES))
        seconds.append(time.process_time() - began)
    return min(seconds)


def _seen(
    law: ThreeParameterLaw, parameters: Array, chance: random.Random, replica: int, cycle: int
) -> Observation:
    rate, prompt, output = chance.uniform(0.1, 1.0), chance.uniform(200, 3000), chance.uniform(100, 800)
    server = ServerModel(law, parameters, Workload(prompt, output), Limits(64, 128))
    metrics = CorrectedModel().analyze(server, rate, ())
    itl = float(metrics.itl_s.mean) * chance.lognormvariate(0.0, 0.02)
    return Observation(
        server="s",
        replica=f"r{replica}",
        window_end_s=60.0 * cycle,
        epoch="0",
        rate_rps=rate,
        input_tokens=prompt,
        output_tokens=output,
        ttft_s=float(metrics.ttft_s.mean) * chance.lognormvariate(0.0, 0.02),
        itl_s=itl,
        requests=60.0,
        saturated=False,
        decoding=rate * output * itl,
        decoding_measured=True,
        served_rps=rate,
        max_batch=64,
        token_budget=8192,
    )
