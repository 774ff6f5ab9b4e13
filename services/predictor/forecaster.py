"""What a forecaster is: fitted to a cleaned history now and then, asked for the largest rate ahead every window."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from pydantic import BaseModel

from services.predictor.history import History

Fit: TypeAlias = dict[str, list[float]]
"""What a forecaster learned, as JSON values: lists of numbers by name. Snapshots carry it as it is."""


@dataclass(frozen=True)
class Said:
    """A forecast of the largest rate of the next windows, in requests per second.

    quantiles_rps: at the levels of `quantiles.LEVELS`, where the forecaster has its own; else they are made
    from how its points turned out.
    """

    point_rps: float
    quantiles_rps: tuple[float, ...] = ()


class Forecaster(Protocol):
    """A plug-in, constructed as `Forecaster(settings)`, without clocks and hidden state.

    All that changes from window to window is the history: between fits a forecast costs one pass over its end.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]

    def fit(self, history: History, steps: int) -> Fit | None:
        """What can be learned for a horizon of `steps` windows; None while the history is too short."""

    def forecast(self, fit: Fit, history: History, steps: int) -> Said:
        """The largest rate of the next `steps` windows, finite and at least 0; the history is not empty."""
