"""Questions to the performance model, for the whole fleet at once."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np

from services.optimizer.problem import ReplicaCase
from services.perfmodel.law import Array, IterationLaw, Limits, Workload
from services.perfmodel.problems.isolation import isolated
from services.perfmodel.queueing import Binding, Distribution, QueueingModel, ServerModel, Statistic, Targets

T = TypeVar("T")

Laws = Mapping[str, IterationLaw]
"""Iteration laws by name."""

# Performance models tabulate every batch size; a call takes no more replicas than keep that within memory.
BATCH_SIZES_PER_CALL = 1 << 21

BINDING = {
    Binding.CAPACITY: "throughput",
    Binding.TTFT: "ttft",
    Binding.ITL: "itl",
    Binding.TPS: "tps",
    Binding.BLOCKING: "queue",
}


@dataclass(frozen=True)
class Size:
    """The largest rate of a replica within its objectives, 0 when there is none, and what stops it.

    refused: the performance model's words when it has no answer.
    """

    max_rate_rps: float
    binding: str
    refused: str = ""


@dataclass(frozen=True)
class Latencies:
    """Times in seconds, TTFT and ITL in the case's statistic, mean wait; requests per second that are served."""

    ttft_s: float
    itl_s: float
    wait_s: float
    throughput_rps: float


def size(cases: Collection[ReplicaCase], model: QueueingModel, laws: Laws) -> dict[ReplicaCase, Size]:
    """The size of every case. A case that the model refuses is answered with its reason, alone."""

    def ask(block: Sequence[ReplicaCase]) -> list[Size]:
        answer = model.max_rate(_servers(block, laws), _targets(block), _statistic(block))
        return [
            Size(float(rate), BINDING[Binding(code)])
            if feasible and 0 < rate < math.inf
            else Size(0.0, BINDING[Binding(code)])
            for rate, feasible, code in zip(
                answer.max_rate_rps.tolist(), answer.feasible.tolist(), answer.binding.tolist(), strict=True
            )
        ]

    sizes: dict[ReplicaCase, Size] = {}
    for block in _blocks(list(dict.fromkeys(cases)), lambda case: case):
        answers = isolated(block, ask, lambda error: Size(0.0, "", error))
        sizes.update(zip(block, answers, strict=True))
    return sizes


def smallest_batches(
    cases: Collection[ReplicaCase], model: QueueingModel, laws: Laws
) -> dict[ReplicaCase, int]:
    """The smallest batch limit of every case that is nearly as good as the best; 0 where none will do."""

    def ask(block: Sequence[ReplicaCase]) -> list[int]:
        found: list[int] = model.concurrency(
            _servers(block, laws), _targets(block), _statistic(block)
        ).tolist()
        return found

    batches: dict[ReplicaCase, int] = {}
    for block in _blocks(list(dict.fromkeys(cases)), lambda case: case):
        batches.update(zip(block, isolated(block, ask, lambda error: 0), strict=True))
    return batches


Question = tuple[ReplicaCase, float]
"""A case and the rate of one replica, in requests per second."""


def latencies(
    questions: Collection[Question], model: QueueingModel, laws: Laws
) -> dict[Question, Latencies | None]:
    """The latencies of every question; None where the model has no finite answer."""

    def ask(block: Sequence[Question]) -> list[Latencies | None]:
        cases, rates = [case for case, _ in block], np.array([rate for _, rate in block])
        statistic = cases[0].statistic.value
        metrics = model.analyze(_servers(cases, laws), rates, {Statistic(statistic)})
        columns = (
            _values(metrics.ttft_s, statistic),
            _values(metrics.itl_s, statistic),
            metrics.wait_s.mean,
            metrics.throughput_rps,
        )
        return [
            Latencies(*row) if all(math.isfinite(value) for value in row) else None
            for row in np.stack(columns, axis=-1).tolist()
        ]

    answers: dict[Question, Latencies | None] = {}
    for block in _blocks(list(dict.fromkeys(questions)), lambda question: question[0]):
        answers.update(zip(block, isolated(block, ask, lambda error: None), strict=True))
    return answers


def _targets(cases: Sequence[ReplicaCase]) -> Targets:
    return Targets(
        ttft_s=_column([c.ttft_s for c in cases]),
        itl_s=_column([c.itl_s for c in cases]),
        tps=_column([c.tokens_per_s for c in cases]),
    )


def _statistic(cases: Sequence[ReplicaCase]) -> Statistic:
    return Statistic(cases[0].statistic.value)


def _servers(cases: Sequence[ReplicaCase], laws: Laws) -> ServerModel:
    return ServerModel(
        laws[cases[0].law],
        np.array([c.parameters for c in cases]),
        Workload(np.array([c.input_tokens for c in cases]), np.array([c.output_tokens for c in cases])),
        Limits(
            np.array([c.max_batch for c in cases]),
            np.array([c.max_queue for c in cases]),
            np.array([c.token_budget for c in cases]),
            None if cases[0].kv_tokens is None else np.array([c.kv_tokens for c in cases], float),
        ),
    )


def _blocks(items: list[T], case_of: Callable[[T], ReplicaCase]) -> Iterator[list[T]]:
    """Items that go into one call: same law, same statistic, KV memory all known or all unknown."""

    def kind(item: T) -> tuple[str, str, bool]:
        case = case_of(item)
        return (case.law, case.statistic.value, case.kv_tokens is None)

    def order(item: T) -> tuple[tuple[str, str, bool], int]:
        return (kind(item), case_of(item).max_batch)

    for _, group in groupby(sorted(items, key=order), key=kind):
        block: list[T] = []
        for item in group:
            if block and (len(block) + 1) * case_of(item).max_batch > BATCH_SIZES_PER_CALL:
                yield block
                block = []
            block.append(item)
        yield block


def _values(distribution: Distribution, statistic: str) -> Array:
    values: Array | None = getattr(distribution, statistic)
    return np.full_like(distribution.mean, np.nan) if values is None else values


def _column(values: Sequence[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values])
