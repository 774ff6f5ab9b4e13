"""Direct linear quantile regression of the log of the largest rate ahead."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import ndtri

from services.predictor.design import newest, product, seasons_of, training
from services.predictor.forecaster import Fit, Said
from services.predictor.history import Floats, History
from services.predictor.quantiles import LEVELS

_FITTED = (0.5, 0.9, 0.99)


def _between() -> list[tuple[int, float]]:
    """For each of LEVELS which two of _FITTED it lies between, and at which share of their normal scores."""
    scores = ndtri(_FITTED)
    first = [int(i) for i in np.clip(np.searchsorted(_FITTED, LEVELS, side="right") - 1, 0, len(_FITTED) - 2)]
    return [
        (i, float((ndtri(level) - scores[i]) / (scores[i + 1] - scores[i])))
        for i, level in zip(first, LEVELS, strict=True)
    ]


_BETWEEN = _between()
_ROWS_PER_COLUMN = 6
_SOFTENING = 0.01
"""Residuals below a per cent weigh alike; without it a row that is met exactly would weigh without end."""


class QuantileRegressionSettings(BaseModel):
    """How the regression is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ridge: Annotated[float, Field(gt=0)] = 2.0
    """Penalty on a coefficient of a regressor of variance one, in rows."""
    iterations: Annotated[int, Field(ge=1, le=1000)] = 12
    """Reweighted least-squares steps."""


class QuantileRegressionForecaster:
    """Quantiles 0.5, 0.9, 0.99 by regression (Koenker and Bassett, 1978), those between by normal scores.

    Each is kept within what was seen in training.
    """

    name: ClassVar[str] = "quantile-regression"
    Settings: ClassVar[type[BaseModel]] = QuantileRegressionSettings

    def __init__(self, settings: QuantileRegressionSettings) -> None:
        self._settings = settings

    def fit(self, history: History, steps: int) -> Fit | None:
        seasons = len(seasons_of(history))
        rows, targets = training(history, steps, seasons)
        if len(targets) < _ROWS_PER_COLUMN * rows.shape[1]:
            return None
        spread = np.sqrt(np.maximum(rows.var(axis=0), 1e-9))
        spread[0] = 1.0
        scaled = rows / spread
        fit = {
            str(level): (
                minimized(scaled, targets, level, self._settings.ridge, self._settings.iterations) / spread
            ).tolist()
            for level in _FITTED
        }
        within = [float(targets.min()), float(targets.max())]
        return fit | {"within": within, "seasons": [float(seasons)]}

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        row = newest(history, steps, int(fit["seasons"][0]))
        lowest, highest = fit["within"]
        low, middle, high = (min(max(product(row, fit[str(n)]), lowest), highest) for n in _FITTED)
        middle = max(low, middle)
        rises = (low, middle, max(middle, high))
        between = [rises[i] + share * (rises[i + 1] - rises[i]) for i, share in _BETWEEN]
        now = float(history.logs[-1])
        rates = tuple(history.rate_of(now + rise) for rise in between)
        return Said(rates[0], rates)


def minimized(rows: Floats, targets: Floats, level: float, ridge: float, iterations: int) -> Floats:
    """Coefficients of least pinball loss plus a ridge on all but the first column; shape (columns,).

    Majorize-minimize on the softened loss (Hunter and Lange, JCGS 9, 2000): weights 1/(ε + |r|), and the slope
    2·level − 1 on the right-hand side.
    """
    penalty = np.full(rows.shape[1], ridge)
    penalty[0] = 1e-9
    held = np.diag(penalty)
    tilt = (2.0 * level - 1.0) * rows.sum(axis=0)
    found = np.linalg.solve(rows.T @ rows + held, rows.T @ targets)
    for _ in range(iterations):
        weighted = rows / (_SOFTENING + np.abs(targets - rows @ found))[:, None]
        found = np.linalg.solve(weighted.T @ rows + held, weighted.T @ targets + tilt)
    return np.asarray(found, dtype=np.float64)
