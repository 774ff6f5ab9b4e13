"""Settings of the tuner."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.runtime.settings import RuntimeSettings


class ObservationSettings(BaseModel):
    """Which measurements the tuner learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_requests: float = Field(default=3.0, ge=1)
    """Requests that a replica's window must rest on; below three a mean says little."""
    max_age_s: float = Field(default=3600.0, gt=0)
    """Age beyond which a window is skipped; an hour covers a restart, older load teaches about the past."""
    max_ahead_s: float = Field(default=60.0, ge=0)
    """How far a window may end in the future; more is a wrong clock and would hide the windows after it."""
    waiting_share: float = Field(default=0.1, gt=0)
    """Waiting requests, as a share of the batch limit, from which a replica is saturated; below it a queue
    is fluctuation, and only the time to first token is left out."""
    excess_share: float = Field(default=0.2, gt=0)
    """Share by which arrivals exceed completions in a saturated replica; also required are three standard
    deviations of a Poisson count, so that a short window does not look overloaded by chance."""


class CalibrationSettings(BaseModel):
    """When the tuner proposes a sweep that would identify parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    points: int = Field(default=4, ge=1, le=50)
    """Points of a sweep; three parameters need three, and one more tells whether they fit."""
    least_observations: int = Field(default=20, ge=1)
    """Observations before which operation may still tell by itself."""
    every_s: float = Field(default=3600.0, gt=0)
    """Time after which a proposal that nothing came of is made again."""


class TunerSettings(BaseModel):
    """How parameters are learned in service."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    estimator: str = "moving-horizon"
    """Estimator plug-in; all pairs of model and accelerator use the same one."""
    estimator_settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the estimator, checked by it; empty takes its defaults."""
    law: str = "three-parameter"
    """Iteration law of pairs without declared parameters; the others keep the law of theirs."""
    observation: ObservationSettings = ObservationSettings()
    """Which measurements are learned from."""
    calibration: CalibrationSettings = CalibrationSettings()
    """When a sweep is proposed."""


class Settings(RuntimeSettings):
    """Settings of the tuner's process."""

    tuner: TunerSettings = TunerSettings()
    """How parameters are learned in service."""
