"""What a forecaster is: it follows one series and says where it stands over a horizon."""

from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel

S = TypeVar("S")


class Forecaster(Protocol[S]):
    """A plug-in, constructed as `Forecaster(settings)`, without clocks and hidden state; `S` is its own state.

    Its point forecast is the level that it expects within the horizon; how far the largest value goes beyond
    that is learned outside, from how forecasts turned out.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]

    def start(self) -> S:
        """The state before anything is observed."""

    def update(self, state: S, width_s: float, value: float) -> S:
        """The state after one more window of `width_s` seconds with a mean of `value`, at least 0."""

    def forecast(self, state: S, horizon_s: float) -> float | None:
        """The level expected over the next `horizon_s` seconds, at least 0; None before anything was observed."""

    def dump(self, state: S) -> Any:
        """The state as JSON values."""

    def load(self, raw: Any) -> S:
        """The state that `dump` wrote; raises ValueError, KeyError or TypeError for anything else."""
