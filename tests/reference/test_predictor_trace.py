"""One hour of production request arrivals, forecast window by window."""

import csv
from datetime import datetime
from pathlib import Path

import pytest

from schemas.base import Quality
from schemas.forecast import ForecastIssued, rate_at
from schemas.telemetry import TelemetryObserved
from services.predictor.core import State, step
from services.predictor.forecasters.last import LastForecaster, LastSettings
from services.predictor.forecasters.ses import SesForecaster, SesSettings
from services.predictor.quantiles import pinball
from services.predictor.settings import PredictorSettings

WIDTH_S = 30.0
START_S = 1.7e9
LAST, SES = LastForecaster(LastSettings()), SesForecaster(SesSettings())


def rates_of(path: Path) -> list[float]:
    """Requests per second in whole windows."""
    with path.open() as file:
        stamps = [row["TIMESTAMP"] for row in csv.DictReader(file)]
    at = [datetime.fromisoformat(stamp[:26]) for stamp in stamps]
    windows = int((at[-1] - at[0]).total_seconds() // WIDTH_S)
    counts = [0] * windows
    for moment in at:
        index = int((moment - at[0]).total_seconds() // WIDTH_S)
        if index < windows:
            counts[index] += 1
    return [count / WIDTH_S for count in counts]


def issued_by(pool: list[LastForecaster | SesForecaster], rates: list[float]) -> list[ForecastIssued]:
    """The forecast after each window."""
    state, issued = State(), []
    for index, rate in enumerate(rates):
        seen = TelemetryObserved(
            server="s",
            model="m",
            window_start_s=START_S + index * WIDTH_S,
            window_end_s=START_S + (index + 1) * WIDTH_S,
            quality=Quality.OK,
            offered_rate_rps=rate,
        )
        state, outputs = step(state, [seen], pool, PredictorSettings())
        issued += outputs.issued
    return issued


def losses(rates: list[float], issued: list[ForecastIssued]) -> tuple[float, float]:
    """Mean pinball loss at 0.9, and share covered, of the largest rate within the horizon."""
    ahead = round(issued[0].horizon_s / WIDTH_S)
    total, covered, scored = 0.0, 0, range(10, len(rates) - ahead)
    for index in scored:
        largest, said = max(rates[index + 1 : index + 1 + ahead]), rate_at(issued[index], 0.9)
        total += pinball(largest, said, 0.9)
        covered += largest <= said
    return total / len(scored), covered / len(scored)


@pytest.mark.parametrize("trace", ["azure-llm-2023-conv.csv"])
def test_forecasts_are_never_clearly_worse_than_repeating_the_last_value(
    reference_data: Path, trace: str
) -> None:
    rates = rates_of(reference_data / "traces" / trace)
    assert len(rates) > 100
    chosen, coverage = losses(rates, issued_by([LAST, SES], rates))
    baseline, _ = losses(rates, issued_by([LAST], rates))
    assert chosen <= 1.03 * baseline
    # One hour with overlapping horizons holds about 24 independent ones.
    assert 0.75 < coverage <= 1.0
