"""What a service writes of itself, and what it keeps to itself."""

import json
from collections.abc import Iterator
from typing import Literal

import pytest

from services.runtime import logs
from services.runtime.settings import LogSettings


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    logs.configure(LogSettings(format="text"))


def fail(password: str) -> None:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_is_told_with_its_place_and_without_the_values_of_variables(
    form: Literal["json", "text"], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(LogSettings(format=form))
    secret = "".join(["hun", "ter2"])
    try:
        fail(secret)
    except ZeroDivisionError:
        logs.logger("tuner").exception("failed", subject="s")
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and "by zero" in said and "test_logs.py" in said
    assert secret not in said
    if form == "json":
        line = json.loads(said)
        assert (line["event"], line["level"], line["service"]) == ("failed", "error", "tuner")
