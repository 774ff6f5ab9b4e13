"""Recordings as a source: a trace's requests, scraped pages, what is said of bad ones."""

import csv
import re
from datetime import datetime
from pathlib import Path

import pytest

from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from services.collector.core import State, step
from services.collector.series import Labels
from services.collector.settings import CollectorSettings
from services.collector.sources.replay import ReplaySettings, ReplaySource

BEGINS_S = 1_700_000_000.0
SETTINGS = CollectorSettings(stale_after_s=60.0)
FLEET = FleetDeclared(
    declared_at_s=0,
    revision="r",
    accelerators=(Accelerator(name="A", type="A", cost_per_hour=1),),
    models=(Model(name="m", profiles=(ModelProfile(accelerator="A"),)),),
    service_classes=(ServiceClass(name="c", priority=1),),
    servers=(Server(name="chat", model="m", service_class="c"),),
)


def source(file: Path, **settings: object) -> ReplaySource:
    said = {"file": file, "begins_at_s": BEGINS_S, "server": "chat", "accelerator": "A"} | settings
    return ReplaySource(ReplaySettings.model_validate(said), to_clock_s=lambda wall_s: wall_s)


async def test_windows_of_a_published_trace_are_those_of_its_rows(reference_data: Path) -> None:
    file = reference_data / "traces" / "azure-llm-2023-conv.csv"
    with file.open() as lines:
        rows = [
            (datetime.fromisoformat(r["TIMESTAMP"][:26]), int(r["ContextTokens"]), int(r["GeneratedTokens"]))
            for r in csv.DictReader(lines)
        ]
    replayed, state = source(file), State()
    for end_s in (0.0, 60.0, 120.0, 600.0):
        readings = await replayed.poll(BEGINS_S + end_s)
        state, out = step(state, [readings], FLEET, BEGINS_S + end_s, SETTINGS)
    (window,) = out.telemetry
    inside = [r for r in rows if 120 < (r[0] - rows[0][0]).total_seconds() <= 600]
    assert (window.quality, len(inside)) == (Quality.OK, round(window.offered_rate_rps * 480))
    assert window.offered_rate_rps == pytest.approx(len(inside) / 480, rel=1e-9)
    assert window.input_tokens == pytest.approx(sum(r[1] for r in inside) / len(inside), rel=1e-9)
    assert window.output_tokens == pytest.approx(sum(r[2] for r in inside) / len(inside), rel=1e-9)
    assert window.ttft is None and window.itl is None


async def test_after_its_end_a_recording_is_stale(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("at,in,out\n0,10,1\n30,20,2\n60,30,3\n")
    columns = {"time_column": "at", "input_column": "in", "output_column": "out"}
    replayed, state, qualities = source(file, **columns), State(), []
    for now_s in (0.0, 30.0, 60.0, 90.0, 150.0):
        readings = await replayed.poll(BEGINS_S + now_s)
        state, out = step(state, [readings], FLEET, BEGINS_S + now_s, SETTINGS)
        qualities.append(out.telemetry[0].quality)
    assert qualities[1:3] == [Quality.OK, Quality.OK]
    assert qualities[3:] == [Quality.STALE, Quality.STALE]


async def test_before_its_begin_there_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,10,1\n")
    readings = await source(file).poll(BEGINS_S - 1)
    assert (readings.replicas, readings.problems) == ((), ())


async def test_recorded_pages_of_vllm_are_replayed_at_their_times(reference_data: Path) -> None:
    file = reference_data / "control-logs" / "vllm_llama_metrics.prom.txt"
    replayed = source(file, labels=Labels(server="model_name", replica="engine"))
    found = [(await replayed.poll(BEGINS_S + at_s)).replicas[0] for at_s in (0, 44, 60, 89)]
    assert [one.running for one in found] == [0, 0, 121, 128]
    assert [one.sampled_at_s - BEGINS_S for one in found] == [0, 30, 60, 75]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "t.csv",
            "a,b\n1,2\n",
            r"t\.csv:1: no column TIMESTAMP, ContextTokens, GeneratedTokens: there are a, b",
        ),
        (
            "t.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,x,1\n",
            r"t\.csv:2: '0', 'x', '1': expected a time",
        ),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("p.txt", "vllm:num_requests_running 1\n", "expected pages, each after a line"),
        ("p.txt", "== t=5s ==\n\n== t=5s ==\n", "expected a later time than 5 s"),
        ("p.txt", '== t=5s ==\nvllm:num_requests_running{a="1} x\n', "after == t=5s ==: line 2"),
    ],
)
async def test_a_bad_recording_is_named(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    readings = await source(tmp_path / name).poll(BEGINS_S)
    assert readings.failed
    assert re.search(expected, readings.problems[0].message)
