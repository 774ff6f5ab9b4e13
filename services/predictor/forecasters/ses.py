"""Simple exponential smoothing of cleaned log rates, with the smoothing constant that served this horizon best."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.predictor.design import levels, smoothed
from services.predictor.forecaster import Fit, Said
from services.predictor.history import History, largest_ahead

_FEWEST = 4


class SesSettings(BaseModel):
    """The smoothing constants that compete."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    alphas: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        0.1,
        0.2,
        0.35,
        0.6,
    )
    """Weight of the newest window."""


class SesForecaster:
    """Level l ← l + a(y − l) of log rates; a is that with the least absolute error over the history."""

    name: ClassVar[str] = "ses"
    Settings: ClassVar[type[BaseModel]] = SesSettings

    def __init__(self, settings: SesSettings) -> None:
        self._settings = settings

    def fit(self, history: History, steps: int) -> Fit | None:
        targets = largest_ahead(np.where(history.usable, history.logs, np.nan), steps)
        if np.count_nonzero(~np.isnan(targets)) < _FEWEST:
            return None
        errors = [
            float(np.nanmean(np.abs(targets - smoothed(history.logs, alpha)[: len(targets)])))
            for alpha in self._settings.alphas
        ]
        return {"alpha": [self._settings.alphas[errors.index(min(errors))]]}

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        return Said(history.rate_of(float(levels(history.logs, (fit["alpha"][0],))[0])))
