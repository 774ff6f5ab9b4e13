"""GuideLLM's CSV: one header row until 0.3, three since 0.5.

Since 0.5 a metric has a block of four columns (mean, median, standard deviation, percentiles) for each of the
successful, incomplete and errored requests; blocks without data are left out row by row, while the header is that
of the first row. So a row with incomplete or errored requests is longer than the header, and its cells are not
under their names. What holds in every row: the columns before the first block, the order of the metrics, and that
successful comes first. Which block is which metric's then follows from what the means must satisfy together:

    TPOT = latency / output,  ITL = (latency − TTFT) / (output − 1),  input + output = total,
    rate = successful requests / duration,  concurrency = rate · latency (loosely: the edges of the run).
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.perfmodel.law import Array
from services.tuner.sweeps.guidellm_json import (
    P95,
    TABLE_MARK,
    arrival_scv,
    clients,
    percentile,
    table_points,
)
from services.tuner.sweeps.sweep import LoadPoint, SweepRefused, as_number

_MS = 1e-3
_FIXED = ("Strategy", "Duration", "Successful")
_MOST_STATUSES = 3
# Means of the metrics satisfy their relations exactly but for rounding and requests at the edges of the run.
_TOLERANCE = 0.02
_BLOCK = re.compile(r"\s*\[.*\]\s*", re.DOTALL)


@dataclass(frozen=True)
class _Block:
    """Four columns of one metric and status; `at` is the column of the mean."""

    at: int
    mean: float
    sd: float
    percentiles: str


@dataclass(frozen=True)
class _Blocks:
    """The successful block of each metric that is needed, in the order of the columns."""

    latency: _Block
    iterations: _Block
    ttft: _Block
    tpot: _Block
    itl: _Block
    rate: _Block
    concurrency: _Block
    input: _Block
    output: _Block
    total: _Block


_METRICS = len(fields(_Blocks))


class _Means(NamedTuple):
    """The means of the same blocks in every reading, each of shape (readings,)."""

    latency: Array
    iterations: Array
    ttft: Array
    tpot: Array
    itl: Array
    rate: Array
    concurrency: Array
    input: Array
    output: Array
    total: Array


def points(file: Path, text: str) -> list[LoadPoint]:
    """The points of a CSV file.

    Raises SweepRefused naming the file, and the row and field where one is missing or no number.
    """
    csv.field_size_limit(2**30)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise SweepRefused(f"{file}: is not CSV: {error}") from None
    if rows and TABLE_MARK in rows[0]:
        return table_points(file, [dict(zip(rows[0], row, strict=False)) for row in rows[1:]])
    if len(rows) < 4 or "Run Info" not in rows[0] or "Request Latency" not in rows[0]:
        shown = ", ".join(rows[0][:4])[:60] if rows else "nothing"
        raise SweepRefused(f"{file}: begins with {shown!r}, expected the header of a GuideLLM CSV and a row")
    if missing := [name for name in _FIXED if name not in rows[1]]:
        raise SweepRefused(
            f"{file}: header lacks {', '.join(missing)}, expected the header of a GuideLLM CSV"
        )
    return [_point(file, row, rows[:2], cells) for row, cells in enumerate(rows[3:], start=1)]


def _point(file: Path, row: int, header: Sequence[Sequence[str]], cells: Sequence[str]) -> LoadPoint:
    def fixed(name: str) -> str:
        at = header[1].index(name)
        if at >= len(cells):
            raise SweepRefused(f"{file}: row {row}: {name} is missing: the row has {len(cells)} columns")
        return cells[at]

    kind = fixed("Strategy")
    requests = as_number(file, row, "Successful", fixed("Successful"))
    duration_s = as_number(file, row, "Duration", fixed("Duration"))
    found = _blocks(file, row, cells, header[0].index("Request Latency"), requests, duration_s)

    def p95(field: str, block: _Block) -> float:
        return percentile(file, row, f"{field} percentiles", block.percentiles, P95) * _MS

    return LoadPoint(
        row=row,
        label=kind,
        rate_rps=found.rate.mean,
        input_tokens=found.input.mean,
        output_tokens=found.output.mean,
        input_tokens_sd=found.input.sd,
        output_tokens_sd=found.output.sd,
        ttft_s=found.ttft.mean * _MS,
        itl_s=found.itl.mean * _MS,
        ttft_p95_s=p95("Time to First Token", found.ttft),
        itl_p95_s=p95("Inter Token Latency", found.itl),
        concurrency=found.concurrency.mean,
        duration_s=duration_s,
        requests=requests,
        clients=clients(kind, found.concurrency.mean),
        arrival_scv=arrival_scv(file, row, kind),
    )


def _blocks(
    file: Path, row: int, cells: Sequence[str], first: int, requests: float, duration_s: float
) -> _Blocks:
    held = list(_cut(file, row, cells, first))
    choices = _choices()
    choices = choices[choices[:, -1] < len(held)]
    means = np.array([block.mean for block in held])
    misfits = _misfits(_Means(*means[choices].T), requests, duration_s)
    if not len(misfits) or not misfits.min() < _TOLERANCE:
        raise SweepRefused(
            f"{file}: row {row}: no reading of its {len(cells)} columns makes TPOT = latency / output tokens and "
            "ITL = (latency - TTFT) / (output tokens - 1), expected GuideLLM's order of metrics"
        )
    return _Blocks(*(held[place] for place in choices[misfits.argmin()]))


def _cut(file: Path, row: int, cells: Sequence[str], first: int) -> Iterator[_Block]:
    """The blocks of a row from its first metric on, while there are any."""
    for at in itertools.count(first, 4):
        if at + 3 >= len(cells) or not _BLOCK.fullmatch(cells[at + 3]):
            return
        mean = as_number(file, row, f"column {at + 1}", cells[at])
        yield _Block(at, mean, as_number(file, row, f"column {at + 3}", cells[at + 2]), cells[at + 3])


@cache
def _choices() -> NDArray[np.int64]:
    """Every reading in which each metric has one to three blocks: a row of where the successful ones are."""
    gaps = np.indices((_MOST_STATUSES,) * (_METRICS - 1)).reshape(_METRICS - 1, -1).T + 1
    return np.cumsum(np.pad(gaps, ((0, 0), (1, 0))), axis=1)


def _misfits(means: _Means, requests: float, duration_s: float) -> Array:
    """Largest relative distance of the means from what they must satisfy together, by reading."""
    if duration_s <= 0:
        return np.full(len(means.latency), np.inf)
    latency_ms, output, rate = means.latency / _MS, means.output, means.rate
    with np.errstate(divide="ignore", invalid="ignore"):
        # One request more or less is at the edge of the run, and concurrency holds what had not ended.
        rates = np.maximum(0.0, np.abs(rate * duration_s - requests) - 2.0) / max(requests, 1.0)
        in_flight = np.abs(means.concurrency / (rate * means.latency) - 1.0) / 20.0
        tokens = np.abs((means.input + output) / np.maximum(means.total, 1e-9) - 1.0)
        tpot = np.abs(means.tpot * output / latency_ms - 1.0)
        decode_ms = latency_ms - means.ttft
        itl = np.where(decode_ms > 0, np.abs(means.itl * (output - 1.0) / decode_ms - 1.0), np.inf)
        # Corrupt, and refused by name when the point is checked; it must not make the row unreadable.
        itl = np.where(means.ttft <= 0, 0.0, itl)
        furthest = np.max([tpot, itl, tokens, rates, in_flight], axis=0)
    possible = (output > 1) & (latency_ms > 0) & (rate > 0) & ~np.isnan(furthest)
    return np.where(possible, furthest, np.inf)
