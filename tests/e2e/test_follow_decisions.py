"""The consumer of docs/follow_decisions.py, run as anybody would run it, against the running loop."""

import asyncio
import sys
from pathlib import Path

import pytest

from services.allinone import Options, started
from services.simulator.demo import DEMO_FLEET, DEMO_PLANT

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "docs" / "follow_decisions.py"
SCHEMA = REPOSITORY / "schemas" / "json" / "decision.made.v1.json"


@pytest.mark.timeout(90)
async def test_an_outside_consumer_reads_and_validates_decisions() -> None:
    options = Options(fleet=DEMO_FLEET, plant=DEMO_PLANT, speed=60.0, prometheus=False)
    async with started(options) as running:
        consumer = await asyncio.create_subprocess_exec(
            sys.executable, SCRIPT, running.bus_url, SCHEMA, "12", stdout=-1, stderr=-1
        )
        said, complained = await asyncio.wait_for(consumer.communicate(), 60)
    assert consumer.returncode == 0, complained.decode()
    lines = said.decode().splitlines()
    assert len(lines) == 12
    assert {line.split()[1] for line in lines} <= {"allow", "clamp", "hold", "reject"}


def test_the_consumer_is_short_and_knows_nothing_of_stoker() -> None:
    code = [line for line in SCRIPT.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= 20
    imported = {line.split()[1] for line in code if line.startswith(("import ", "from "))}
    assert imported == {"asyncio", "json", "sys", "pathlib", "jsonschema", "nats"}
