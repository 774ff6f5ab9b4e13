"""GuideLLM's HTML report, whose data are JavaScript objects: `window.benchmarks`, `window.workloadDetails`.

It has no token means, strategy or duration by row. Outputs follow from the count of inter-token latencies, one
fewer than tokens; prompts and the spread of lengths are those of the whole sweep; the duration is requests over
rate. The report names the strategy of its first row: where that is synchronous it is a sweep, whose second row is
the throughput one and whose others arrive at a constant rate; otherwise all rows are of that strategy.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.tuner.sweeps.guidellm_json import arrival_scv, clients
from services.tuner.sweeps.sweep import LoadPoint, SweepRefused, number

MARK = "window.benchmarks"
_MS = 1e-3


def points(file: Path, text: str) -> list[LoadPoint]:
    """The points of a report.

    Raises SweepRefused naming the file, and the row and field where one is missing or no number.
    """
    benchmarks = _assigned(file, text, "benchmarks")
    details = _assigned(file, text, "workloadDetails")
    if not isinstance(benchmarks, list) or not benchmarks:
        raise SweepRefused(f"{file}: {MARK} is {benchmarks!r:.60}, expected a list of at least one object")
    if not isinstance(details, Mapping):
        raise SweepRefused(f"{file}: window.workloadDetails is {details!r:.60}, expected an object")
    first = str(details.get("rateType", "constant"))
    strategies = {1: "synchronous", 2: "throughput"} if first in ("synchronous", "sweep") else {}
    others = "constant" if strategies else first
    found = []
    for row, record in enumerate(benchmarks, start=1):
        if not isinstance(record, Mapping):
            raise SweepRefused(f"{file}: row {row}: {MARK} holds {record!r:.60}, expected an object")
        kind = strategies.get(row, others)
        found.append(_point(file, row, kind, record, details))
    return found


def _point(
    file: Path, row: int, kind: str, record: Mapping[str, Any], details: Mapping[str, Any]
) -> LoadPoint:
    def of(*path: str) -> float:
        return number(file, row, record, *path)

    def lengths(side: str, statistic: str) -> float:
        return number(file, row, details, side, "tokenDistributions", "statistics", statistic)

    def p95(metric: str) -> float | None:
        # Reports leave percentiles out where a row has very few requests.
        held = record[metric].get("percentiles")
        missing = not held or (isinstance(held, Mapping) and "p95" not in held)
        return None if missing else of(metric, "percentiles", "p95") * _MS

    rate, requests = of("requestsPerSecond"), of("timePerRequest", "count")
    output = of("itl", "count") / requests + 1.0 if requests > 0 else 0.0
    in_flight = rate * of("timePerRequest", "mean")
    return LoadPoint(
        row=row,
        label=kind,
        rate_rps=rate,
        input_tokens=lengths("prompts", "mean"),
        output_tokens=output,
        input_tokens_sd=lengths("prompts", "stdDev"),
        output_tokens_sd=lengths("generations", "stdDev"),
        ttft_s=of("ttft", "mean") * _MS,
        itl_s=of("itl", "mean") * _MS,
        ttft_p95_s=p95("ttft"),
        itl_p95_s=p95("itl"),
        concurrency=in_flight,
        duration_s=requests / rate if rate > 0 else 0.0,
        requests=requests,
        clients=clients(kind, in_flight),
        arrival_scv=arrival_scv(file, row, kind),
    )


def _assigned(file: Path, text: str, name: str) -> Any:
    found = re.search(rf"window\.{name}\s*=\s*", text)
    if found is None:
        raise SweepRefused(f"{file}: window.{name} is missing, expected a GuideLLM HTML report")
    try:
        return json.JSONDecoder().raw_decode(text, found.end())[0]
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {text.count(chr(10), 0, found.end()) + 1}"
        raise SweepRefused(f"{file}: {where}: window.{name} is not JSON: {error}"[:300]) from None
