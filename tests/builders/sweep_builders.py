"""Benchmark sweeps of an engine whose parameters are known, and files in the formats of the tools.

The truth is computed here one load at a time with scalar arithmetic from the equations of the specification, apart
from the trainer's code: bisection finds the fixed point that the trainer solves in another way.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.tuner.sweeps.sweep import LoadPoint, Sweep

TRUTH = {
    "a_s": 7e-3,
    "b_p_s": 2e-5,
    "b_d_s": 3e-5,
    "g_s": 4e-8,
    "q_s": 1.5e-9,
    "h_s": 6e-3,
    "r": 0.9,
}
SHAPES = ((64, 64), (64, 1024), (1024, 64), (1024, 1024), (4096, 256), (256, 4096))
# Runs so long that their edges do not matter.
LONG_S = 1e7
PERCENTILES = "[min, 0.1, 1, 5, 10, 25, 75, 90, 95, 99, max]"


def counted(arrivals: float) -> tuple[float, float]:
    """Prefills that an arrival finds in progress and others that share its own, at a constant rate, by counting.

    Time is in gaps, the arrival at 0, iterations last `arrivals` gaps and the one in progress began at −age. Those
    who came in the iteration before that are in prefill now; those who come in it share the next.
    """
    ages = arrivals * (np.arange(10_000) + 0.5) / 10_000
    reach = int(2 * arrivals) + 2
    others = np.concatenate([np.arange(-reach, 0), np.arange(1, reach)])[:, None]
    met = (others >= -ages - arrivals) & (others < -ages)
    shared = (others >= -ages) & (others < arrivals - ages)
    return float(met.sum(axis=0).mean()), float(shared.sum(axis=0).mean())


@dataclass(frozen=True)
class Engine:
    """The seven-parameter law as plain numbers."""

    values: Mapping[str, float]

    def work(self, prompt: float, output: float) -> tuple[float, float]:
        """Seconds of decode per iteration and of prefill, (d, p)."""
        v = self.values
        return v["b_d_s"] + v["g_s"] * (prompt + output / 2), v["b_p_s"] * prompt + v["q_s"] * prompt**2

    def iteration(self, rate: float, prompt: float, output: float) -> float:
        """The T with T = a + λKT·d + λT·p, by bisection."""
        d, p = self.work(prompt, output)
        low, high = self.values["a_s"], 1e3
        for _ in range(200):
            middle = (low + high) / 2
            wanted = self.values["a_s"] + rate * output * middle * d + rate * middle * p
            low, high = (middle, high) if wanted > middle else (low, middle)
        return low

    def point(self, row: int, rate: float, prompt: float, output: float, scv: float = 1.0) -> LoadPoint:
        """An open load of Poisson arrivals (scv 1) or at a constant rate (scv 0)."""
        v = self.values
        d, p = self.work(prompt, output)
        t = self.iteration(rate, prompt, output)
        n = rate * output * t
        met, shared = (rate * t, rate * t) if scv == 1.0 else counted(rate * t)
        residual = v["r"] * (v["a_s"] + n * d + met * p) * (1 - np.exp(-n))
        ttft = v["h_s"] + residual + v["a_s"] + n * d + (1 + shared) * p
        return self._made(row, f"constant@{rate:.2f}", rate, prompt, output, (float(ttft), t, n), scv)

    def alone(self, row: int, prompt: float, output: float) -> LoadPoint:
        """One client that sends its next request when the last is answered."""
        v = self.values
        d, p = self.work(prompt, output)
        ttft, itl = v["h_s"] + v["a_s"] + p, v["a_s"] + d
        rate = 1.0 / (ttft + (output - 1) * itl)
        made = self._made(row, "synchronous", rate, prompt, output, (ttft, itl, 1.0), 0.0)
        return replace(made, clients=1.0)

    @staticmethod
    def _made(
        row: int,
        label: str,
        rate: float,
        prompt: float,
        output: float,
        seen: tuple[float, float, float],
        scv: float,
    ) -> LoadPoint:
        ttft, itl, in_flight = seen
        return LoadPoint(
            row=row,
            label=label,
            rate_rps=rate,
            input_tokens=float(prompt),
            output_tokens=float(output),
            ttft_s=ttft,
            itl_s=itl,
            ttft_p95_s=1.2 * ttft,
            itl_p95_s=1.1 * itl,
            concurrency=in_flight,
            duration_s=LONG_S,
            requests=rate * LONG_S,
            arrival_scv=scv,
        )


def sweep(
    shape: tuple[int, int],
    values: Mapping[str, float] = TRUTH,
    scv: float = 1.0,
    noise: float = 0.0,
    seed: int = 1,
) -> Sweep:
    """One synchronous point and six open loads from 10 to 75 % of the capacity, with relative noise."""
    engine = Engine(values)
    prompt, output = shape
    d, p = engine.work(prompt, output)
    capacity = 1.0 / (output * (d + p / output))
    points = [engine.alone(1, prompt, output)]
    points += [
        engine.point(2 + i, share * capacity, prompt, output, scv)
        for i, share in enumerate(np.linspace(0.1, 0.75, 6))
    ]
    rng = np.random.default_rng([seed, prompt, output])
    shaken = [
        replace(
            point,
            ttft_s=point.ttft_s * float(np.exp(noise * rng.standard_normal())),
            itl_s=point.itl_s * float(np.exp(noise * rng.standard_normal())),
        )
        for point in points
    ]
    return Sweep(f"i{prompt}-o{output}", tuple(shaken), ())


def table_record(point: LoadPoint) -> dict[str, Any]:
    """A row of GuideLLM 0.3's CSV as an object."""

    def listed(p95: float | None) -> str:
        return json.dumps([1.0] * 8 + [(p95 or 0.0) * 1e3] + [2.0] * 2)

    return {
        "Name": point.label,
        "Duration": point.duration_s,
        "Successful Requests": point.requests,
        "Successful Requests per second mean": point.rate_rps,
        "Total Request concurrency mean": point.concurrency,
        "Successful Prompt token count mean": point.input_tokens,
        "Successful Prompt token count std dev": point.input_tokens_sd,
        "Successful Output token count mean": point.output_tokens,
        "Successful Output token count std dev": point.output_tokens_sd,
        "Successful Time to first token ms mean": point.ttft_s * 1e3,
        f"Successful Time to first token ms {PERCENTILES}": listed(point.ttft_p95_s),
        "Successful Inter token latency ms mean": point.itl_s * 1e3,
        f"Successful Inter token latency ms {PERCENTILES}": listed(point.itl_p95_s),
    }


