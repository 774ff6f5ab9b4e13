"""`stoker backtest` and `stoker forecast` as a user meets them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.forecast import RateQuantile


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("stoker")
    return subprocess.run([str(program), *words], capture_output=True, text=True, timeout=100)


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
