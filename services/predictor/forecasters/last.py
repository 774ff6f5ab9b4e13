"""The last value: the baseline that every other forecaster has to beat."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from services.predictor.forecaster import Fit, Said
from services.predictor.history import History


class LastSettings(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LastForecaster:
    """What was seen last goes on, outages included."""

    name: ClassVar[str] = "last"
    Settings: ClassVar[type[BaseModel]] = LastSettings

    def __init__(self, settings: LastSettings) -> None:
        del settings

    def fit(self, history: History, steps: int) -> Fit | None:
        return {}

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        return Said(history.newest_rps)
