"""`stoker backtest` and `stoker forecast` as a user meets them."""

import json
import math
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from schemas.forecast import RateQuantile

PROGRAM = str(Path(sys.executable).with_name("stoker"))


def ran(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """The program's end; with a folder that modules are first looked for in."""
    own = os.environ | ({"PYTHONPATH": path} if path else {})
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=100, env=own)


def on_a_terminal(*words: str) -> str:
    """What the program writes to a terminal on its standard error."""
    mine, its = pty.openpty()
    with subprocess.Popen([PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=its) as running:
        os.close(its)
        said = b""
        # A terminal that nobody writes to any more is an error to read from.
        with suppress(OSError):
            while part := os.read(mine, 4096):
                said += part
        os.close(mine)
        assert running.wait(timeout=100) == 0
    return said.decode()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "rates.csv"
    rows = [f"{600 * i},{50 + 30 * math.sin(i / 23):.3f},{i % 5}" for i in range(300)]
    path.write_text("window_start_s,total_rps,b_rps\n" + "\n".join(rows) + "\n")
    return path


def test_a_backtest_for_machines_has_every_figure_and_those_of_the_last_value(trace: Path) -> None:
    done = ran("backtest", str(trace), "--horizons", "600,1800", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert [(row["series"], row["horizon_s"]) for row in rows] == [
        ("total_rps", 600.0),
        ("total_rps", 1800.0),
        ("b_rps", 600.0),
        ("b_rps", 1800.0),
    ]
    for row in rows:
        assert row["forecaster"] in ("ensemble", "last")
        assert row["windows"] > 0 and row["fits"] > 0 and row["ms_per_refit"] > 0
        for name in (
            "mase",
            "wape",
            "bias",
            "pinball_p50",
            "pinball_p90",
            "pinball_p95",
            "coverage",
            "headroom",
        ):
            assert math.isfinite(row[name]) and math.isfinite(row["last"][name])


def test_a_backtest_for_people_is_a_table_with_a_plot_and_without_a_bar_in_a_pipe(
    trace: Path, tmp_path: Path
) -> None:
    done = ran(
        "backtest", str(trace), "--columns", "b_rps", "--horizons", "600", "--plot", str(tmp_path / "p.png")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "b_rps" in done.stdout
    assert "600 s: pinball at 0.9 against the last value: median" in done.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["backtest", "forecast"])
def test_there_is_a_progress_bar_on_a_terminal(trace: Path, command: str) -> None:
    words = [command, str(trace), "--columns", "b_rps", "--horizons", "600", "--json"]
    said = on_a_terminal(*words)
    assert command in said
    assert "1/1" in said


def test_token_lengths_that_are_long_forgotten_are_null_and_no_number(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = ["0,5,6", "10,5,6", *(f"{60 * i},," for i in range(1, 300))]
    log.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    done = ran("forecast", str(log), "--horizons", "600", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout, parse_constant=pytest.fail)
    assert row["rate"][0]["input_tokens"] is None and row["rate"][0]["rate_rps"] > 0


def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for picture in ("p.gif", str(tmp_path / "absent" / "p.png")):
        done = ran("backtest", str(tmp_path / "absent.csv"), "--plot", picture)
        assert done.returncode == 2
        assert (
            done.stderr
            == f"--plot: {picture!r}, expected a file that ends with .png in a folder that exists\n"
        )


def test_a_plot_without_matplotlib_says_what_to_install(trace: Path, tmp_path: Path) -> None:
    # A module of that name that cannot be imported stands for one that is not there.
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not installed')")
    done = ran(
        *(
            "backtest",
            str(trace),
            "--columns",
            "b_rps",
            "--horizons",
            "600",
            "--plot",
            str(tmp_path / "p.png"),
        ),
        path=str(tmp_path),
    )
    assert done.returncode == 2
    assert "--plot: matplotlib is not installed; install it with: pip install 'stoker[plots]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "p.png").exists()


def test_a_forecast_of_a_request_log_has_token_quantiles(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    rows = [f"{i},m,{100 + i % 7},{10 + i % 3}" for i in range(0, 6000, 5)]
    path.write_text("Timestamp,Model,Request tokens,Response tokens\n" + "\n".join(rows) + "\n")
    done = ran("forecast", str(path), "--horizons", "300", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    levels = [RateQuantile(**one) for one in json.loads(done.stdout)[0]["rate"]]
    inputs = [one.input_tokens for one in levels if one.input_tokens is not None]
    assert inputs == sorted(inputs) and len(inputs) == len(levels)
    assert all(100 <= tokens <= 106 for tokens in inputs)


def test_a_forecast_names_its_forecaster_and_rises(trace: Path) -> None:
    done = ran("forecast", str(trace), "--columns", "total_rps", "--horizons", "1800", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)
    rates = [RateQuantile(**one).rate_rps for one in row["rate"]]
    assert rates == sorted(rates)
    assert row["issued_at_s"] == 300 * 600
    assert row["reason"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backtest", "none.csv"], "none.csv: cannot be read"),
        (["backtest", "TRACE", "--columns", "x"], "column 'x' does not exist; there is: total_rps, b_rps"),
        (["backtest", "TRACE", "--horizons", "soon"], "--horizons 'soon': expected seconds"),
        (["forecast", "TRACE", "--horizons", "-1"], "--horizons '-1': expected seconds"),
        (["forecast", "none.csv"], "none.csv: cannot be read"),
    ],
)
def test_bad_input_is_named_without_a_traceback(trace: Path, words: list[str], said: str) -> None:
    done = ran(*(str(trace) if word == "TRACE" else word for word in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
