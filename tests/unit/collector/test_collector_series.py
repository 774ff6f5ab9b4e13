"""From the text of a page to readings; the parser against the one of prometheus_client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from schemas.alert import AlertKind
from services.collector.exposition import Malformed, parse
from services.collector.series import Labels, MetricNames, Series, assemble
from services.collector.source import HistogramReading

WANTED = frozenset({"requests_total", "running", "latency_bucket", "latency_sum", "latency_count"})


def page(labels: dict[str, str], value: float) -> str:
    registry = CollectorRegistry()
    Counter("requests", "A counter.", list(labels), registry=registry).labels(**labels).inc(abs(value))
    Gauge("running", "A gauge.", registry=registry).set(value)
    Gauge("unwanted", "Left out.", list(labels), registry=registry).labels(**labels).set(1)
    Histogram("latency", "Seconds.", list(labels), registry=registry).labels(**labels).observe(abs(value))
    return generate_latest(registry).decode()


@given(
    st.dictionaries(st.sampled_from(["server", "pod", "x"]), st.text(max_size=20), min_size=1),
    st.floats(allow_nan=False),
)
def test_the_parser_reads_what_the_library_reads(labels: dict[str, str], value: float) -> None:
    text = page(labels, value)
    reference = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in WANTED
    ]
    found = [(one.name, dict(one.labels), one.value) for one in parse(text, WANTED, 5.0, lambda s: s)]
    assert found == reference


def test_a_timestamp_is_mapped_to_control_time() -> None:
    found = parse('running{pod="a"} 3 1700000000500\nrunning 4\n', WANTED, 5.0, lambda wall_s: wall_s - 1.7e9)
    assert [(one.value, one.sampled_at_s) for one in found] == [(3.0, 0.5), (4.0, 5.0)]


@pytest.mark.parametrize("line", ['running{pod="a} 3', 'running{pod="a"}', "running x", "running{pod=a} 1"])
def test_a_malformed_line_is_named(line: str) -> None:
    with pytest.raises(Malformed, match="line 2: "):
        parse(f"# HELP x\n{line}\n", WANTED, 5.0, lambda s: s)


def series(name: str, value: float, at_s: float | None = 10.0, **labels: str) -> Series:
    return Series(name, {"server": "chat", "pod": "a", "accelerator": "H100", **labels}, value, at_s)


def test_series_become_a_reading_of_each_replica() -> None:
    found = assemble(
        "test",
        [
            series("vllm:request_success_total", 5, finished_reason="stop"),
            series("vllm:request_success_total", 2, finished_reason="length"),
            series("vllm:num_requests_running", 3),
            series("vllm:num_requests_waiting", 0),
            series("vllm:kv_cache_usage_perc", 0.2, engine="0"),
            series("vllm:kv_cache_usage_perc", 0.4, engine="1"),
            series("vllm:time_to_first_token_seconds_bucket", 4, le="0.1"),
            series("vllm:time_to_first_token_seconds_bucket", 7, le="+Inf"),
            series("vllm:time_to_first_token_seconds_sum", 1.5),
            series("stoker_gateway_requests_total", 9, 11.0),
            series("vllm:num_requests_running", 1, 12.0, pod="b"),
        ],
        Labels(),
        MetricNames(),
    )
    a, b = found.replicas
    assert (a.server, a.replica, a.accelerator, a.sampled_at_s) == ("chat", "a", "H100", 10.0)
    assert (a.completed, a.running, a.waiting) == (7.0, 3.0, 0.0)
    assert a.kv_used_share == pytest.approx(0.3)
    assert a.ttft == HistogramReading((0.1,), (4.0, 7.0), 1.5)
    assert (b.replica, b.sampled_at_s, b.running, b.completed) == ("b", 12.0, 1.0, None)
    assert [(one.server, one.requests, one.waiting) for one in found.gateways] == [("chat", 9.0, None)]


def test_of_several_names_a_replica_has_the_preferred_one_is_read() -> None:
    def itl(name: str, pod: str, count: float) -> list[Series]:
        return [
            series("vllm:request_success_total", 1, pod=pod),
            series(f"vllm:{name}_bucket", count, le="+Inf", pod=pod),
            series(f"vllm:{name}_sum", 1, pod=pod),
        ]

    everything = [
        *itl("request_time_per_output_token_seconds", "new", 3),
        *itl("inter_token_latency_seconds", "new", 4),
        *itl("time_per_output_token_seconds", "old", 5),
    ]
    new, old = assemble("test", everything, Labels(), MetricNames()).replicas
    assert new.itl is not None and new.itl.count == 4
    assert old.itl is not None and old.itl.count == 5


def test_series_without_the_labels_name_those_that_exist() -> None:
    found = assemble(
        "test",
        [Series("vllm:num_requests_running", {"job": "vllm", "instance": "x"}, 1.0, 10.0)],
        Labels(),
        MetricNames(),
    )
    assert found.replicas == ()
    labels = next(problem for problem in found.problems if problem.subject == "test labels")
    assert labels.kind is AlertKind.NO_SERIES
    assert "'server'" in labels.message and "instance, job" in labels.message


def test_a_figure_without_series_names_every_name_that_was_tried() -> None:
    found = assemble("test", [series("vllm:num_requests_running", 1)], Labels(), MetricNames())
    (problem,) = found.problems
    assert "itl (vllm:inter_token_latency_seconds or vllm:time_per_output_token_seconds" in problem.message
    assert "running" not in problem.message and "gateway" not in problem.message


def test_numbers_that_are_none_are_left_out() -> None:
    names = MetricNames()
    odd = [series("vllm:num_requests_running", value) for value in (float("nan"), float("inf"), -1.0)]
    assert assemble("test", odd, Labels(), names).replicas == ()
