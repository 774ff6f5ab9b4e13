"""The AsyncAPI document, judged by the official parser."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "asyncapi" / "validate.mjs"
INSTALLED = REPOSITORY / ".cache" / "asyncapi"
DOCUMENT = REPOSITORY / "schemas" / "asyncapi.yaml"


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (INSTALLED / "node_modules" / "@asyncapi" / "parser").is_dir():
        pytest.skip(
            f"@asyncapi/parser is not installed in {INSTALLED}; copy {SCRIPT.parent.name}/package.json "
            "there and run npm install"
        )
    return subprocess.run(
        [node, SCRIPT, INSTALLED, path], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_official_parser_has_nothing_to_say_about_the_document():
    said = validate(DOCUMENT)
    document = yaml.safe_load(DOCUMENT.read_text())
    expected = f"channels {len(document['channels'])} operations {len(document['operations'])}"
    assert (said.returncode, said.stdout.strip(), said.stderr) == (0, expected, "")


def test_the_official_parser_finds_a_dangling_reference(tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(DOCUMENT.read_text().replace("#/components/messages/fleetDeclared", "#/nowhere"))
    said = validate(broken)
    assert said.returncode == 1
    assert "nowhere" in said.stdout or "fleetDeclared" in said.stdout
