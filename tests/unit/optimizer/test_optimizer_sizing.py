"""Questions to the performance model: batched, grouped by law and limits, and isolated from each other."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pytest
from optimizer_builders import LAWS, SLOW

from schemas.base import Statistic
from services.optimizer import sizing
from services.optimizer.problem import ReplicaCase
from services.optimizer.sizing import latencies, size
from services.perfmodel.law import Values
from services.perfmodel.queueing import ALL_STATISTICS, Metrics, ServerModel, Sizing, Targets
from services.perfmodel.queueing import Statistic as ModelStatistic
from services.perfmodel.queueing_models.birth_death import BirthDeathModel

CASE = ReplicaCase(
    law="three-parameter",
    parameters=tuple(SLOW.values()),
    input_tokens=500.0,
    output_tokens=200.0,
    max_batch=64,
    max_queue=128,
    token_budget=8192,
    kv_tokens=None,
    ttft_s=0.5,
    itl_s=0.03,
    tokens_per_s=None,
    statistic=Statistic.MEAN,
)
VARIED = [
    CASE,
    replace(CASE, max_batch=8),
    replace(CASE, max_batch=512, itl_s=None),
    replace(CASE, kv_tokens=100_000),
    replace(CASE, ttft_s=None, itl_s=None),
    replace(CASE, itl_s=1e-6),
    replace(CASE, tokens_per_s=1e8),
]


@dataclass(frozen=True)
class Picky(BirthDeathModel):
    """Refuses a whole call that has a prompt of 666 tokens in it."""

    def max_rate(
        self, server: ServerModel, targets: Targets, statistic: ModelStatistic = ModelStatistic.MEAN
    ) -> Sizing:
        self._check(server)
        return super().max_rate(server, targets, statistic)

    def analyze(
        self, server: ServerModel, rate_rps: Values, statistics: Collection[ModelStatistic] = ALL_STATISTICS
    ) -> Metrics:
        self._check(server)
        return super().analyze(server, rate_rps, statistics)

    def _check(self, server: ServerModel) -> None:
        if np.any(server.workload.input_tokens == 666.0):
            raise ValueError("input_tokens must not be 666")


def test_a_case_has_the_same_size_alone_and_among_others() -> None:
    together = size(VARIED, BirthDeathModel(), LAWS)
    for case in VARIED:
        alone = size([case], BirthDeathModel(), LAWS)[case]
        assert together[case].max_rate_rps == pytest.approx(alone.max_rate_rps, rel=1e-9)
        assert together[case].binding == alone.binding


def test_what_stops_a_rate_is_named() -> None:
    sizes = size(VARIED, BirthDeathModel(), LAWS)
    assert sizes[VARIED[4]].binding in ("throughput", "queue")
    assert (sizes[VARIED[5]].max_rate_rps, sizes[VARIED[5]].binding) == (0.0, "itl")
    assert (sizes[VARIED[6]].max_rate_rps, sizes[VARIED[6]].binding) == (0.0, "tps")


def test_a_case_that_the_model_refuses_leaves_the_others_their_answers() -> None:
    bad = replace(CASE, input_tokens=666.0)
    good = [replace(CASE, input_tokens=float(n)) for n in range(100, 110)]
    sizes = size([*good[:4], bad, *good[4:]], Picky(), LAWS)
    assert sizes[bad].refused == "input_tokens must not be 666"
    assert sizes[bad].max_rate_rps == 0.0
    assert all(sizes[case] == size([case], BirthDeathModel(), LAWS)[case] for case in good)
    times = latencies([(case, 2.0) for case in (bad, *good)], Picky(), LAWS)
    assert times[(bad, 2.0)] is None
    assert all(times[(case, 2.0)] is not None for case in good)


def test_nothing_asked_is_nothing_answered() -> None:
    assert size([], BirthDeathModel(), LAWS) == {}
    assert latencies([], BirthDeathModel(), LAWS) == {}


def test_large_fleets_are_asked_in_calls_that_fit_into_memory() -> None:
    assert sizing.BATCH_SIZES_PER_CALL * 8 <= 1 << 24
    many = [replace(CASE, max_batch=100_000, input_tokens=float(n)) for n in range(100, 125)]
    assert len(many) * 100_000 > sizing.BATCH_SIZES_PER_CALL
    times = latencies([(case, 1.0) for case in many], BirthDeathModel(), LAWS)
    assert all(value is not None for value in times.values())
