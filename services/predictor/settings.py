"""Settings of the predictor."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from services.runtime.settings import RuntimeSettings


class WarmStart(BaseModel):
    """Where the load before the first message is found; a server that has a snapshot needs none."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: Path | None = None
    """Rate CSV with a column for each server, in Unix seconds and windows as wide as a control cycle."""
    prometheus_url: str | None = None
    """Address of Prometheus, asked once at the start."""
    query: str = "sum by (server) (rate(vllm:request_success_total[1m]))"
    """Range query of requests per second by server."""
    label: str = "server"
    """Label that names the server."""
    span_s: Annotated[float, Field(gt=0)] = 57_600.0
    """Seconds of the past that are asked for; Prometheus answers with 11 000 samples at most."""
    step_s: Annotated[float, Field(gt=0)] = 30.0
    """Distance of samples in seconds: a control cycle."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Wall seconds to wait for the answer; without it the start is cold."""


class PredictorSettings(BaseModel):
    """How load is forecast."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    forecasters: tuple[str, ...] = ("ses", "ar-fourier", "quantile-regression")
    """Forecasters that are combined with the last value, which always takes part."""
    forecaster_settings: dict[str, dict[str, Any]] = {}
    """Settings of each forecaster by its name."""
    history_windows: Annotated[int, Field(ge=8, le=100_000)] = 2016
    """Windows that are kept and fitted to; 14 days of ten minutes."""
    refit_windows: Annotated[int, Field(ge=1)] = 24
    """Windows between fits of one series."""
    refit_s: Annotated[float, Field(ge=0)] = 120.0
    """Control seconds between fits at the least; bounds the work where windows are narrow."""
    narrowest_s: Annotated[float, Field(ge=0)] = 5.0
    """Seconds that a window must have to be forecast from; narrower ones are joined until they have as many."""
    fits_per_step: Annotated[int, Field(ge=1)] = 16
    """Most series that one step fits, so that many that are due at once do not hold up the cycle."""
    ratios: Annotated[int, Field(ge=20, le=10_000)] = 500
    """Forecasts come due that are kept for the intervals."""
    trusted: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Forecasts come due from which intervals of rates need no Poisson floor, and token means have any."""
    judged: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Forecasts come due before the ensemble has a part in what is issued."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share by which the ensemble's loss must lie below that of the last value to weigh as much."""
    caution: Annotated[float, Field(ge=0, le=1000)] = 3.0
    """What the margin is wider by, over the number of horizons that losses are known of."""
    sharpness: Annotated[float, Field(ge=1, le=1000)] = 20.0
    """Power of the losses' ratio that is the odds of the ensemble; the larger, the more the mean is a choice."""
    forget: Annotated[float, Field(gt=0, lt=1)] = 0.998
    """What a loss still counts one forecast later, between ensemble and last value: about 500 are remembered."""
    pool_forget: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """The same within the pool, which a mean makes robust and which therefore may follow faster."""
    shift: Annotated[float, Field(ge=0, le=1)] = 0.08
    """How fast the ensemble's levels follow what they cover, in mean log errors."""
    warm_start: WarmStart = WarmStart()
    """Where the load before the first message is found."""
    gap_windows: Annotated[float, Field(ge=1)] = 3.0
    """Silence, in windows, after which what happened meanwhile is unknown and open forecasts are not scored."""
    token_half_life_s: Annotated[float, Field(gt=0)] = 300.0
    """Control seconds after which a window counts half in the token means: a few lead times."""


class Settings(RuntimeSettings):
    """Settings of the predictor's process."""

    predictor: PredictorSettings = PredictorSettings()
    """How load is forecast."""
