"""Settings of every service: from the environment (STOKER_…, joined by __) over an optional YAML file."""

import os
import socket
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from services.runtime.clock import AcceleratedClock, Clock, WallClock
from services.runtime.envelope import problems


class Group(BaseModel):
    """A group of settings; an unknown key is an error at start."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BusSettings(Group):
    """How to reach NATS."""

    url: str = "nats://127.0.0.1:4222"
    """Server address, or several separated by commas."""
    user: str | None = None
    """User name; each service has its own with the least rights."""
    password: SecretStr | None = None
    """Password of the user."""
    nkey_seed_file: Path | None = None
    """File with the nkey seed, instead of a password."""
    credentials_file: Path | None = None
    """File with JWT credentials, instead of a password."""
    ca_file: Path | None = None
    """CA certificate; TLS is used when it is set or the address begins with tls://."""
    certificate_file: Path | None = None
    """Our own certificate with its key in one file, for a server that asks for it; needs ca_file."""
    connect_timeout_s: float = Field(default=30.0, gt=0)
    """How long to wait for the first connection; Kubernetes may start NATS after us."""
    publish_timeout_s: float = Field(default=2.0, gt=0)
    """Wait for one acknowledgement before the publish is repeated under the same id."""
    publish_deadline_s: float = Field(default=10.0, gt=0)
    """Longest time to go on repeating; then the work is done again later."""
    batch: int = Field(default=512, ge=1, le=10_000)
    """Most messages handled at once; bounds memory and latency."""
    max_deliveries: int = Field(default=5, ge=1)
    """Deliveries after which a message that keeps failing is parked."""
    storage: Literal["file", "memory"] = "file"
    """Storage of streams that are created; memory for tests only."""
    replicas: int = Field(default=1, ge=1, le=5)
    """Copies of each stream that are created; 3 on a cluster."""

    @model_validator(mode="after")
    def _has_what_its_certificate_needs(self) -> "BusSettings":
        if self.certificate_file is not None and self.ca_file is None:
            raise ValueError("certificate_file is set without ca_file, and would not be used")
        return self


class ClockSettings(Group):
    """Control time."""

    speed: float = Field(default=1.0, gt=0, le=10_000)
    """Control seconds per wall second; above 1 only against a simulated fleet."""
    anchor_s: float | None = None
    """Unix seconds at which an accelerated clock agrees with the wall; all processes share it."""


class HttpSettings(Group):
    """Health and metrics endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 in a container."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port; 0 takes a free one and logs it."""


class LogSettings(Group):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important level that is written."""
    format: Literal["json", "text"] = "json"
    """json for machines, text for people."""


class RuntimeSettings(BaseSettings):
    """What every service has."""

    model_config = SettingsConfigDict(
        env_prefix="STOKER_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    instance: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", min_length=1)
    """Name of this process among the copies of a service; the pod's name in Kubernetes."""
    bus: BusSettings = BusSettings()
    """How to reach NATS."""
    clock: ClockSettings = ClockSettings()
    """Control time."""
    http: HttpSettings = HttpSettings()
    """Health and metrics endpoint."""
    log: LogSettings = LogSettings()
    """Structured logs."""
    lease_s: float = Field(default=10.0, gt=0)
    """Wall seconds after which the lease of a silent holder passes to another."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = os.environ.get("STOKER_CONFIG")
        in_file = _of_file(Path(path), settings_cls) if path else {}
        return (init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=in_file))


S = TypeVar("S", bound=RuntimeSettings)


class SettingsRefused(ValueError):
    """Settings that cannot be used; the text names each, its value and what was expected."""


def load(settings: type[S], **overrides: Any) -> S:
    """Read settings from overrides, then the environment, then the file that STOKER_CONFIG names.

    Raises SettingsRefused.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        raise SettingsRefused(f"settings: {problems(error, most=20)}") from None
    except SettingsError as error:
        raise SettingsRefused(f"settings: {error}: {error.__cause__}") from None


def unknown_environment(known: set[str]) -> list[str]:
    """STOKER_ variables that no setting reads: likely misspelt."""
    own = {"STOKER_CONFIG", "STOKER_DATA"}
    heads = {f"STOKER_{name.upper()}" for name in known}
    return sorted(
        name
        for name in os.environ
        if name.startswith("STOKER_")
        and name not in own
        and name.split("__")[0] not in heads
        and not name.startswith("STOKER_TEST_")
    )


def clock_of(settings: ClockSettings) -> Clock:
    """The clock that the settings describe; raises SettingsRefused for an acceleration without an anchor."""
    if settings.speed == 1.0:
        return WallClock()
    if settings.anchor_s is None:
        raise SettingsRefused("clock.anchor_s: expected Unix seconds with a speed other than 1")
    return AcceleratedClock(settings.speed, settings.anchor_s)


def _of_file(path: Path, settings: type[BaseSettings]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsRefused(f"STOKER_CONFIG: {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SettingsRefused(f"STOKER_CONFIG: {path} holds {type(content).__name__}: expected a mapping")
    return {key: value for key, value in content.items() if key in settings.model_fields}
