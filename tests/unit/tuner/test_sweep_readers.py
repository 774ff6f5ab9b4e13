"""Benchmark files: every format says the same, impossible rows are named, broken files say what is wrong."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_builders import html_report, report_record, sweep, table_record, vllm_record, write_csv

from services.tuner.sweeps.reader import read
from services.tuner.sweeps.sweep import LoadPoint, SweepRefused

SWEEP = sweep((1024, 64), scv=0.0)
# One status for every metric, then rows with incomplete and errored requests in some metrics and not in others.
ALONE = (1,) * 11
MIXED = ((1, 3, 3, 2, 3, 2, 3, 1, 2, 3, 2), (3, 3, 1, 1, 2, 1, 2, 2, 1, 1, 3), (2,) * 11, (3,) * 11)


def as_table(file: Path, points: Sequence[LoadPoint]) -> None:
    file.write_text(json.dumps([table_record(point) for point in points]))


def as_report(file: Path, points: Sequence[LoadPoint]) -> None:
    file.write_text(json.dumps({"benchmarks": [report_record(point) for point in points]}))


def as_late_report(file: Path, points: Sequence[LoadPoint]) -> None:
    file.write_text(json.dumps({"benchmarks": [report_record(point, "config") for point in points]}))


def as_csv(file: Path, points: Sequence[LoadPoint]) -> None:
    write_csv(file, points, [ALONE, *(MIXED[i % len(MIXED)] for i in range(len(points) - 1))])


def as_old_csv(file: Path, points: Sequence[LoadPoint]) -> None:
    records = [table_record(point) for point in points]
    quoted = [[f'"{value}"' for value in record.values()] for record in records]
    names = [f'"{name}"' for name in records[0]]
    file.write_text("\n".join(",".join(row) for row in [names, *quoted]))


def as_vllm_lines(file: Path, points: Sequence[LoadPoint]) -> None:
    file.write_text("\n".join(json.dumps(vllm_record(point)) for point in points))


@pytest.mark.parametrize("write", [as_table, as_report, as_late_report, as_csv, as_old_csv, as_vllm_lines])
def test_every_format_yields_the_points_that_were_written(
    tmp_path: Path, write: Callable[[Path, Sequence[LoadPoint]], None]
) -> None:
    file = tmp_path / "sweep"
    write(file, SWEEP.points)
    found = read(file)
    assert found.rejected == ()
    assert len(found.points) == len(SWEEP.points)
    for seen, written in zip(found.points, SWEEP.points, strict=True):
        for name in (
            "rate_rps",
            "input_tokens",
            "output_tokens",
            "ttft_s",
            "itl_s",
            "ttft_p95_s",
            "itl_p95_s",
            "duration_s",
            "requests",
        ):
            # Text holds floats exactly; sums of tokens are divided again.
            assert getattr(seen, name) == pytest.approx(getattr(written, name), rel=1e-9), name
        assert seen.clients == written.clients


def test_html_says_the_same_with_the_second_row_as_the_throughput_one(tmp_path: Path) -> None:
    file = tmp_path / "sweep.html"
    file.write_text(html_report(SWEEP.points))
    found = read(file)
    assert [point.label for point in found.points[:3]] == ["synchronous", "throughput", "constant"]
    assert [point.clients is None for point in found.points[:3]] == [False, False, True]
    for seen, written in zip(found.points, SWEEP.points, strict=True):
        assert seen.output_tokens == pytest.approx(written.output_tokens)
        assert (seen.ttft_s, seen.itl_s) == pytest.approx((written.ttft_s, written.itl_s))
        assert seen.ttft_p95_s == pytest.approx(written.ttft_p95_s)


def test_a_csv_row_with_incomplete_and_errored_requests_is_longer_than_its_header_and_still_read(
    tmp_path: Path,
) -> None:
    file = tmp_path / "sweep.csv"
    as_csv(file, SWEEP.points)
    lengths = [line.count("[") for line in file.read_text().splitlines()]
    assert len(set(lengths[3:])) > 2, "the rows must differ in their blocks for this test to mean anything"
    assert len(read(file).points) == len(SWEEP.points)


def test_lengths_of_single_requests_give_the_spread(tmp_path: Path) -> None:
    record = vllm_record(SWEEP.points[1])
    record |= {"input_lens": [512, 1536], "output_lens": [32, 96]}
    file = tmp_path / "result.json"
    file.write_text(json.dumps(record))
    point = read(file).points[0]
    assert (point.input_tokens_sd, point.output_tokens_sd) == (512.0, 32.0)
    assert point.arrival_scv == 1.0


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("Successful Time to first token ms mean", -2.2e8, "ttft_s"),
        ("Successful Time to first token ms mean", 1e12, "ttft_s"),
        ("Successful Inter token latency ms mean", 0.0, "itl_s"),
        ("Successful Inter token latency ms mean", float("nan"), "itl_s"),
        ("Successful Requests per second mean", float("inf"), "rate_rps"),
        ("Successful Output token count mean", 1.0, "output_tokens"),
        ("Successful Prompt token count mean", 0.0, "input_tokens"),
        ("Successful Requests", 0, "requests"),
    ],
)
def test_a_row_with_an_impossible_value_is_left_out_by_file_row_field_and_value(
    tmp_path: Path, field: str, value: float, name: str
) -> None:
    records = [table_record(point) for point in SWEEP.points]
    records[2][field] = value
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(records))
    found = read(file)
    assert [point.row for point in found.points] == [1, 2, 4, 5, 6, 7]
    [rejected] = found.rejected
    assert (rejected.file, rejected.row, rejected.field) == (str(file), 3, name)
    assert str(file) in str(rejected) and "expected" in str(rejected)


def test_a_row_with_a_length_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    records = [vllm_record(point) for point in SWEEP.points[:2]]
    records[1]["output_lens"] = [32, float("inf")]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(records))
    found = read(file)
    assert [(row.row, row.field) for row in found.rejected] == [(2, "output_tokens_sd")]


def test_a_closed_loop_without_clients_is_left_out(tmp_path: Path) -> None:
    records = [vllm_record(point) for point in SWEEP.points[:2]]
    records[0]["max_concurrency"] = -3
    file = tmp_path / "results.json"
    file.write_text(json.dumps(records))
    found = read(file)
    assert [(row.row, row.field, row.value) for row in found.rejected] == [(1, "clients", -3.0)]


def broken_table(change: Callable[[dict[str, Any]], object]) -> str:
    records = [table_record(point) for point in SWEEP.points]
    change(records[1])
    return json.dumps(records)


def broken_report(metric: str, value: object) -> str:
    records = [report_record(point) for point in SWEEP.points]
    records[1]["metrics"][metric] = value
    return json.dumps({"benchmarks": records})


BROKEN = {
    "empty": ("", "is empty"),
    "not json": ("{", "line 1"),
    "lines, one of which is not json": ('{"a": 1}\n{', "expected valid JSON"),
    "another json": ('{"a": 1}', "expected GuideLLM"),
    "a number": ("[1]", "expected GuideLLM"),
    "an empty list": ("[]", "expected GuideLLM"),
    "no benchmarks": ('{"benchmarks": []}', "at least one"),
    "benchmarks of another type": ('{"benchmarks": [3]}', "row 1"),
    "no strategy": ('{"benchmarks": [{"metrics": {}}]}', "args.strategy is missing"),
    "a metric is missing": ('{"benchmarks": [{"args": {"strategy": {"type_": "constant"}}}]}', "metrics"),
    "nested without end": ("[" * 100_000, "expected"),
    "a field is missing": (broken_table(lambda r: r.pop("Duration")), "row 2: Duration is missing"),
    "a field is text": (broken_table(lambda r: r.update(Duration="long")), "row 2: Duration is 'long'"),
    "a field is an object": (broken_table(lambda r: r.update(Duration={})), "row 2: Duration is {}"),
    "an unknown strategy": (broken_table(lambda r: r.update(Name="magic")), "row 2: strategy is 'magic'"),
    "percentiles are no list": (
        broken_table(lambda r: r.update({k: "[1, 2" for k in r if "first token ms [" in k})),
        "expected a list of eleven numbers",
    ),
    "only impossible rows": (
        json.dumps([table_record(SWEEP.points[0]) | {"Successful Requests": 0}]),
        "no usable row",
    ),
    "html without benchmarks": ("<html></html>", "window.benchmarks is missing"),
    "html with broken benchmarks": ("<html>window.benchmarks = [", "line 1"),
    "html without details": ("<html>window.benchmarks = [{}];", "window.workloadDetails is missing"),
    "html with an empty row": (
        "<html>window.benchmarks = [{}];window.workloadDetails = {};",
        "row 1: requestsPerSecond is missing",
    ),
    "another csv": ("a,b\n1,2\n", "begins with 'a, b'"),
    "a number beyond all floats": (
        broken_table(lambda r: r.update(Duration=10**400)),
        "row 2: Duration is 1000",
    ),
    "a number of more digits than are read": (f'[{{"mean_ttft_ms": {"9" * 5000}}}]', "expected GuideLLM"),
    "a metric that is null": (
        broken_report("request_concurrency", None),
        "row 2: metrics.request_concurrency",
    ),
    "percentiles that are a number": (
        html_report(SWEEP.points).replace('"percentiles": {', '"percentiles": 5, "others": {', 1),
        "row 1: itl.percentiles.p95 is missing",
    ),
    "a burstiness of zero": (
        json.dumps(vllm_record(SWEEP.points[0]) | {"burstiness": 0}),
        "row 1: burstiness is 0",
    ),
    "a quote that does not end": ('Run Info,"Benchmark\nx', "is not CSV"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_what_was_expected(tmp_path: Path, kind: str) -> None:
    text, said = BROKEN[kind]
    file = tmp_path / "broken"
    file.write_text(text)
    with pytest.raises(SweepRefused) as refused:
        read(file)
    assert str(file) in str(refused.value)
    assert said in str(refused.value)


def test_bytes_that_are_no_text_a_folder_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes", ".", "absent"):
        with pytest.raises(SweepRefused, match="expected"):
            read(tmp_path / name)


def test_a_csv_row_that_no_order_of_metrics_explains_is_refused_by_its_row(tmp_path: Path) -> None:
    file = tmp_path / "sweep.csv"
    as_csv(file, SWEEP.points[:3])
    lines = file.read_text().splitlines()
    cells = lines[4].split(",")
    # The mean latency of the second row, 0 without a unit: nothing else in the row agrees with it.
    cells[4] = "123456.0"
    file.write_text("\n".join([*lines[:4], ",".join(cells), *lines[5:]]))
    with pytest.raises(SweepRefused, match="row 2: no reading of its"):
        read(file)


def test_a_corrupt_ttft_in_a_csv_leaves_out_its_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "sweep.csv"
    points = [replace(point, ttft_s=-2e5) if point.row == 4 else point for point in SWEEP.points]
    as_csv(file, points)
    found = read(file)
    assert [point.row for point in found.points] == [1, 2, 3, 5, 6, 7]
    assert [(row.row, row.field) for row in found.rejected] == [(4, "ttft_s")]
