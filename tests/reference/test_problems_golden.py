"""The command line in the reference's form against what the reference system answered.

As in `test_queue_golden`, numbers agree to one conversion between units.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli import app

# A few roundings to single precision.
EXACT = 2e-7
KEYS = ("maxBatchSize", "maxQueueSize", "maxNumTokens", "alpha", "beta", "gamma")


def cases(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "queue-golden" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found: list[dict[str, Any]] = json.loads(path.read_text())["cases"]
    return found


def problem(case: dict[str, Any]) -> dict[str, Any]:
    """A case as the reference's own program takes it, whose keys are in another case here and there."""
    given = case["input"]
    target = case.get("target", {})
    return {
        **{key: given[key] for key in KEYS},
        "AvgInputTokens": given["avgInputTokens"],
        "AvgOutputTokens": given["avgOutputTokens"],
        "rps": case.get("requestRate", 1.0),
        **{f"target{key}": value for key, value in target.items()},
    }


def asked(command: str, given: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([problem(case) for case in given]))
    result = CliRunner().invoke(app, [command, str(file), "--compat", "--json"])
    assert result.exit_code == 0
    answers: list[dict[str, Any]] = json.loads(result.stdout)
    assert len(answers) == len(given)
    return answers


def test_analyze_answers_as_the_reference_and_fails_where_it_fails(
    reference_data: Path, tmp_path: Path
) -> None:
    given = cases(reference_data, "analyze")
    compared = failed = 0
    for case, answer in zip(given, asked("analyze", given, tmp_path), strict=True):
        name = f"{case['input']['label']} at {case.get('requestRate')}"
        assert ("error" in answer) == bool(case.get("error") or case.get("constructError")), name
        if "error" in answer:
            failed += 1
            continue
        expected = case["metrics"]
        for key, theirs in (
            ("throughput", "Throughput"),
            ("avgNumInServ", "AvgNumInServ"),
            ("avgRespTime", "AvgRespTime"),
            ("avgITL", "AvgTokenTime"),
            ("avgTTFT", "AvgTTFT"),
            ("avgWaitTime", "AvgWaitTime"),
            ("maxRPS", "MaxRate"),
        ):
            assert answer[key] == pytest.approx(expected[theirs], rel=EXACT, abs=1e-12), f"{key}, {name}"
        prefill = answer["avgTTFT"] - answer["avgWaitTime"] - answer["avgITL"]
        # A prefill is what is left of a TTFT in single precision.
        assert prefill == pytest.approx(expected["AvgPrefillTime"], abs=EXACT * answer["avgTTFT"]), name
        compared += 1
    print(f"{compared} analyses agree, {failed} are refused as in the reference")
    assert compared > 100 and failed > 5


def test_size_answers_as_the_reference_and_fails_where_it_fails(reference_data: Path, tmp_path: Path) -> None:
    given = cases(reference_data, "size")
    compared = failed = 0
    for case, answer in zip(given, asked("size", given, tmp_path), strict=True):
        name = f"{case['input']['label']}, {case['kind']}"
        assert ("error" in answer) == (case["error"] is not None), name
        if "error" in answer:
            failed += 1
            continue
        assert answer["offeredRPS"] == pytest.approx(case["metrics"]["OfferedRate"], rel=EXACT), name
        for key in ("TTFT", "ITL", "TPS"):
            assert answer[f"RPSTarget{key}"] == pytest.approx(case["targetRate"][key], rel=EXACT), name
        achieved = case["achieved"]
        assert answer["avgTTFT"] == pytest.approx(achieved["TTFT"], rel=EXACT), name
        assert answer["avgITL"] == pytest.approx(achieved["ITL"], rel=EXACT), name
        tokens = answer["throughput"] * case["input"]["avgOutputTokens"]
        assert tokens == pytest.approx(achieved["TPS"], rel=EXACT), name
        compared += 1
    print(f"{compared} sizings agree, {failed} fail as in the reference")
    assert compared > 100 and failed > 20


def test_concurrency_answers_exactly_as_the_reference(reference_data: Path, tmp_path: Path) -> None:
    given = cases(reference_data, "optimal_concurrency")
    for case, answer in zip(given, asked("concurrency", given, tmp_path), strict=True):
        name, expected = case["input"]["label"], case["result"]
        assert answer["concurrency"] == expected["Concurrency"], name
        assert answer["feasible"] == expected["Feasible"], name
        assert answer["throughput"] == pytest.approx(expected["metrics"]["Throughput"], rel=EXACT), name
    assert len(given) > 20
