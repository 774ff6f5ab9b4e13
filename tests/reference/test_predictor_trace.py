"""Production traces, forecast window by window."""

from pathlib import Path

import numpy as np
import pytest

from services.predictor.backtest import Score, run, score, warm_up
from services.predictor.quantiles import LEVELS
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


def never_worse(chosen: Score, last: Score) -> bool:
    """Whether what was issued lost at most 3 % more than the last value, by MASE too."""
    pairs = [
        (chosen.pinball_p50, last.pinball_p50),
        (chosen.pinball_p90, last.pinball_p90),
        (chosen.pinball_p95, last.pinball_p95),
        (chosen.mase, 1.0),
    ]
    return all(own is not None and theirs is not None and own <= 1.03 * theirs for own, theirs in pairs)


def test_an_hour_of_requests_is_never_forecast_clearly_worse_than_by_its_last_value(
    reference_data: Path,
) -> None:
    chosen, last = scores(reference_data / "traces" / "azure-llm-2023-conv.csv", "total_rps", 150.0)
    assert never_worse(chosen, last)
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
    assert never_worse(chosen, last)
    assert chosen.coverage is not None and 0.87 <= chosen.coverage <= 0.93


@pytest.mark.parametrize(("column", "horizon_s"), [("client15_rps", 600.0), ("client60_rps", 3600.0)])
def test_where_the_ensemble_is_worse_the_last_value_is_kept_to_at_every_level(
    reference_data: Path, column: str, horizon_s: float
) -> None:
    # At the median the ensemble alone loses three times what the last value does, and a third more.
    chosen, last = scores(reference_data / "traces" / "servegen-m-mid.csv", column, horizon_s)
    assert never_worse(chosen, last)


def test_at_ten_minutes_the_last_value_speaks_at_the_median_and_the_message_says_so(
    reference_data: Path,
) -> None:
    trace = read(reference_data / "traces" / "servegen-m-mid.csv", 600.0, ["total_rps"])
    rates = trace.rates_rps["total_rps"]
    one = run(rates, trace.start_s, trace.width_s, 600.0, POOL, SETTINGS, lambda: 0.0)
    assert "; the last value at 0.5" in one.reason and "where nothing does clearly better" in one.reason


def test_token_means_of_the_next_minutes_are_covered(reference_data: Path) -> None:
    trace = read(reference_data / "traces" / "azure-llm-2023-conv.csv", 10.0)
    rates, tokens = trace.rates_rps["total_rps"], trace.tokens["total_rps"]
    steps, first = 15, 90
    one = run(rates, trace.start_s, trace.width_s, 10.0 * steps, POOL, SETTINGS, lambda: 0.0, tokens)
    for means, said in zip(tokens, (one.input_tokens, one.output_tokens), strict=True):
        sums = np.nan_to_num(means) * rates
        came = [
            sums[i + 1 : i + 1 + steps].sum() / rates[i + 1 : i + 1 + steps].sum()
            for i in range(first, len(rates) - steps)
        ]
        covered = [mean <= said[i + first, LEVELS.index(0.9)] for i, mean in enumerate(came)]
        # The rest of the hour holds about 17 independent horizons.
        assert 0.75 < np.mean(covered) <= 1.0
