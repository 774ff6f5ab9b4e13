"""Windows of one server, and what the predictor's core says of them one after another."""

import random
from typing import Any

from schemas.base import Quality
from schemas.forecast import ForecastIssued
from schemas.telemetry import InventoryObserved, StartupTime, TelemetryObserved, VariantInventory
from services.predictor.core import State, step
from services.predictor.service import pool_of
from services.predictor.settings import PredictorSettings

SETTINGS = PredictorSettings()
POOL = pool_of(SETTINGS)
NAMES = [forecaster.name for forecaster in POOL]
START_S = 1e9
WIDTH_S = 30.0


def window(index: float, rate: float | None, width_s: float = WIDTH_S, **changed: Any) -> TelemetryObserved:
    start_s = START_S + index * WIDTH_S
    figures: dict[str, Any] = {
        "server": "s",
        "model": "m",
        "window_start_s": start_s,
        "window_end_s": start_s + width_s,
        "quality": Quality.OK,
        "offered_rate_rps": rate,
    }
    return TelemetryObserved(**(figures | changed))


def run(rates: list[float | None], state: State | None = None) -> tuple[State, list[ForecastIssued]]:
    """The state and the forecasts of windows one after another; None is a window without a rate."""
    state, issued = state or State(), []
    for index, rate in enumerate(rates):
        state, outputs = step(state, [window(index, rate)], POOL, SETTINGS)
        issued += outputs.issued
    return state, issued


def inventory(startup: tuple[StartupTime, ...] = ()) -> InventoryObserved:
    return InventoryObserved(
        server="s",
        model="m",
        observed_at_s=START_S,
        quality=Quality.OK,
        variants=(VariantInventory(accelerator="A100", desired=1, ready=1, pending=0),),
        startup=startup,
    )


def poisson(chance: random.Random, mean: float) -> int:
    """A Poisson count by exponential gaps."""
    count, elapsed = 0, chance.expovariate(1.0)
    while elapsed < mean:
        count, elapsed = count + 1, elapsed + chance.expovariate(1.0)
    return count