def report_record(point: LoadPoint, holder: str = "args") -> dict[str, Any]:
    """A benchmark of GuideLLM's JSON report."""

    def metric(mean: float, sd: float = 0.0, p95: float = 0.0) -> dict[str, Any]:
        return {
            "successful": {"mean": mean, "std_dev": sd, "count": point.requests, "percentiles": {"p95": p95}}
        }

    return {
        holder: {"strategy": {"type_": point.label.partition("@")[0], "rate": point.rate_rps}},
        "duration": point.duration_s,
        "metrics": {
            "requests_per_second": metric(point.rate_rps),
            "request_concurrency": metric(point.concurrency),
            "request_latency": metric(point.latency_s),
            "prompt_token_count": metric(point.input_tokens, point.input_tokens_sd),
            "output_token_count": metric(point.output_tokens, point.output_tokens_sd),
            "time_to_first_token_ms": metric(point.ttft_s * 1e3, 0.0, (point.ttft_p95_s or 0) * 1e3),
            "inter_token_latency_ms": metric(point.itl_s * 1e3, 0.0, (point.itl_p95_s or 0) * 1e3),
        },
    }


def html_report(points: Sequence[LoadPoint]) -> str:
    """GuideLLM's HTML: a page around two JavaScript objects."""
    side = {"tokenDistributions": {"statistics": {"mean": points[0].input_tokens, "stdDev": 0.0}}}
    benchmarks = [
        {
            "requestsPerSecond": point.rate_rps,
            "itl": _html_metric(point.itl_s, point.itl_p95_s, point.requests * (point.output_tokens - 1)),
            "ttft": _html_metric(point.ttft_s, point.ttft_p95_s, point.requests),
            "timePerRequest": {"mean": point.latency_s, "count": point.requests},
        }
        for point in points
    ]
    details = {"prompts": side, "generations": side, "rateType": "synchronous"}
    return (
        "<!DOCTYPE html><html><script>"
        f"window.runInfo = {{}};\nwindow.workloadDetails = {json.dumps(details)};\n"
        f"window.benchmarks = {json.dumps(benchmarks)};</script></html>"
    )


