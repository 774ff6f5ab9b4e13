"""A random level with autoregressive noise on cleaned log rates, by statsmodels' Kalman filter."""

import warnings
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.predictor.forecaster import Fit, Said
from services.predictor.history import History

_FEWEST = 20
_STILL = 1e-9


class UnobservedComponentsSettings(BaseModel):
    """How much is fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    windows: Annotated[int, Field(ge=20)] = 288
    """Newest windows that variances are fitted to and the level is filtered over."""


class UnobservedComponentsForecaster:
    """y = μ + u, μ a random walk and u autoregressive of order one (Harvey, 1989, §4).

    Variances are fitted, the states filtered anew for every forecast; it is kept within the levels of the history.
    """

    name: ClassVar[str] = "unobserved-components"
    Settings: ClassVar[type[BaseModel]] = UnobservedComponentsSettings

    def __init__(self, settings: UnobservedComponentsSettings) -> None:
        self._settings = settings

    def fit(self, history: History, steps: int) -> Fit | None:
        logs = history.logs[-self._settings.windows :]
        if np.count_nonzero(history.usable) < _FEWEST:
            return None
        if np.ptp(logs) < _STILL:
            return {"parameters": []}
        from statsmodels.tsa.statespace.structural import UnobservedComponents

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = (
                UnobservedComponents(logs, level="rwalk", autoregressive=1).fit(disp=False, maxiter=50).params
            )
        # Without finite variances all that is left of the model is its random walk.
        return {"parameters": [float(p) for p in found] if np.isfinite(found).all() else []}

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        logs = history.logs[-self._settings.windows :]
        if not fit["parameters"] or np.ptp(logs) < _STILL:
            return Said(history.rate_of(float(logs[-1])))
        from statsmodels.tsa.statespace.structural import UnobservedComponents

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = UnobservedComponents(logs, level="rwalk", autoregressive=1)
            path = model.filter(np.array(fit["parameters"])).forecast(steps)
        furthest = float(np.nanmax(path)) if np.isfinite(path).any() else float(logs[-1])
        return Said(history.rate_of(min(furthest, float(history.logs.max()))))
