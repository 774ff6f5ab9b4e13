"""Recording and alert rules: valid to promtool, right on made-up series, and about series that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from services.actuator.desired import DesiredReplicas
from services.collector.series import MetricNames
from services.runtime.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = FOLDER / "rules.yml"


@pytest.mark.parametrize(
    "command", [["check", "rules", RULES], ["test", "rules", FOLDER / "tests" / "rules_test.yml"]]
)
def test_promtool_has_no_objection(command: list[str | Path]) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool on PATH; Debian has it in the package prometheus")
    done = subprocess.run([program, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_every_series_exists() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    tested = (FOLDER / "tests" / "rules_test.yml").read_text()
    for rule in rules:
        assert "alert" not in rule or f"alertname: {rule['alert']}" in tested, rule
    metrics = Metrics()
    metrics.registry.register(DesiredReplicas())
    known = {
        line.split()[2]
        for line in generate_latest(metrics.registry).decode().splitlines()
        if line[:6] == "# TYPE"
    }
    known |= (
        {f"{name}_bucket" for name in known} | MetricNames().series() | {rule.get("record") for rule in rules}
    )
    for rule in rules:
        used = set(re.findall(r"\b(?:[a-z]+:)?stoker_\w+(?::\w+)?", rule["expr"]))
        assert used <= known, (rule, used - known)
