"""The command line: help everywhere, clear errors, exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.bus_commands import bus
from services.cli import SERVICES, app

COMMANDS = (
    ["up"],
    ["run"],
    ["solve"],
    ["plugins"],
    ["doctor"],
    ["schema", "export"],
    ["config", "show"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("command", ["apply", "verify", "tail", "dlq", "permissions"])
def test_every_bus_command_has_help(command: str) -> None:
    result = CliRunner().invoke(bus, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_permissions_are_written_once_and_drift_is_said_by_file(tmp_path: Path) -> None:
    def run(*options: str) -> tuple[int, dict[str, list[str]]]:
        result = CliRunner().invoke(bus, ["permissions", str(tmp_path), "--json", *options])
        return result.exit_code, json.loads(result.output)

    code, said = run("--check")
    assert (code, said["changed"]) == (1, said["files"])
    assert list(tmp_path.iterdir()) == []
    assert run()[0] == 0
    assert run("--check") == (0, {"files": said["files"], "changed": []})
    (tmp_path / "permissions.conf").write_text("")
    assert run("--check") == (1, {"files": said["files"], "changed": [str(tmp_path / "permissions.conf")]})
    result = CliRunner().invoke(bus, ["permissions", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "expected a folder" in result.output


def test_plugins_lists_every_group_that_the_loop_uses() -> None:
    result = CliRunner().invoke(app, ["plugins", "--json"])
    groups = {one["group"] for one in json.loads(result.output)}
    assert groups == {
        "stoker.laws",
        "stoker.queueing",
        "stoker.estimators",
        "stoker.forecasters",
        "stoker.solvers",
        "stoker.gates",
        "stoker.sources",
        "stoker.targets",
    }


def test_config_show_masks_secrets_and_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_BUS__PASSWORD", "hidden-word")
    monkeypatch.setenv("STOKER_TUNER__OBSERVATION__MIN_REQUESTS", "7")
    result = CliRunner().invoke(app, ["config", "show"])
    assert result.exit_code == 0
    assert "hidden-word" not in result.output
    shown = json.loads(result.output)
    assert set(shown) == set(SERVICES)
    assert shown["tuner"]["tuner"]["observation"]["min_requests"] == 7.0


def test_an_unknown_service_exits_with_2_and_lists_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, ["run", "stoker"])
    assert result.exit_code == 2
    assert (
        "there is: collector, tuner, predictor, optimizer, actuator, operator, simulator"
        in result.output + capsys.readouterr().err
    )


def test_a_bad_fleet_exits_with_2_and_names_file_path_value_and_what_was_expected(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        "accelerators: [{name: A, type: A, cost_per_hour: -1}]\nmodels: []\nservice_classes: []\nservers: []\n"
    )
    result = CliRunner().invoke(app, ["up", "--fleet", str(fleet), "--duration", "5"])
    assert result.exit_code == 2
    said = result.output + result.stderr
    assert "fleet.yaml" in said
    assert "cost_per_hour" in said
    assert "-1" in said
    assert "Traceback" not in said


def test_a_bad_plant_exits_with_2(tmp_path: Path) -> None:
    plant = tmp_path / "plant.yaml"
    plant.write_text("accelerators: []\nservers: []\n")
    result = CliRunner().invoke(app, ["up", "--plant", str(plant), "--duration", "5"])
    assert result.exit_code == 2
    assert "plant.yaml: servers" in result.output + result.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--target", "kubernetes"], "--fleet: expected the fleet that runs on the cluster"),
        (["--target", "kubernetes", "--fleet", "f", "--speed", "10"], "--speed is 10: expected 1"),
        (["--kubeconfig", "k", "--fleet", "f"], "--target is simulated: expected dry-run or kubernetes"),
    ],
)
def test_up_refuses_what_makes_no_sense_on_a_cluster(options: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["up", *options])
    assert result.exit_code == 2
    assert expected in result.output
