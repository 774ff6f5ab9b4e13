"""From time series, however they were had, to readings: which name holds which figure, which label whom."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, isnan

from pydantic import BaseModel, ConfigDict

from schemas.alert import AlertKind
from services.collector.source import GatewayReading, HistogramReading, Problem, ReplicaReading

LISTED = 12


class Labels(BaseModel):
    """Which label names whom."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    server: str = "server"
    """Label that holds the server's name as the fleet declares it."""
    replica: str = "pod"
    """Label that holds the replica's name; the inventory must use the same names."""
    accelerator: str = "accelerator"
    """Label that holds the accelerator's name; where it is absent the inventory says it."""
    gateway: str | None = None
    """Label that holds the server's name on a gateway's series, such as target_model_name; `server` if absent."""


class MetricNames(BaseModel):
    """Where each figure is found: metric names in order of preference, the first that a replica has wins.

    Engines have renamed their metrics over time, so a fleet in mid-upgrade shows several names at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    completed: tuple[str, ...] = (
        "vllm:request_success_total",
        "vllm:e2e_request_latency_seconds_count",
        "sglang:num_requests_total",
        "sglang:e2e_request_latency_seconds_count",
    )
    """Counter of finished requests."""
    input_tokens: tuple[str, ...] = (
        "vllm:prompt_tokens_total",
        "vllm:request_prompt_tokens_sum",
        "sglang:prompt_tokens_total",
    )
    """Counter of prompt tokens computed."""
    output_tokens: tuple[str, ...] = (
        "vllm:generation_tokens_total",
        "vllm:request_generation_tokens_sum",
        "sglang:generation_tokens_total",
    )
    """Counter of tokens generated."""
    running: tuple[str, ...] = ("vllm:num_requests_running", "sglang:num_running_reqs")
    """Gauge of requests in the batch."""
    waiting: tuple[str, ...] = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
    """Gauge of requests that wait in the engine."""
    kv_used_share: tuple[str, ...] = (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
    )
    """Gauge of the KV cache in use, 0 to 1 in spite of the name; optional."""
    ttft: tuple[str, ...] = ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds")
    """Histogram of the time to first token, seconds."""
    itl: tuple[str, ...] = (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "vllm:request_time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds",
    )
    """Histogram of the inter-token latency, seconds."""
    gateway_requests: tuple[str, ...] = (
        "stoker_gateway_requests_total",
        "llm_d_epp_request_total",
        "inference_objective_request_total",
        "inference_model_request_total",
    )
    """Counter of requests that reached the gateway, by server; optional."""
    gateway_waiting: tuple[str, ...] = (
        "stoker_gateway_queue",
        "llm_d_epp_flow_control_queue_size",
        "inference_extension_flow_control_queue_size",
    )
    """Gauge of requests that wait at the gateway, by server; optional."""

    def scalars(self) -> dict[str, str]:
        """Figure by the name of its series, for counters and gauges."""
        return {name: figure for figure in SCALARS for name in getattr(self, figure)}

    def histograms(self) -> dict[str, str]:
        """Figure by metric name, for histograms."""
        return {name: figure for figure in HISTOGRAMS for name in getattr(self, figure)}

    def series(self) -> frozenset[str]:
        """Every series that is read."""
        buckets = {f"{name}_{part}" for name in self.histograms() for part in ("bucket", "sum", "count")}
        return frozenset(buckets | self.scalars().keys())


GATEWAY = ("gateway_requests", "gateway_waiting")
OPTIONAL = ("kv_used_share", *GATEWAY)
SCALARS = ("completed", "input_tokens", "output_tokens", "running", "waiting", "kv_used_share", *GATEWAY)
HISTOGRAMS = ("ttft", "itl")
_PART = re.compile(r"(.+)_(bucket|sum|count)")


@dataclass(frozen=True, slots=True)
class Series:
    """One series at one moment; `sampled_at_s` is control time, None when the sample's time is not known.

    `value` is None where only that time is told.
    """

    name: str
    labels: Mapping[str, str]
    value: float | None
    sampled_at_s: float | None


@dataclass(frozen=True, slots=True)
class Assembled:
    """Readings made of series, and what was missing."""

    replicas: tuple[ReplicaReading, ...]
    gateways: tuple[GatewayReading, ...]
    problems: tuple[Problem, ...]


@dataclass(slots=True)
class _Gathered:
    """The series of one replica, or of one gateway, summed by name over an engine's own labels."""

    sampled_at_s: float | None = None
    accelerator: str | None = None
    scalars: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    buckets: dict[str, dict[float, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def figure(self, names: Iterable[str]) -> float | None:
        values = next((self.scalars[name] for name in names if name in self.scalars), None)
        return None if values is None else sum(values)

    def histogram(self, names: Iterable[str]) -> HistogramReading | None:
        for name in names:
            buckets = self.buckets.get(name)
            if buckets is None or inf not in buckets or name not in self.sums:
                continue
            edges = sorted(buckets)
            return HistogramReading(
                tuple(edges[:-1]), tuple(buckets[edge] for edge in edges), self.sums[name]
            )
        return None


def assemble(source: str, series: Iterable[Series], labels: Labels, names: MetricNames) -> Assembled:
    """Sort series into one reading for each replica and each gateway.

    Parameters: source, the name that problems are reported under; series, whose names outside of `names` are
    ignored. A series without the labels that say whom it belongs to is a problem, as is a figure that no
    series holds, unless it is optional.
    """
    scalars, histograms = names.scalars(), names.histograms()
    replicas: dict[tuple[str, str], _Gathered] = defaultdict(_Gathered)
    gateways: dict[str, _Gathered] = defaultdict(_Gathered)
    seen: set[str] = set()
    unlabelled: dict[str, set[str]] = defaultdict(set)
    for one in series:
        figure = scalars.get(one.name)
        part = None if figure else _PART.fullmatch(one.name)
        metric = part[1] if part else one.name
        figure = figure or histograms.get(metric)
        value = one.value
        if figure is None or (value is not None and not (isfinite(value) and value >= 0)):
            continue
        of_gateway = figure in GATEWAY
        server = one.labels.get((of_gateway and labels.gateway) or labels.server)
        replica = one.labels.get(labels.replica)
        if not server or not (replica or of_gateway):
            unlabelled[one.name].update(one.labels)
            continue
        into = gateways[server] if of_gateway else replicas[server, replica or ""]
        into.accelerator = one.labels.get(labels.accelerator) or into.accelerator
        if one.sampled_at_s is not None:
            into.sampled_at_s = max(one.sampled_at_s, into.sampled_at_s or 0.0)
        if value is None:
            continue
        seen.add(figure)
        if part is None:
            into.scalars[one.name].append(value)
        elif part[2] == "sum":
            into.sums[metric] += value
        elif part[2] == "bucket" and (edge := _edge(one.labels.get("le", ""))) is not None:
            into.buckets[metric][edge] += value
    return Assembled(
        tuple(
            _replica(key, one, names) for key, one in sorted(replicas.items()) if one.sampled_at_s is not None
        ),
        tuple(
            _gateway(key, one, names) for key, one in sorted(gateways.items()) if one.sampled_at_s is not None
        ),
        tuple(_problems(source, seen, unlabelled, labels, names)),
    )


def _replica(key: tuple[str, str], one: _Gathered, names: MetricNames) -> ReplicaReading:
    kv = next((one.scalars[name] for name in names.kv_used_share if name in one.scalars), None)
    return ReplicaReading(
        server=key[0],
        replica=key[1],
        sampled_at_s=one.sampled_at_s or 0.0,
        accelerator=one.accelerator,
        completed=one.figure(names.completed),
        input_tokens=one.figure(names.input_tokens),
        output_tokens=one.figure(names.output_tokens),
        ttft=one.histogram(names.ttft),
        itl=one.histogram(names.itl),
        running=one.figure(names.running),
        waiting=one.figure(names.waiting),
        kv_used_share=None if kv is None else sum(kv) / len(kv),
    )


def _gateway(server: str, one: _Gathered, names: MetricNames) -> GatewayReading:
    return GatewayReading(
        server=server,
        sampled_at_s=one.sampled_at_s or 0.0,
        requests=one.figure(names.gateway_requests),
        waiting=one.figure(names.gateway_waiting),
    )


def _edge(text: str) -> float | None:
    try:
        return None if isnan(edge := float(text)) else edge
    except ValueError:
        return None


def _problems(
    source: str, seen: set[str], unlabelled: Mapping[str, set[str]], labels: Labels, names: MetricNames
) -> Iterable[Problem]:
    if unlabelled:
        found = sorted(set().union(*unlabelled.values()))
        yield Problem(
            AlertKind.NO_SERIES,
            f"{source} labels",
            f"{listed(sorted(unlabelled))}: series lack the label {labels.server!r} (server) or "
            f"{labels.replica!r} (replica); labels that exist: {listed(found)}",
        )
    absent = [
        f"{figure} ({' or '.join(getattr(names, figure))})"
        for figure in (*SCALARS, *HISTOGRAMS)
        if figure not in seen and figure not in OPTIONAL
    ]
    if absent:
        yield Problem(AlertKind.NO_SERIES, source, f"no series matches {'; '.join(absent)}")


def listed(names: list[str]) -> str:
    """Names for a message, cut short."""
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + rest
