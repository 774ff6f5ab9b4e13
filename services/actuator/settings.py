"""Settings of the actuator."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from services.runtime.settings import RuntimeSettings


class ActuatorSettings(BaseModel):
    """What passes the gate, and where decisions go."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    target: str = "dry-run"
    """Target plug-in; nothing is touched until another one is named."""
    target_settings: dict[str, Any] = {}
    """Settings of the target."""
    rules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "opinion",
        "pause",
        "blackout",
        "ownership",
        "freshness",
        "emergency",
        "move",
        "deadband",
        "down",
        "up",
        "flap",
        "panic",
        "supply",
        "rollback",
        "zero",
        "limits",
    )
    """Rules of the gate in their order; what comes later sees what came before."""
    rule_settings: dict[str, dict[str, Any]] = {}
    """Settings of each rule by its name."""
    remember_s: Annotated[float, Field(gt=0, le=604_800)] = 7200.0
    """Control seconds of recommendations and reversals kept; longer than any window of a rule."""
    pending_at_most_s: Annotated[float, Field(gt=0, le=86_400)] = 1800.0
    """Control seconds after which a pending replica is given up whatever its start-up time."""
    unavailable_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Control seconds for which a type that could not be had is not asked for again."""


class Settings(RuntimeSettings):
    """Settings of the actuator's process."""

    actuator: ActuatorSettings = ActuatorSettings()
    """What passes the gate, and where decisions go."""
