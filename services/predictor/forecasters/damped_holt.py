"""Holt's method with a damped trend on cleaned log rates; its constants are fitted by statsmodels."""

import warnings
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from services.predictor.forecaster import Fit, Said
from services.predictor.history import History

_FEWEST = 10
_FITTED_TO = 576
_RECURSION = 200
"""Windows that the level is built up over; what is older weighs nothing at any constant that is fitted."""
_STILL = 1e-9


class DampedHoltSettings(BaseModel):
    """Nothing to set: the constants are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DampedHoltForecaster:
    """Level and trend with damping φ (Gardner and McKenzie, Management Science 31, 1985).

    l ← αy + (1−α)(l + φb),  b ← β(l − l′) + (1−β)φb,  forecast of step k: l + (φ + … + φᵏ)b. The forecast is kept
    within the levels of the history, which undamped trends after outages leave.
    """

    name: ClassVar[str] = "damped-holt"
    Settings: ClassVar[type[BaseModel]] = DampedHoltSettings

    def __init__(self, settings: DampedHoltSettings) -> None:
        del settings

    def fit(self, history: History, steps: int) -> Fit | None:
        if np.count_nonzero(history.usable) < _FEWEST:
            return None
        logs = history.logs[-_FITTED_TO:]
        if np.ptp(logs) < _STILL:
            return {"constants": [0.5, 0.0, 0.9]}
        from statsmodels.tsa.holtwinters import Holt

        with warnings.catch_warnings():
            # A fit that has not converged is still one; how it does is judged by what comes.
            warnings.simplefilter("ignore")
            found = Holt(logs, damped_trend=True, initialization_method="estimated").fit().params
        constants = [float(found[n]) for n in ("smoothing_level", "smoothing_trend", "damping_trend")]
        return {"constants": constants} if np.isfinite(constants).all() else None

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        level, slope = level_and_trend(history.logs[-_RECURSION:].tolist(), *fit["constants"])
        damping = fit["constants"][2]
        path = level + slope * np.cumsum(damping ** np.arange(1, min(steps, _RECURSION) + 1))
        return Said(history.rate_of(float(min(path.max(), history.logs.max()))))


def level_and_trend(logs: list[float], alpha: float, beta: float, damping: float) -> tuple[float, float]:
    """Level and trend after the last value, from the first as level and no trend; beta is statsmodels' β*."""
    level, trend = logs[0], 0.0
    for log in logs[1:]:
        before, expected = level, level + damping * trend
        level = expected + alpha * (log - expected)
        trend = damping * trend + beta * (level - before - damping * trend)
    return level, trend
