"""docker-compose.yml, the Dockerfile and the services agree; validated without an engine.

The processes themselves run from this file's commands and settings in tests/e2e.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli import SERVICES, settings_of
from services.runtime.settings import load, unknown_environment

REPOSITORY = Path(__file__).parents[2]
# The operator has nothing to do without a cluster's custom resources.
COMPOSED = sorted(set(SERVICES) - {"operator"})


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    return content


def test_every_service_runs_from_one_image_beside_nats_and_prometheus(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"nats", "prometheus", "bus-apply", *COMPOSED} == set(services)
    own = {name: service for name, service in services.items() if name in COMPOSED}
    assert {service["image"] for service in own.values()} == {"stoker:local"}
    assert {name: service["command"] for name, service in own.items()} == {s: ["run", s] for s in COMPOSED}


def test_what_is_referred_to_exists(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", [])) <= set(services), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (REPOSITORY / source).exists(), (name, source)
            else:
                assert source in compose["volumes"], (name, source)


@pytest.mark.parametrize("service", COMPOSED)
def test_the_environment_of_a_service_is_read_whole(
    service: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith("STOKER_")]:
        monkeypatch.delenv(name)
    for name, value in compose["services"][service]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = load(settings_of(service))
    assert settings.bus.url == "nats://nats:4222"
    assert unknown_environment(set(type(settings).model_fields) | set(SERVICES)) == []


def test_the_image_installs_what_the_services_need() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    extras = re.search(r"'\.\[([a-z,]+)\]'", dockerfile)
    assert extras is not None
    assert set(extras[1].split(",")) == set(SERVICES) - {"simulator"} | {"fast"}
    assert 'ENTRYPOINT ["stoker"]' in dockerfile
    assert re.search(r"^USER \d+", dockerfile, re.MULTILINE), "the image must not run as root"
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for source in copied.split():
            assert (REPOSITORY / source).exists(), source
