"""The last value: the baseline that every other forecaster has to beat."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class LastSettings(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LastForecaster:
    """What was seen last goes on."""

    name: ClassVar[str] = "last"
    Settings: ClassVar[type[BaseModel]] = LastSettings

    def __init__(self, settings: LastSettings) -> None:
        del settings

    def start(self) -> float | None:
        return None

    def update(self, state: float | None, width_s: float, value: float) -> float:
        return value

    def forecast(self, state: float | None, horizon_s: float) -> float | None:
        return state

    def dump(self, state: float | None) -> Any:
        return state

    def load(self, raw: Any) -> float | None:
        return None if raw is None else float(raw)
