"""Settings of the predictor."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from services.runtime.settings import RuntimeSettings


class PredictorSettings(BaseModel):
    """How load is forecast."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    forecasters: tuple[str, ...] = ("ses",)
    """Forecasters that compete with the last value, which always takes part."""
    forecaster_settings: dict[str, dict[str, Any]] = {}
    """Settings of each forecaster by its name."""
    ratios: Annotated[int, Field(ge=20, le=10_000)] = 200
    """Forecasts come due that are kept for the intervals; about 100 minutes of 30 s cycles."""
    trusted: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Forecasts come due from which the intervals need no Poisson floor."""
    judged: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Forecasts come due before any forecaster may be preferred to the last value."""
    forget: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """What a loss still counts one forecast later."""
    gap_windows: Annotated[float, Field(ge=1)] = 3.0
    """Silence, in windows, after which what happened meanwhile is unknown and open forecasts are not scored."""
    token_half_life_s: Annotated[float, Field(gt=0)] = 600.0
    """Control seconds after which a window counts half in the token means."""


class Settings(RuntimeSettings):
    """Settings of the predictor's process."""

    predictor: PredictorSettings = PredictorSettings()
    """How load is forecast."""
