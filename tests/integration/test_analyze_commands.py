"""`stoker analyze`, `size` and `concurrency` as they are typed: exit codes, standard input, tables, plots."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from services.cli import app

GOOD: dict[str, Any] = {
    "name": "chat",
    "parameters": {"alpha_s": 0.012, "beta_s": 5e-5, "gamma_s": 5e-7},
    "input_tokens": 128,
    "output_tokens": 512,
    "max_batch": 48,
    "max_queue": 128,
    "rate_rps": 3,
    "targets": {"ttft_s": 0.5, "itl_s": 0.02},
}
INFEASIBLE = {**GOOD, "targets": {"itl_s": 1e-6}}
BAD = {**GOOD, "max_batch": 0}
EVERY = pytest.mark.parametrize("command", ["analyze", "size", "concurrency"])


def run(command: str, content: object, *options: str) -> Result:
    """The command with a problem on standard input."""
    given = content if isinstance(content, str) else json.dumps(content)
    return CliRunner().invoke(app, [command, "-", *options], input=given)


@EVERY
def test_each_has_help_and_names_its_options(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    for option in ("--model", "--law", "--compat", "--json", "--curve", "--plot"):
        assert option in result.output


@EVERY
def test_json_is_all_of_standard_output_and_one_problem_is_one_object(command: str) -> None:
    result = run(command, GOOD, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["name"] == "chat"
    assert result.stderr == ""


@EVERY
def test_a_list_is_a_list_with_the_bad_ones_in_their_place(command: str) -> None:
    result = run(command, [BAD, GOOD, 7], "--json")
    assert result.exit_code == 0
    first, second, third = json.loads(result.stdout)
    assert "max_batch" in first["error"] and "error" not in second and "object" in third["error"]
    assert "standard input: problem 0: max_batch" in result.stderr
    assert run(command, [], "--json").stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (GOOD, 0),
        (INFEASIBLE, 3),
        (BAD, 2),
        ([BAD, INFEASIBLE], 3),
        ([BAD, BAD], 2),
        ([INFEASIBLE, GOOD, BAD], 0),
    ],
)
def test_the_exit_code_is_that_of_the_best_answer(content: object, code: int) -> None:
    for options in ((), ("--json",)):
        assert run("size", content, *options).exit_code == code


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1, column 2: expected JSON"),
        ('{"rate_rps": NaN}', "got NaN"),
        ("", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ('{"max_batch": 8}', "parameters: is required and missing"),
    ],
)
@EVERY
def test_what_is_no_problem_is_refused_without_a_traceback(command: str, content: str, said: str) -> None:
    result = run(command, content)
    assert result.exit_code == 2
    assert result.stderr.startswith("standard input: ") and said in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "oracle"), "'oracle' is not installed; there is: birth-death"),
        (("--law", "newton"), "'newton' is not installed; there is: seven-parameter"),
        (("--compat", "--model", "fluid"), "--compat: answers with birth-death-compat, got --model fluid"),
        (("--plot", "curve.jpg"), "--plot: expected a file that ends in .png"),
        (("--plot", "no/such/folder/curve.png"), "curve.png cannot be written"),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_was_expected(
    options: tuple[str, ...], said: str
) -> None:
    result = run("size", GOOD, *options)
    assert result.exit_code == 2
    assert said in result.stderr


@EVERY
def test_figures_beyond_all_measure_are_answered_without_warnings(command: str) -> None:
    extreme = {**GOOD, "parameters": {"alpha_s": 1e300, "beta_s": 1e300, "gamma_s": 1e308}}
    result = run(command, [extreme, {**GOOD, "rate_rps": 1e-300, "max_queue": 10**9}], "--json")
    assert "Warning" not in result.stderr
    assert "Infinity" not in result.stdout and "NaN" not in result.stdout


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing.json", tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for file in (missing, binary, tmp_path):
        result = CliRunner().invoke(app, ["size", str(file)])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{file}: ")


@EVERY
def test_a_person_sees_every_figure_of_one_answer_and_a_row_for_each_of_many(command: str) -> None:
    one, many = run(command, GOOD), run(command, [GOOD, BAD, {**GOOD, "name": "batch"}], "--curve")
    assert "itl_s.mean" in one.stdout and "occupancy" in one.stdout
    assert one.stderr == ""
    assert "chat" in many.stdout and "batch" in many.stdout
    assert many.stdout.count("TTFT") >= 3


def test_a_plot_is_a_picture_and_leaves_the_json_alone(tmp_path: Path) -> None:
    file = tmp_path / "curve.png"
    result = run("analyze", [GOOD, BAD], "--json", "--plot", str(file), "--model", "corrected")
    assert result.exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [set(body) & {"curve", "error"} for body in json.loads(result.stdout)] == [set(), {"error"}]


def test_a_pipe_gets_no_progress_bar(tmp_path: Path) -> None:
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([GOOD] * 100))
    program = "import services.cli; services.cli.main()"
    said = subprocess.run(
        [sys.executable, "-c", program, "size", str(file), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said.stderr == ""
    assert len(json.loads(said.stdout)) == 100


def test_a_question_is_answered_without_importing_the_bus_or_heavy_libraries(tmp_path: Path) -> None:
    file = tmp_path / "problem.json"
    file.write_text(json.dumps(GOOD))
    program = (
        "import sys, services.cli\n"
        "try: services.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = ('nats', 'aiohttp', 'matplotlib', 'pandas', 'cvxpy', 'schemas.topics')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, "size", str(file), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(said.stdout)["feasible"] is True
    assert said.stderr.strip() == "[]"
