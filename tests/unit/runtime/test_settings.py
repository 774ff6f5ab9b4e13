"""Settings: environment over file, unknown keys refused, errors that name what is wrong."""

import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from services.runtime.settings import (
    BusSettings,
    ClockSettings,
    HttpSettings,
    LogSettings,
    RuntimeSettings,
    SettingsRefused,
    load,
    unknown_environment,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("STOKER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(text: str) -> Path:
        path = tmp_path / "stoker.yaml"
        path.write_text(text)
        monkeypatch.setenv("STOKER_CONFIG", str(path))
        return path

    return write


def test_without_anything_the_defaults_hold():
    settings = load(RuntimeSettings)
    assert settings.bus.url == "nats://127.0.0.1:4222"
    assert settings.instance


def test_the_environment_reaches_into_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STOKER_BUS__URL", "nats://one:4222,nats://two:4222")
    monkeypatch.setenv("STOKER_BUS__PASSWORD", "secret")
    monkeypatch.setenv("STOKER_LEASE_S", "2.5")
    settings = load(RuntimeSettings)
    assert settings.bus.url == "nats://one:4222,nats://two:4222"
    assert settings.lease_s == 2.5
    assert "secret" not in repr(settings)


def test_the_environment_wins_over_the_file_key_by_key_and_overrides_win_over_both(
    config, monkeypatch: pytest.MonkeyPatch
):
    config("bus: {url: 'nats://file:1', batch: 7}\nlease_s: 3\nlog: {level: error}\n")
    monkeypatch.setenv("STOKER_BUS__URL", "nats://environment:1")
    settings = load(RuntimeSettings, log=LogSettings(level="debug"))
    assert (settings.bus.url, settings.bus.batch) == ("nats://environment:1", 7)
    assert (settings.lease_s, settings.log.level) == (3.0, "debug")


def test_a_file_may_hold_the_settings_of_other_services_too(config):
    config("lease_s: 4\noptimizer: {solver: greedy}\n")
    assert load(RuntimeSettings).lease_s == 4.0


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("STOKER_BUS__URLL", "x", ["bus.urll", "Extra inputs are not permitted", "'x'"]),
        ("STOKER_BUS__BATCH", "many", ["bus.batch", "valid integer", "'many'"]),
        ("STOKER_BUS__BATCH", "0", ["bus.batch", "greater than or equal to 1", "'0'"]),
        ("STOKER_LEASE_S", "-1", ["lease_s", "greater than 0", "'-1'"]),
        ("STOKER_LOG__LEVEL", "loud", ["log.level", "'debug', 'info', 'warning' or 'error'", "'loud'"]),
        ("STOKER_CLOCK__SPEED", "0", ["clock.speed", "greater than 0"]),
        ("STOKER_INSTANCE", "", ["instance", "at least 1 character"]),
        ("STOKER_BUS", "not json", ["bus", "EnvSettingsSource"]),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_value_and_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: list[str]
):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsRefused) as refused:
        load(RuntimeSettings)
    for part in told:
        assert part in str(refused.value)


def test_every_wrong_setting_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STOKER_LEASE_S", "x")
    monkeypatch.setenv("STOKER_HTTP__PORT", "99999")
    with pytest.raises(SettingsRefused, match=r"(?s)http\.port.*lease_s|lease_s.*http\.port"):
        load(RuntimeSettings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bus: {bach: 3}", "bus.bach"),
        ("- a\n- b\n", "holds list: expected a mapping"),
        ("", "holds NoneType: expected a mapping"),
        ("bus: [", "cannot be read"),
        ("lease_s: soon", "lease_s"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(config, text: str, told: str):
    path = config(text)
    with pytest.raises(SettingsRefused) as refused:
        load(RuntimeSettings)
    assert told in str(refused.value)
    if "STOKER_CONFIG" in str(refused.value):
        assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("STOKER_CONFIG", str(tmp_path / "absent.yaml"))
    with pytest.raises(SettingsRefused, match=r"absent\.yaml cannot be read"):
        load(RuntimeSettings)


def test_a_misspelt_variable_is_found_and_known_ones_are_not(monkeypatch: pytest.MonkeyPatch):
    for name in ("STOKER_BUSS__URL", "STOKER_LEASES", "STOKER_LEASE_S", "STOKER_BUS__URL", "STOKER_CONFIG"):
        monkeypatch.setenv(name, "1")
    found = unknown_environment(set(RuntimeSettings.model_fields))
    assert found == ["STOKER_BUSS__URL", "STOKER_LEASES"]


@pytest.mark.parametrize("group", [BusSettings, ClockSettings, HttpSettings, LogSettings, RuntimeSettings])
def test_every_setting_is_explained_and_nothing_can_be_changed_later(group: type[BaseModel]):
    assert group.model_config["extra"] == "forbid"
    assert group.model_config["frozen"] is True
    for name, field in group.model_fields.items():
        assert field.description, name
