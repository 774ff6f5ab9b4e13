"""The theta method on cleaned log rates; its constants are fitted by statsmodels."""

import warnings
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from services.predictor.design import levels
from services.predictor.forecaster import Fit, Said
from services.predictor.history import History

_FEWEST = 10
_FITTED_TO = 576
_STILL = 1e-9
_LEAST_ALPHA = 0.02


class ThetaSettings(BaseModel):
    """Nothing to set: the constants are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ThetaForecaster:
    """A smoothed level with half the slope of the whole (Hyndman and Billah, Int. J. Forecasting 19, 2003).

    Forecast of step k: l + (b/2)(k − 1 + 1/α), within the levels of the history.
    """

    name: ClassVar[str] = "theta"
    Settings: ClassVar[type[BaseModel]] = ThetaSettings

    def __init__(self, settings: ThetaSettings) -> None:
        del settings

    def fit(self, history: History, steps: int) -> Fit | None:
        if np.count_nonzero(history.usable) < _FEWEST:
            return None
        logs = history.logs[-_FITTED_TO:]
        if np.ptp(logs) < _STILL:
            return {"constants": [0.5, 0.0]}
        from statsmodels.tsa.forecasting.theta import ThetaModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ThetaModel(logs, period=1, deseasonalize=False).fit().params
        constants = [max(float(found["alpha"]), _LEAST_ALPHA), float(found["b0"])]
        return {"constants": constants} if np.isfinite(constants).all() else None

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        alpha, slope = fit["constants"]
        level = float(levels(history.logs, (alpha,))[0])
        furthest = level + 0.5 * slope * ((steps - 1 if slope > 0 else 0) + 1.0 / alpha)
        return Said(history.rate_of(min(furthest, float(history.logs.max()))))
