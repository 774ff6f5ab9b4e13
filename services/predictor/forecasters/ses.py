"""Simple exponential smoothing whose smoothing constant is the one that has erred least of late."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class SesSettings(BaseModel):
    """The smoothing constants that compete."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    alphas: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        0.05,
        0.1,
        0.2,
        0.35,
        0.6,
    )
    """Weight of a new window of the reference width."""
    reference_s: Annotated[float, Field(gt=0)] = 30.0
    """Width in seconds that the weights are meant for; wider windows weigh more."""
    forget: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """What an error still counts one window later; about fifty windows are remembered."""


@dataclass(frozen=True)
class SesState:
    """A level and a discounted sum of absolute errors for each constant."""

    levels: tuple[float, ...]
    errors: tuple[float, ...]


class SesForecaster:
    """Level l ← l + a(x − l) for each constant a; the constant with the least discounted error speaks."""

    name: ClassVar[str] = "ses"
    Settings: ClassVar[type[BaseModel]] = SesSettings

    def __init__(self, settings: SesSettings) -> None:
        self._settings = settings

    def start(self) -> SesState | None:
        return None

    def update(self, state: SesState | None, width_s: float, value: float) -> SesState:
        alphas, forget = self._settings.alphas, self._settings.forget
        if state is None:
            return SesState((value,) * len(alphas), (0.0,) * len(alphas))
        windows = width_s / self._settings.reference_s
        levels, errors = [], []
        for alpha, level, error in zip(alphas, state.levels, state.errors, strict=True):
            weight = alpha if windows == 1.0 else 1.0 - (1.0 - alpha) ** windows
            errors.append(forget * error + abs(value - level))
            levels.append(level + weight * (value - level))
        return SesState(tuple(levels), tuple(errors))

    def forecast(self, state: SesState | None, horizon_s: float) -> float | None:
        if state is None:
            return None
        return max(0.0, state.levels[state.errors.index(min(state.errors))])

    def dump(self, state: SesState | None) -> Any:
        return None if state is None else [list(state.levels), list(state.errors)]

    def load(self, raw: Any) -> SesState | None:
        if raw is None:
            return None
        levels, errors = raw
        if not len(levels) == len(errors) == len(self._settings.alphas):
            raise ValueError(f"expected {len(self._settings.alphas)} levels and errors")
        return SesState(tuple(map(float, levels)), tuple(map(float, errors)))
