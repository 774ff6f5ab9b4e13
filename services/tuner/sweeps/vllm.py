"""vLLM's serving benchmark (`benchmark_serving.py`, `vllm bench serve`): one result, a list, or one per line."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.tuner.sweeps.sweep import LoadPoint, SweepRefused, as_number, number

MARK = "mean_ttft_ms"
_MS = 1e-3


def points(file: Path, records: Sequence[Mapping[str, Any]]) -> list[LoadPoint]:
    """The points of results, one for each.

    A request rate of inf is a closed loop of `max_concurrency` clients, or of all prompts at once; otherwise
    arrivals are gamma with shape `burstiness`, 1 being Poisson. Standard deviations of lengths need
    `--save-detailed`; the 95th percentiles need `--metric-percentiles`.

    Raises SweepRefused naming file, row and field where one is missing or no number.
    """
    return [_point(file, row, record) for row, record in enumerate(records, start=1)]


def _point(file: Path, row: int, record: Mapping[str, Any]) -> LoadPoint:
    def of(field: str) -> float:
        return number(file, row, record, field)

    def optional(field: str) -> float | None:
        return None if record.get(field) is None else of(field)

    completed, duration_s = of("completed"), of("duration")
    ttft_s, itl_s = of(MARK) * _MS, of("mean_itl_ms") * _MS
    output = of("total_output_tokens") / completed if completed else 0.0
    rate = completed / duration_s if duration_s > 0 else 0.0
    offered = of("request_rate")
    in_flight = rate * (ttft_s + (output - 1.0) * itl_s)
    closed = math.isinf(offered)
    limit = optional("max_concurrency")
    all_at_once = optional("num_prompts") or completed
    burstiness = optional("burstiness")
    if burstiness is not None and not burstiness > 0:
        raise SweepRefused(f"{file}: row {row}: burstiness is {burstiness:g}, expected a number above 0")
    ttft_p95, itl_p95 = optional("p95_ttft_ms"), optional("p95_itl_ms")
    return LoadPoint(
        row=row,
        label="closed loop" if closed else f"{offered:g}/s",
        rate_rps=rate,
        input_tokens=of("total_input_tokens") / completed if completed else 0.0,
        output_tokens=output,
        input_tokens_sd=_spread(file, row, record, "input_lens"),
        output_tokens_sd=_spread(file, row, record, "output_lens"),
        ttft_s=ttft_s,
        itl_s=itl_s,
        ttft_p95_s=None if ttft_p95 is None else ttft_p95 * _MS,
        itl_p95_s=None if itl_p95 is None else itl_p95 * _MS,
        concurrency=in_flight,
        duration_s=duration_s,
        requests=completed,
        clients=(all_at_once if limit is None else limit) if closed else None,
        arrival_scv=1.0 if burstiness is None else 1.0 / burstiness,
    )


def _spread(file: Path, row: int, record: Mapping[str, Any], field: str) -> float:
    """Standard deviation of the lengths of single requests where the result has them, else 0."""
    lengths = record.get(field)
    if not isinstance(lengths, Sequence) or isinstance(lengths, str) or not lengths:
        return 0.0
    numbers = [as_number(file, row, f"{field}.{i}", one) for i, one in enumerate(lengths)]
    # The row of a length that is no number is left out for its spread.
    return statistics.pstdev(numbers) if all(map(math.isfinite, numbers)) else math.nan
