"""The same time one season ago."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from services.predictor.forecaster import Fit, Said
from services.predictor.history import DAY_S, History


class SeasonalLastSettings(BaseModel):
    """The season."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    period_s: Annotated[float, Field(gt=0)] = DAY_S
    """Length of the season in seconds."""


class SeasonalLastForecaster:
    """The largest cleaned rate of the same windows one season ago."""

    name: ClassVar[str] = "seasonal-last"
    Settings: ClassVar[type[BaseModel]] = SeasonalLastSettings

    def __init__(self, settings: SeasonalLastSettings) -> None:
        self._settings = settings

    def fit(self, history: History, steps: int) -> Fit | None:
        return {} if len(history) > history.windows(self._settings.period_s) else None

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        first = max(0, len(history) - history.windows(self._settings.period_s))
        return Said(history.rate_of(float(history.logs[first : first + steps].max())))
