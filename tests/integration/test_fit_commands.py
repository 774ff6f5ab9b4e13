"""`stoker fit`: what it prints, and how it ends."""

import json
import sys
from pathlib import Path

import pytest
from sweep_builders import SHAPES, TRUTH, sweep, table_record

from services import cli


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `stoker fit` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["stoker", "fit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Sweeps of a known engine, the second row of the first with a corrupt TTFT."""
    folder = tmp_path_factory.mktemp("sweeps")
    written = []
    for shape in SHAPES[:5]:
        records = [table_record(point) for point in sweep(shape, scv=0.0).points]
        if not written:
            records[1]["Successful Time to first token ms mean"] = -1e8
        file = folder / f"i{shape[0]}-o{shape[1]}.json"
        file.write_text(json.dumps(records))
        written.append(str(file))
    return written


def test_json_holds_parameters_errors_figures_and_the_rows_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: list[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, *files[:4], "--test", files[4], "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["law"] == "seven-parameter" and said["refused"] is None and said["identified"] is True
    # Files hold the exact truth but for the row left out.
    assert said["parameters"] == pytest.approx(TRUTH, rel=1e-2)
    assert said["standard_errors"].keys() == TRUTH.keys()
    assert said["condition_number"] > 1
    assert said["training"]["points"] == 27
    assert [one["file"] for one in said["test"]["sweeps"]] == [files[4]]
    for figures in (said["training"], said["left_out"], said["test"], said["test"]["usual"]):
        for name in ("ttft_wape", "ttft_mape", "itl_wape", "itl_mape"):
            assert 0 <= figures[name] < 0.02
    assert [one["law"] for one in said["laws"]] == ["seven-parameter", "three-parameter"]
    assert said["legacy"].keys() == {"alpha", "beta", "gamma"}
    assert said["rejected"] == [
        {
            "file": files[0],
            "row": 2,
            "field": "ttft_s",
            "value": -1e5,
            "expected": "a finite number above 0",
        }
    ]


def test_tables_name_the_rows_left_out_and_every_parameter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: list[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, *files, "--plot", str(Path(files[0]).with_suffix(".png")))
    assert code == 0
    assert f"{files[0]}: row 2: ttft_s is -100000" in out
    assert all(name in out for name in TRUTH)
    assert "legacy perfParms (ms)" in out
    assert Path(files[0]).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_one_sweep_falls_back_to_three_parameters_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: list[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, files[3], "--json")
    said = json.loads(out)
    assert code == 0
    assert said["law"] == "three-parameter"
    assert "do not identify the seven-parameter law" in said["refused"]
    assert said["left_out"] is None and said["test"] is None
    assert said["laws"][0]["identified"] is False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.json"], "absent.json: does not exist, expected a benchmark file"),
        (["SWEEP", "--test", "absent.json"], "absent.json: does not exist"),
        (["SWEEP", "--law", "nine-parameter"], "'nine-parameter' is not installed; there is: "),
        (["SWEEP", "--plot", "picture.gif"], "expected a file that ends with .png"),
        (["SWEEP", "--plot", "/absent/picture.png"], "in a folder that exists"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_ends_with_2_and_a_message_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    arguments: list[str],
    expected: str,
) -> None:
    code, out, err = run(monkeypatch, capsys, *(files[3] if one == "SWEEP" else one for one in arguments))
    assert code == 2
    assert out == ""
    assert expected in err
    assert "Traceback" not in err


def test_help_says_what_it_reads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    assert "GuideLLM" in out and "vLLM" in out
