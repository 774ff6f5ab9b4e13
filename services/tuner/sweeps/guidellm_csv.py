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
from dataclasses import dataclass
from pathlib import Path

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
    best, misfit = None, _TOLERANCE
    for choice in _choices(held):
        distance = _misfit(choice, requests, duration_s)
        if distance < misfit:
            best, misfit = choice, distance
    if best is None:
        raise SweepRefused(
            f"{file}: row {row}: no reading of its {len(cells)} columns makes TPOT = latency / output tokens and "
            "ITL = (latency - TTFT) / (output tokens - 1), expected GuideLLM's order of metrics"
        )
    return best


def _cut(file: Path, row: int, cells: Sequence[str], first: int) -> Iterator[_Block]:
    """The blocks of a row from its first metric on, while there are any."""
    for at in itertools.count(first, 4):
        if at + 3 >= len(cells) or not _BLOCK.fullmatch(cells[at + 3]):
            return
        mean = as_number(file, row, f"column {at + 1}", cells[at])
        yield _Block(at, mean, as_number(file, row, f"column {at + 3}", cells[at + 2]), cells[at + 3])


def _choices(held: Sequence[_Block]) -> Iterator[_Blocks]:
    """Every reading in which each metric has one to three blocks."""
    metrics = 10
    steps = range(1, _MOST_STATUSES + 1)
    for gaps in itertools.product(steps, repeat=metrics - 1):
        places = [0, *itertools.accumulate(gaps)]
        if places[-1] < len(held):
            yield _Blocks(*(held[place] for place in places))


def _misfit(blocks: _Blocks, requests: float, duration_s: float) -> float:
    """Largest relative distance of the means from what they must satisfy together."""
    output, latency_ms = blocks.output.mean, blocks.latency.mean / _MS
    if output <= 1 or latency_ms <= 0 or duration_s <= 0 or blocks.rate.mean <= 0:
        return float("inf")
    # One request more or less is at the edge of the run, and concurrency holds what had not ended.
    rate = max(0.0, abs(blocks.rate.mean * duration_s - requests) - 2.0) / max(requests, 1.0)
    in_flight = abs(blocks.concurrency.mean / (blocks.rate.mean * blocks.latency.mean) - 1.0) / 20.0
    tokens = abs((blocks.input.mean + output) / max(blocks.total.mean, 1e-9) - 1.0)
    return max(
        abs(blocks.tpot.mean * output / latency_ms - 1.0), _itl_misfit(blocks), tokens, rate, in_flight
    )


def _itl_misfit(blocks: _Blocks) -> float:
    decode_ms = blocks.latency.mean / _MS - blocks.ttft.mean
    if blocks.ttft.mean <= 0:
        # Corrupt, and refused by name when the point is checked; it must not make the row unreadable.
        return 0.0
    if decode_ms <= 0:
        return float("inf")
    return abs(blocks.itl.mean * (blocks.output.mean - 1.0) / decode_ms - 1.0)
