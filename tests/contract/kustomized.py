"""The objects that `kubectl kustomize` makes of the deployed overlays."""

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = tuple(sorted(path.name for path in (DEPLOY / "kubernetes" / "overlays").iterdir()))
OF_THE_PROMETHEUS_OPERATOR = {"ServiceMonitor", "PrometheusRule"}


def rendered(overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay."""
    return copy.deepcopy(_objects(overlay))


@cache
def _objects(overlay: str) -> list[dict[str, Any]]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl on PATH; .ci/run says where one of 1.27 or newer is had")
    folder = DEPLOY / "kubernetes" / "overlays" / overlay
    done = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, timeout=60)
    if "unknown command" in done.stderr or "json: unknown field" in done.stderr:
        pytest.skip(f"kubectl is too old for kustomize 5: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] in kinds]
