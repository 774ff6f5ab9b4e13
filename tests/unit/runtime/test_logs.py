"""Structured logs: what an exception leaves behind."""

import json
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from services.runtime import logs
from services.runtime.settings import LogSettings


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def fail(token: str) -> None:
    raise ZeroDivisionError(f"by zero, {len(token)} characters in hand")


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_is_logged_with_its_place_and_without_what_was_in_hand(
    form: Literal["json", "text"], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(LogSettings(format=form))
    fleet = [f"server-{k}" for k in range(10_000)]
    try:
        fail("hidden-word" * len(fleet))
    except ZeroDivisionError:
        logs.logger("tuner").exception("failed")
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and "by zero, 110000 characters" in said and "test_logs.py" in said
    assert "hidden-wordhidden-word" not in said and "server-0" not in said
    assert len(said) < 2000


def test_a_line_for_machines_says_when_who_and_how_important(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(level="warning"))
    logger = logs.logger("tuner")
    logger.info("not written")
    logger.warning("written", servers=3)
    found = json.loads(capsys.readouterr().err)
    assert found.pop("timestamp").endswith("Z")
    assert found == {"event": "written", "service": "tuner", "level": "warning", "servers": 3}
