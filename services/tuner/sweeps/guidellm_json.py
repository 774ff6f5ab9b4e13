"""GuideLLM's JSON: its own report, and its CSV turned into a list of rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.tuner.sweeps.sweep import LoadPoint, SweepRefused, as_number, number

TABLE_MARK = "Successful Time to first token ms mean"
_MS = 1e-3
_PERCENTILES = "[min, 0.1, 1, 5, 10, 25, 75, 90, 95, 99, max]"
P95 = 8


def points(file: Path, benchmarks: Any) -> list[LoadPoint]:
    """The points of a report's `benchmarks`, as written by GuideLLM 0.3 and later.

    Raises SweepRefused naming file, row and field where one is missing or no number.
    """
    if not isinstance(benchmarks, Sequence) or isinstance(benchmarks, str) or not benchmarks:
        raise SweepRefused(f"{file}: benchmarks is {str(benchmarks)[:60]!r}, expected a list of at least one")
    return [_point(file, row, record) for row, record in enumerate(benchmarks, start=1)]


def _point(file: Path, row: int, record: Any) -> LoadPoint:
    if not isinstance(record, Mapping):
        raise SweepRefused(f"{file}: row {row}: benchmarks is {record!r:.60}, expected an object")
    strategy = _strategy(file, row, record)
    kind = str(strategy.get("type_", "?"))

    def of(metric: str, statistic: str = "mean", status: str = "successful") -> float:
        return number(file, row, record, "metrics", metric, status, statistic)

    def p95(metric: str) -> float | None:
        held = record["metrics"][metric]["successful"].get("percentiles")
        path = ("metrics", metric, "successful", "percentiles", "p95")
        return number(file, row, record, *path) * _MS if held else None

    latency, rate = of("request_latency"), of("requests_per_second")
    requests = of("request_latency", "count")
    everyone = record["metrics"].get("request_concurrency")
    counts_all = isinstance(everyone, Mapping) and "total" in everyone
    concurrency = of("request_concurrency", status="total" if counts_all else "successful")
    return LoadPoint(
        row=row,
        label=kind,
        rate_rps=rate,
        input_tokens=of("prompt_token_count"),
        output_tokens=of("output_token_count"),
        input_tokens_sd=of("prompt_token_count", "std_dev"),
        output_tokens_sd=of("output_token_count", "std_dev"),
        ttft_s=of("time_to_first_token_ms") * _MS,
        itl_s=of("inter_token_latency_ms") * _MS,
        ttft_p95_s=p95("time_to_first_token_ms"),
        itl_p95_s=p95("inter_token_latency_ms"),
        concurrency=concurrency if concurrency > 0 else rate * latency,
        duration_s=_duration_s(file, row, record, requests, rate),
        requests=requests,
        clients=clients(kind, concurrency),
        arrival_scv=arrival_scv(file, row, kind),
    )


def _strategy(file: Path, row: int, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """0.3 keeps the strategy under `args`, later versions under `config`."""
    for holder in ("config", "args"):
        strategy = record.get(holder, {}).get("strategy") if isinstance(record.get(holder), Mapping) else None
        if isinstance(strategy, Mapping):
            return strategy
    raise SweepRefused(f"{file}: row {row}: args.strategy is missing, expected an object with type_ and rate")


def _duration_s(file: Path, row: int, record: Mapping[str, Any], requests: float, rate: float) -> float:
    if "duration" in record:
        return number(file, row, record, "duration")
    if "start_time" in record and "end_time" in record:
        return number(file, row, record, "end_time") - number(file, row, record, "start_time")
    return requests / rate if rate > 0 else 0.0


def table_points(file: Path, records: Sequence[Mapping[str, Any]]) -> list[LoadPoint]:
    """The points of GuideLLM 0.3's CSV turned into a list of objects, one for each row.

    Raises SweepRefused naming file, row and field where one is missing or no number.
    """
    found = []
    for row, record in enumerate(records, start=1):

        def of(field: str, row: int = row, record: Mapping[str, Any] = record) -> float:
            return number(file, row, record, field)

        kind = str(record.get("Name", "?"))
        in_flight = of("Total Request concurrency mean")
        found.append(
            LoadPoint(
                row=row,
                label=kind,
                rate_rps=of("Successful Requests per second mean"),
                input_tokens=of("Successful Prompt token count mean"),
                output_tokens=of("Successful Output token count mean"),
                input_tokens_sd=of("Successful Prompt token count std dev"),
                output_tokens_sd=of("Successful Output token count std dev"),
                ttft_s=of(TABLE_MARK) * _MS,
                itl_s=of("Successful Inter token latency ms mean") * _MS,
                ttft_p95_s=_listed_p95(file, row, record, "Successful Time to first token ms"),
                itl_p95_s=_listed_p95(file, row, record, "Successful Inter token latency ms"),
                concurrency=in_flight,
                duration_s=of("Duration"),
                requests=of("Successful Requests"),
                clients=clients(kind, in_flight),
                arrival_scv=arrival_scv(file, row, kind),
            )
        )
    return found


def _listed_p95(file: Path, row: int, record: Mapping[str, Any], metric: str) -> float | None:
    field = f"{metric} {_PERCENTILES}"
    return None if record.get(field) in (None, "") else percentile(file, row, field, record[field], P95) * _MS


def percentile(file: Path, row: int, field: str, value: Any, position: int) -> float:
    """One of the eleven percentiles that GuideLLM writes as the text of a list."""
    try:
        held = json.loads(value) if isinstance(value, str) else value
        return as_number(file, row, field, held[position])
    except (ValueError, TypeError, LookupError, RecursionError):
        raise SweepRefused(
            f"{file}: row {row}: {field} is {value!r:.60}, expected a list of eleven numbers"
        ) from None


def clients(kind: str, in_flight: float) -> float | None:
    """Requests that a strategy keeps in flight: one, or what was seen; None for arrivals of their own pace."""
    name = kind.partition("@")[0]
    if name == "synchronous":
        return 1.0
    return in_flight if name in ("throughput", "concurrent") else None


def arrival_scv(file: Path, row: int, kind: str) -> float:
    """Variability of the times between the arrivals of a strategy, which closed loops do not use.

    Raises SweepRefused for a strategy that is not known: its arrivals cannot be modelled.
    """
    known = {
        "synchronous": 0.0,
        "throughput": 0.0,
        "concurrent": 0.0,
        "constant": 0.0,
        "poisson": 1.0,
        "async": 1.0,
    }
    name = kind.partition("@")[0]
    if name not in known:
        raise SweepRefused(f"{file}: row {row}: strategy is {kind!r:.60}, expected one of {', '.join(known)}")
    return known[name]
