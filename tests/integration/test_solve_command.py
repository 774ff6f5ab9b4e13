"""`stoker solve`: forms of input and output, what-if, and what it says of files that are broken."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from legacy_systems import broken, system
from typer.testing import CliRunner, Result

from services.cli import app
from services.solve_commands import solve as command

BROKEN = 300


def solve(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["solve", *arguments])


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    path = tmp_path / "system.json"
    path.write_text(json.dumps(system()))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        """
accelerators: [{name: A, type: TA, cost_per_hour: 2.0}]
models:
  - name: m
    profiles:
      - {accelerator: A, max_batch: 32, parameters: {values: {alpha_s: 0.02, beta_s: 5.0e-5, gamma_s: 1.0e-6}}}
service_classes: [{name: gold, priority: 1, objectives: [{model: m, itl_s: 0.06, ttft_s: 1.0}]}]
servers:
  - {name: chat, model: m, service_class: gold, nominal_rate_rps: 4, nominal_input_tokens: 128,
     nominal_output_tokens: 256}
capacity: [{type: TA, count: 20}]
"""
    )
    return path


def test_the_table_cuts_nothing_off(tmp_path: Path) -> None:
    name = "a-server-[bold]-whose-name-is-longer-than-a-narrow-terminal-is-wide-" * 2
    text = json.dumps(system()).replace('"name": "one"', f'"name": "{name}"')
    path = tmp_path / "system.json"
    path.write_text(text)
    result = solve(str(path), "--explain")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(name) == 2
    assert "…" not in result.stdout


def test_a_fleet_of_our_own_is_planned_from_its_nominal_load(own: Path) -> None:
    result = solve(str(own), "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    (plan,) = answer["plans"]
    assert plan["status"] == "planned"
    assert plan["predicted"]["objectives_met"]
    assert answer["manifest"]["status"] == "optimal"


@pytest.mark.parametrize("options", [[], ["--compat"]], ids=["default", "compat"])
def test_the_legacy_form_is_answered_in_its_own(legacy: Path, options: list[str]) -> None:
    result = solve(str(legacy), "--legacy-json", *options)
    assert result.exit_code == 0, result.output
    allocations = json.loads(result.stdout)["allocations"]
    assert set(allocations) == {"one", "two"}
    one = allocations["one"]
    assert one["accelerator"] == "A"
    assert one["numReplicas"] >= 1
    assert one["cost"] == pytest.approx(10.0 * one["numReplicas"])
    assert 20 < one["itlAverage"] < 60
    assert one["load"]["arrivalRate"] == 120


def test_six_files_in_a_folder_are_one_system(legacy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "six"
    folder.mkdir()
    parts = {"acceleratorData": "accelerator", "modelData": "model", "serviceClassData": "serviceclass"}
    parts |= {"serverData": "server", "optimizerData": "optimizer", "capacityData": "capacity"}
    for key, name in parts.items():
        (folder / f"{name}-data.json").write_text(json.dumps(system()["system"][key]))
    assert json.loads(solve(str(folder), "--legacy-json").stdout) == json.loads(
        solve(str(legacy), "--legacy-json").stdout
    )


def test_what_if_changes_one_field(legacy: Path, own: Path) -> None:
    def replicas(path: Path, *options: str) -> Any:
        answer = json.loads(solve(str(path), "--json", *options).stdout)
        return answer["plans"][0]["allocations"][0]["replicas"]

    assert replicas(own, "--set", "servers[chat].min_replicas=9") == 9
    assert replicas(legacy, "--set", "servers[one].minNumReplicas=7") == 7
    assert replicas(legacy, "--set", "servers[one].currentAlloc.load.arrivalRate=1200") > replicas(legacy)


def test_a_legacy_system_is_solved_with_its_own_options_and_with_ours(legacy: Path) -> None:
    def manifest(*options: str) -> Any:
        return json.loads(solve(str(legacy), "--json", *options).stdout)["manifest"]

    assert manifest()["solver"] == "auto"
    assert manifest("--set", "optimizer.milpSolver=true")["solver"] == "milp"
    cost = manifest()["cost_per_hour"]
    poor = manifest("--set", f"optimizer.budget_per_hour={cost / 2}", "--set", "optimizer.maximize=servers")
    assert poor["cost_per_hour"] <= cost / 2 + 1e-9
    assert poor["classes"][0]["servers_served"] >= poor["classes"][1]["servers_served"]


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("servers[nobody].min_replicas=2", "'nobody' is not in the list: expected one of chat"),
        ("servers[chat].min_replica=2", "min_replica is not there: expected one of name, model"),
        ("servers[chat].min_replicas", "expected PATH=VALUE"),
        ("servers[chat].min_replicas=many", "min_replicas"),
        ("=2", "expected PATH=VALUE"),
        (
            "servers[chat].model=nobody",
            "fleet.yaml: servers[0] (chat).model is 'nobody', which is not declared",
        ),
    ],
)
def test_a_what_if_that_cannot_be_made_is_refused(own: Path, assignment: str, said: str) -> None:
    result = solve(str(own), "--set", assignment)
    assert result.exit_code == 2
    assert said in result.stderr


def test_comparison_names_every_solver_with_its_cost_and_bound(legacy: Path) -> None:
    rows = json.loads(solve(str(legacy), "--compare", "--json").stdout)
    found = {row["solver"]: row for row in rows}
    assert {"unlimited", "greedy", "lagrangian", "milp", "auto"} <= set(found)
    assert found["milp"]["cost_per_hour"] <= found["greedy"]["cost_per_hour"] + 1e-9
    assert found["milp"]["status"] == "optimal"


def test_explanations_and_the_table_are_for_people(legacy: Path) -> None:
    shown = solve(str(legacy), "--explain").output
    assert "within objectives" in shown
    assert "decides the size" in shown
    assert "Next best" in shown


def test_nothing_that_can_be_given_is_exit_code_3(legacy: Path) -> None:
    assert solve(str(legacy), "--set", "capacity[TA].count=0", "--set", "capacity[TB].count=0").exit_code == 3


def test_laxities_are_kept_with_a_warning_each(tmp_path: Path) -> None:
    lax = system()["system"]
    lax["modelData"]["models"][0]["accCount"] = 0
    lax["serviceClassData"]["serviceClasses"][1]["priority"] = 1000
    lax["serverData"]["servers"][0]["class"] = ""
    lax["serverData"]["servers"][1] |= {"model": "unknown", "minNumReplicas": -2}
    lax["optimizerData"]["optimizer"]["saturationPolicy"] = "Whatever"
    lax["capacityData"]["COUNT"] = lax["capacityData"].pop("count")
    lax["capacityData"]["COUNT"].append({"type": "TA", "count": 40})
    path = tmp_path / "lax.json"
    path.write_text(json.dumps({"System": lax}))
    result = solve(str(path), "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    for said in ("accCount is 0", "is 1000, outside", "'unknown'", "is -2", "'Whatever'", "repeats 'TA'"):
        assert any(said in warning for warning in answer["warnings"]), said
    status = {p["server"]: p["status"] for p in answer["plans"]}
    assert status == {"one": "planned", "two": "no_parameters"}


def test_broken_files_are_refused_with_file_path_value_and_remedy(tmp_path: Path) -> None:
    """Called as a function, so that three hundred take seconds: a traceback would be any other exception."""
    path = tmp_path / "broken.json"
    texts = list(broken(BROKEN))
    for text, key in texts:
        path.write_text(text)
        message = refusal(path)
        assert "broken.json" in message, message
        assert key.lower() in message.lower(), (key, message)
        assert re.search(r"broken\.json: \S+ is .+: expected .+", message), message
    assert len({text for text, _ in texts}) == BROKEN >= 300


def refusal(path: Path) -> str:
    """What the command says on standard error before it ends with exit code 2."""
    said = io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        command(path, None, None, False, None, None, False, False, True, False)
    assert ended.value.code == 2, (path.read_text(), said.getvalue())
    return said.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "null",
        '"text"',
        '{"system": {}}',
        '{"system": 5}',
        '{"system": {"serverData": 5}}',
    ],
)
def test_what_is_no_system_at_all_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    result = solve(str(path))
    assert result.exit_code == 2, result.output
    assert "broken.json" in result.stderr


def test_a_path_that_does_not_exist_is_refused() -> None:
    result = solve("/nowhere/at/all")
    assert result.exit_code == 2
    assert "/nowhere/at/all" in result.stderr


def test_a_small_fleet_is_planned_without_loading_what_it_does_not_need(legacy: Path) -> None:
    heavy = (
        "numba",
        "scipy",
        "asyncio",
        "nats",
        "pydantic_settings",
        "cvxpy",
        "matplotlib",
        "schemas.topics",
    )
    told = f"import sys; print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    program = f"from services.cli import main\ntry: main()\nfinally:\n    {told}"
    asked = [sys.executable, "-c", program, "solve", str(legacy), "--json"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["plans"], done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
