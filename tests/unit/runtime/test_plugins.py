"""Plug-ins: found by entry points, built from their settings, refused with what would help."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.runtime import plugins
from services.runtime.plugins import GROUPS, PluginRefused, build, listed, load

MODULE = """
from typing import ClassVar
from pydantic import BaseModel, ConfigDict, Field

class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    gain: float = Field(default=0.5, gt=0, le=1)

class Steady:
    name: ClassVar[str] = "steady"
    Settings: ClassVar[type[BaseModel]] = Settings
    def __init__(self, settings, **context):
        self.settings, self.context = settings, context

class Plain:
    name: ClassVar[str] = "plain"
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Installs a third party's distribution with the given entry points."""

    def install(entry_points: str) -> None:
        (tmp_path / "third_party_plugin.py").write_text(MODULE)
        info = tmp_path / "third_party-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(str(tmp_path))
        plugins._found.cache_clear()

    yield install
    plugins._found.cache_clear()
    sys.modules.pop("third_party_plugin", None)


GATES = "[stoker.gates]\nsteady = third_party_plugin:Steady\nplain = third_party_plugin:Plain\n"


def test_a_plug_in_is_built_from_its_settings(distribution):
    distribution(GATES)
    assert build("stoker.gates", "steady").settings.gain == 0.5
    built = build("stoker.gates", "steady", {"gain": 0.25}, clock="c")
    assert (built.settings.gain, built.context) == (0.25, {"clock": "c"})


def test_an_unknown_name_lists_what_exists(distribution):
    distribution(GATES)
    with pytest.raises(PluginRefused) as refused:
        load("stoker.gates", "stedy")
    assert str(refused.value).startswith("gates: 'stedy' is not installed; there is: ")
    assert {"plain", "steady"} <= set(str(refused.value).split("there is: ")[1].split(", "))


def test_an_unknown_name_in_an_empty_group_says_that_there_is_nothing():
    with pytest.raises(PluginRefused, match="there is: nothing"):
        load("stoker.none", "x")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gian": 1}, ["settings of stoker.gates 'steady'", "gian", "Extra inputs"]),
        ({"gain": 2}, ["gain", "less than or equal to 1", "'2'"]),
        ({"gain": "big"}, ["gain", "valid number", "'big'"]),
    ],
)
def test_bad_settings_are_named_with_what_was_expected(distribution, settings, told):
    distribution(GATES)
    with pytest.raises(PluginRefused) as refused:
        build("stoker.gates", "steady", settings)
    for part in told:
        assert part in str(refused.value)


def test_a_plug_in_without_settings_takes_none(distribution):
    distribution(GATES)
    assert build("stoker.gates", "plain").name == "plain"
    with pytest.raises(PluginRefused, match="it takes none"):
        build("stoker.gates", "plain", {"gain": 1})


@pytest.mark.parametrize("value", ["no_such_module:Thing", "third_party_plugin:NoSuchClass"])
def test_a_plug_in_that_cannot_be_imported_is_refused_with_where_it_was_to_be(distribution, value):
    distribution(f"[stoker.gates]\nbroken = {value}\n")
    with pytest.raises(PluginRefused, match=f"'broken' \\({value}\\) cannot be imported"):
        load("stoker.gates", "broken")


def test_only_the_chosen_plug_in_is_imported(distribution):
    distribution("[stoker.gates]\nbroken = no_such_module:Thing\nsteady = third_party_plugin:Steady\n")
    assert "third_party_plugin" not in sys.modules
    names = {(one.group, one.name, one.distribution) for one in listed()}
    assert {("stoker.gates", "broken", "third-party"), ("stoker.gates", "steady", "third-party")} <= names
    assert "third_party_plugin" not in sys.modules
    assert load("stoker.gates", "steady").name == "steady"


def test_the_list_is_in_the_order_of_groups_and_names(distribution):
    distribution(GATES)
    keys = [(GROUPS.index(one.group), one.name) for one in listed()]
    assert keys == sorted(keys)
