"""Prometheus text of replicas, by default in the names of vLLM, and of the gateways.

Written by hand, with the label strings kept, because a fleet's page is rendered at every scrape. What vLLM
calls inter-token latency is one observation for each token after a request's first.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

from services.simulator.histogram import Histogram
from services.simulator.naming import Names
from services.simulator.replica import Engine
from services.simulator.server import Pod, Server

CONTENT_TYPE = "text/plain; version=0.0.4"
BLOCK_TOKENS = 16


class Scalar(NamedTuple):
    """A counter or gauge of an engine; None where the engine has no such thing."""

    name: str
    kind: str
    help: str
    value: Callable[[Engine], float | None]
    extra_labels: str = ""


class Distribution(NamedTuple):
    """A histogram of an engine."""

    name: str
    help: str
    value: Callable[[Engine], Histogram]


def _kv_usage(engine: Engine) -> float | None:
    limit = engine.parameters.kv_tokens
    return None if limit is None else engine.kv_tokens_used / limit


SCALARS = (
    Scalar("vllm:num_requests_running", "gauge", "Requests in execution batches.", lambda e: e.running),
    Scalar("vllm:num_requests_waiting", "gauge", "Requests waiting.", lambda e: len(e.waiting)),
    Scalar("vllm:kv_cache_usage_perc", "gauge", "KV cache usage, 1 means all of it.", _kv_usage),
    Scalar(
        "vllm:request_success_total",
        "counter",
        "Requests completed.",
        lambda e: e.requests_total,
        ',finished_reason="stop"',
    ),
    Scalar(
        "vllm:prompt_tokens_total", "counter", "Prompt tokens processed.", lambda e: e.prompt_tokens_total
    ),
    Scalar(
        "vllm:generation_tokens_total", "counter", "Tokens generated.", lambda e: e.generation_tokens_total
    ),
)
DISTRIBUTIONS = (
    Distribution("vllm:time_to_first_token_seconds", "Time to first token.", lambda e: e.ttft),
    Distribution("vllm:inter_token_latency_seconds", "Gap between two tokens.", lambda e: e.itl),
    Distribution(
        "vllm:request_time_per_output_token_seconds",
        "Mean gap between the tokens of a request.",
        lambda e: e.time_per_output_token,
    ),
    Distribution("vllm:e2e_request_latency_seconds", "Time in the engine.", lambda e: e.e2e_latency),
    Distribution("vllm:request_queue_time_seconds", "Time waiting for admission.", lambda e: e.queue_time),
)
GATEWAY: tuple[tuple[str, str, str, Callable[[Server], int]], ...] = (
    ("stoker_gateway_requests_total", "counter", "Requests that arrived.", lambda s: s.requests_total),
    ("stoker_gateway_rejected_total", "counter", "Requests too long to serve.", lambda s: s.rejected_total),
    ("stoker_gateway_queue", "gauge", "Requests waiting for a ready replica.", lambda s: len(s.queue)),
)


def render(
    pods: Sequence[Pod], servers: Iterable[Server], now_s: float, names: Names = MappingProxyType({})
) -> str:
    """The page of some replicas and gateways as of `now_s` (Unix seconds), under other names where given."""
    lines: list[str] = []
    if pods:
        _add_replicas(lines, pods, names)
    if servers := list(servers):
        for own_name, kind, text, value in GATEWAY:
            name = names.get(own_name, own_name)
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
            lines += [f"{name}{{{_gateway_labels(s.name, s.model)}}} {value(s)}" for s in servers]
    lines += (
        "# HELP stoker_simulated_clock_seconds Simulated time of this page, Unix seconds.",
        "# TYPE stoker_simulated_clock_seconds gauge",
        f"stoker_simulated_clock_seconds {now_s!r}",
        "",
    )
    return "\n".join(lines)


def _add_replicas(lines: list[str], pods: Sequence[Pod], names: Names) -> None:
    labelled = [(pod.engine, *_labels(pod)) for pod in pods]
    for scalar in SCALARS:
        if (name := names.get(scalar.name, scalar.name)) is None:
            continue
        lines += (f"# HELP {name} {scalar.help}", f"# TYPE {name} {scalar.kind}")
        for engine, model, labels in labelled:
            if (number := scalar.value(engine)) is not None:
                lines.append(f"{name}{{{model}{labels}{scalar.extra_labels}}} {number}")
    for distribution in DISTRIBUTIONS:
        if (name := names.get(distribution.name, distribution.name)) is None:
            continue
        lines += (f"# HELP {name} {distribution.help}", f"# TYPE {name} histogram")
        for engine, model, labels in labelled:
            histogram = distribution.value(engine)
            keys = _histogram_keys(name, model + labels, histogram.edges)
            numbers = list(accumulate(histogram.counts))
            lines += [f"{key}{number}" for key, number in zip(keys, numbers, strict=False)]
            lines += (f"{keys[-2]}{numbers[-1]}", f"{keys[-1]}{histogram.sum!r}")
    if names.get("vllm:cache_config_info", "") is None:
        return
    lines += (
        "# HELP vllm:cache_config_info Information of the cache configuration.",
        "# TYPE vllm:cache_config_info gauge",
    )
    for engine, _, labels in labelled:
        if (limit := engine.parameters.kv_tokens) is not None:
            blocks = f'block_size="{BLOCK_TOKENS}",num_gpu_blocks="{limit // BLOCK_TOKENS}"'
            lines.append(f"vllm:cache_config_info{{{blocks},{labels}}} 1")


def _labels(pod: Pod) -> tuple[str, str]:
    return _label_strings(pod.server.model, pod.server.name, pod.name, pod.variant.accelerator)


@lru_cache(maxsize=8192)
def _label_strings(model: str, server: str, pod: str, accelerator: str) -> tuple[str, str]:
    """The label of the model, with a comma, and the labels that say which replica it is."""
    where = f'server="{_escape(server)}",pod="{_escape(pod)}",accelerator="{_escape(accelerator)}"'
    return f'model_name="{_escape(model)}",', where


@lru_cache(maxsize=8192)
def _histogram_keys(name: str, labels: str, edges: tuple[float, ...]) -> list[str]:
    """Everything left of the numbers: a line per bucket, then the count's and the sum's."""
    buckets = [f'{name}_bucket{{{labels},le="{edge!r}"}} ' for edge in edges]
    ends = [f'{name}_bucket{{{labels},le="+Inf"}} ', f"{name}_count{{{labels}}} ", f"{name}_sum{{{labels}}} "]
    return buckets + ends


@lru_cache(maxsize=1024)
def _gateway_labels(server: str, model: str) -> str:
    return f'model_name="{_escape(model)}",server="{_escape(server)}"'


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
