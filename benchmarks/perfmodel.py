"""The performance model: two-target sizing and analysis, in a batch and alone."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.report import Progress, Table
from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import ServerModel, Targets
from services.perfmodel.queueing_models.birth_death import BirthDeathModel

_BATCH = 10_000
_CASES = ((8, 0), (64, 128), (256, 128))
_PARAMETERS = (0.008, 1.6e-5, 5e-7)


def run(progress: Progress) -> list[Table]:
    """Microseconds per server, the least of three runs of a batch and the mean of twenty single calls."""
    model, rows = BirthDeathModel(), []
    targets = Targets(ttft_s=np.array(0.5), itl_s=np.array(0.03))
    for batch, queue in _CASES:
        progress.say(f"perfmodel: N={batch}")
        many, one = _servers(_BATCH, batch, queue), _servers(1, batch, queue)
        size_us = min(_seconds(lambda m=many: model.max_rate(m, targets)) for _ in range(3)) / _BATCH * 1e6
        rates = model.max_rate(many, targets).max_rate_rps * 0.8
        analyze_us = (
            min(_seconds(lambda m=many, r=rates: model.analyze(m, r)) for _ in range(3)) / _BATCH * 1e6
        )
        single_us = sum(_seconds(lambda m=one: model.max_rate(m, targets)) for _ in range(20)) / 20 * 1e6
        rows.append((f"N={batch} Q={queue}", size_us, analyze_us, single_us))
    columns = ("case", f"size, batch of {_BATCH}", "analyze, the same batch", "size, one call")
    return [Table("birth-death, two targets (us per server)", columns, tuple(rows), ("One core, NumPy.",))]


def _servers(count: int, batch: int, queue: int) -> ServerModel:
    rng = np.random.default_rng(1)
    parameters = np.array(_PARAMETERS) * rng.uniform(0.7, 1.5, (count, 3))
    workload = Workload(rng.uniform(100, 2000, count), rng.uniform(50, 500, count))
    return ServerModel(ThreeParameterLaw(), parameters, workload, Limits(np.array(batch), np.array(queue)))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
