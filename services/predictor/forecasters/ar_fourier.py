"""Autoregression with daily and weekly Fourier terms on log rates, direct for the horizon."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.predictor.design import newest, product, seasons_of, training
from services.predictor.forecaster import Fit, Said
from services.predictor.history import History

_ROWS_PER_COLUMN = 4


class ArFourierSettings(BaseModel):
    """How strongly coefficients are held at zero."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ridge: Annotated[float, Field(gt=0)] = 5.0
    """Penalty on a coefficient of a regressor of variance one, in rows."""


class ArFourierForecaster:
    """Ridge regression (Hoerl and Kennard, 1970) of the log of the largest rate ahead on `design.regressors`.

    The prediction is kept within what was seen in training.
    """

    name: ClassVar[str] = "ar-fourier"
    Settings: ClassVar[type[BaseModel]] = ArFourierSettings

    def __init__(self, settings: ArFourierSettings) -> None:
        self._settings = settings

    def fit(self, history: History, steps: int) -> Fit | None:
        seasons = len(seasons_of(history))
        rows, targets = training(history, steps, seasons)
        if len(targets) < _ROWS_PER_COLUMN * rows.shape[1]:
            return None
        penalty = self._settings.ridge * np.maximum(rows.var(axis=0), 1e-9)
        found = np.linalg.solve(rows.T @ rows + np.diag(penalty), rows.T @ targets)
        within = [float(targets.min()), float(targets.max())]
        return {"coefficients": found.tolist(), "within": within, "seasons": [float(seasons)]}

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        row = newest(history, steps, int(fit["seasons"][0]))
        rise = min(max(product(row, fit["coefficients"]), fit["within"][0]), fit["within"][1])
        return Said(history.rate_of(float(history.logs[-1]) + rise))
