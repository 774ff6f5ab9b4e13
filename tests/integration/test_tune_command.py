"""`stoker tune`: what it prints, and how it ends."""

import json
import sys
from pathlib import Path

import pytest
from estimator_suite import TRUTH, cycles_of

from services import cli

HEADER = "log,collect_seq,server,pod,acc,max_batch,arrival_rpm,in_tok,out_tok,itl_ms,ttft_ms,requests"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `stoker tune` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["stoker", "tune", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten cycles of three replicas of a known engine."""
    rows = [
        f"r1,{cycle},s,{o.replica},H100,{o.max_batch},{o.rate_rps * 60},{o.input_tokens},{o.output_tokens},"
        f"{o.itl_s * 1e3},{(o.ttft_s or 0) * 1e3},40"
        for cycle, seen in enumerate(cycles_of(21, 10))
        for o in seen
    ]
    written = tmp_path / "observations.csv"
    written.write_text("\n".join([HEADER, *rows]) + "\n")
    return written


def test_json_has_a_line_per_update_with_parameters_health_and_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    code, out, err = run(monkeypatch, capsys, str(file), "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["cycle"] for line in lines] == list(range(10))
    assert lines[0]["itl_error_share"] is None and lines[0]["used"] == 3
    # Noise of two per cent.
    assert lines[-1]["parameters"] == pytest.approx(TRUTH, rel=0.1)
    assert lines[-1]["health"] == "identified"
    assert 0 < lines[-1]["itl_error_share"] < 0.1
    assert lines[-1]["evidence"]["observations"] == 30


def test_a_prior_is_in_force_from_the_first_cycle_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    prior = [word for name, value in TRUTH.items() for word in ("--prior", f"{name}={value}")]
    code, out, _ = run(monkeypatch, capsys, str(file), *prior, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[0])["itl_error_share"] < 0.1


def test_the_table_and_the_picture_show_every_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "replay.png"
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(monkeypatch, capsys, str(file), "--plot", str(picture))
    assert code == 0
    assert "identified" in out and "alpha_s" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text.replace("itl_ms", "latency"), "itl_ms"),
        (lambda text: text.replace("r1,3,s,r1,H100,64", "r1,3,s,r1,H100,many"), ":12: max_batch: 'many'"),
        (lambda text: text.replace(",40\n", ",-1\n", 1), ":2: requests"),
        (lambda text: text.splitlines()[0] + "\n", "at least one row"),
        (lambda text: text.replace("r1,0,s,r0", "r1,0,,r0"), ":2: server"),
        (lambda text: text.replace("r1,0,s,r0", f"r1,0,{'s' * 300},r0"), ":2: server"),
        (lambda text: text.replace("r1,0,s,r0,H100,64", "r1,0,s,r0,H100,64.5"), ":2: max_batch: '64.5'"),
        (lambda text: text.replace("r1,0,s,r0,H100,64", "r1,0,s,r0,H100,1e300"), ":2: max_batch: '1e300'"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_its_column_and_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, change, named: str
) -> None:
    file.write_text(change(file.read_text()))
    code, out, err = run(monkeypatch, capsys, str(file))
    assert (code, out) == (2, "")
    assert str(file) in err and named in err and "expected" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--estimator", "oracle"], "moving-horizon"),
        (["--law", "eight"], "three-parameter"),
        (["--prior", "alpha_s=1"], "beta_s"),
        (["--prior", "alpha_s=-1"], "at least 0"),
        (["--set", "newest"], "NAME=VALUE"),
        (["--set", "newest=many"], "newest"),
        (["--set", "newest=[1"], "newest"),
        (["--run", "r9"], "r9"),
        (["--plot", "picture.svg"], ".png"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: Path,
    arguments: list[str],
    named: str,
) -> None:
    code, _, err = run(monkeypatch, capsys, str(file), *arguments)
    assert code == 2
    assert named in err and "Traceback" not in err
