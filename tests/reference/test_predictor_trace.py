"""Production traces, forecast window by window."""

from pathlib import Path

import pytest

from services.predictor.backtest import Score, run, score, warm_up
from services.predictor.service import pool_of
from services.predictor.settings import PredictorSettings
from services.predictor.traces import read

SETTINGS = PredictorSettings()
POOL = pool_of(SETTINGS)


def scores(path: Path, column: str, horizon_s: float, width_s: float = 30.0) -> tuple[Score, Score]:
    """The score of what was issued and that of the last value with its own intervals."""
    trace = read(path, width_s, [column])
    rates = trace.rates_rps[column]
    one = run(rates, trace.start_s, trace.width_s, horizon_s, POOL, SETTINGS, lambda: 0.0)
    first = warm_up(len(rates), trace.width_s)
    return score(rates, one, one.rates_rps, first), score(rates, one, one.last_rps, first)


def test_an_hour_of_requests_is_never_forecast_clearly_worse_than_by_its_last_value(
    reference_data: Path,
) -> None:
    chosen, last = scores(reference_data / "traces" / "azure-llm-2023-conv.csv", "total_rps", 150.0)
    assert chosen.pinball_p90 is not None and last.pinball_p90 is not None
    assert chosen.pinball_p90 <= 1.03 * last.pinball_p90
    # One hour with overlapping horizons holds about 24 independent ones.
    assert chosen.coverage is not None and 0.75 < chosen.coverage <= 1.0


@pytest.mark.parametrize(("horizon_s", "aim"), [(1800.0, 0.9), (3600.0, 0.75)])
@pytest.mark.parametrize(("trace", "column"), [("small", "client8_rps"), ("mid", "client101_rps")])
def test_tenants_with_days_reach_the_aims(
    reference_data: Path, trace: str, column: str, horizon_s: float, aim: float
) -> None:
    # Two of sixteen; `stoker backtest` shows all.
    chosen, last = scores(reference_data / "traces" / f"servegen-m-{trace}.csv", column, horizon_s)
    assert chosen.pinball_p90 is not None and last.pinball_p90 is not None
    assert chosen.pinball_p90 <= aim * last.pinball_p90
    assert chosen.coverage is not None and 0.87 <= chosen.coverage <= 0.93


def test_where_only_the_last_value_is_any_good_it_is_kept_to(reference_data: Path) -> None:
    chosen, last = scores(reference_data / "traces" / "servegen-m-mid.csv", "client15_rps", 600.0)
    assert chosen.pinball_p90 is not None and last.pinball_p90 is not None
    assert chosen.pinball_p90 <= 1.03 * last.pinball_p90