def _html_metric(mean_s: float, p95_s: float | None, count: float) -> dict[str, Any]:
    percentiles = {} if p95_s is None else {"p95": p95_s * 1e3}
    return {"mean": mean_s * 1e3, "count": count, "percentiles": percentiles}


def vllm_record(point: LoadPoint) -> dict[str, Any]:
    """A result of vLLM's serving benchmark with `--metric-percentiles 95`."""
    return {
        "backend": "vllm",
        "request_rate": "inf" if point.clients else point.rate_rps,
        "max_concurrency": point.clients,
        "burstiness": 1.0,
        "num_prompts": point.requests,
        "duration": point.duration_s,
        "completed": point.requests,
        "total_input_tokens": point.input_tokens * point.requests,
        "total_output_tokens": point.output_tokens * point.requests,
        "mean_ttft_ms": point.ttft_s * 1e3,
        "p95_ttft_ms": (point.ttft_p95_s or 0) * 1e3,
        "mean_itl_ms": point.itl_s * 1e3,
        "p95_itl_ms": (point.itl_p95_s or 0) * 1e3,
    }


def write_csv(file: Path, points: Sequence[LoadPoint], statuses: Sequence[Sequence[int]]) -> None:
    """GuideLLM 0.5's CSV; `statuses[row][metric]` is how many statuses that row has for a metric.

    The header is that of the first row, as the tool writes it, so rows with more statuses do not fit it.
    """
    metrics = (
        ("Request Latency", "Sec"),
        ("Streaming Iterations", "Count"),
        ("Time to First Token", "ms"),
        ("Time per Output Token", "ms"),
        ("Inter Token Latency", "ms"),
        ("Server Throughput", "Requests/Sec"),
        ("Server Throughput", "Concurrency"),
        ("Token Metrics", "Input Tokens"),
        ("Token Metrics", "Output Tokens"),
        ("Token Metrics", "Total Tokens"),
        ("Token Throughput", "Input Tokens/Sec"),
    )
    fixed = (("Run Info", "Run ID"), ("Benchmark", "Strategy"), ("Timings", "Duration"))
    header = [(*name, "") for name in (*fixed, ("Request Counts", "Successful"))]
    for (group, name), count in zip(metrics, statuses[0], strict=True):
        for status in ("Successful", "Incomplete", "Errored")[:count]:
            header += [(group, f"{status} {name}", s) for s in ("Mean", "Median", "Std Dev", "Percentiles")]
    header.append(("Runtime Info", "Metadata", ""))
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerows(zip(*header, strict=True))
        for point, counts in zip(points, statuses, strict=True):
            cells: list[Any] = ["id", point.label.partition("@")[0], point.duration_s, point.requests]
            for (mean, sd, p95), count in zip(_csv_values(point), counts, strict=True):
                for factor in (1.0, 0.37, 1.9)[:count]:
                    listed = json.dumps([mean] * 8 + [p95 * factor] + [mean] * 2)
                    cells += [mean * factor, mean, sd, listed]
            writer.writerow([*cells, json.dumps({"guidellm_version": "0.5.3"})])


def _csv_values(point: LoadPoint) -> list[tuple[float, float, float]]:
    latency = max(point.ttft_s, 0.0) + (point.output_tokens - 1) * point.itl_s
    return [
        (latency, 0.0, latency),
        (2 * point.output_tokens, 0.0, 0.0),
        (point.ttft_s * 1e3, 0.0, (point.ttft_p95_s or 0) * 1e3),
        (latency * 1e3 / point.output_tokens, 0.0, 0.0),
        (point.itl_s * 1e3, 0.0, (point.itl_p95_s or 0) * 1e3),
        (point.rate_rps, 0.0, 0.0),
        (point.rate_rps * latency, 0.0, 0.0),
        (point.input_tokens, point.input_tokens_sd, 0.0),
        (point.output_tokens, point.output_tokens_sd, 0.0),
        (point.input_tokens + point.output_tokens, 0.0, 0.0),
        (point.input_tokens * point.rate_rps, 0.0, 0.0),
    ]
