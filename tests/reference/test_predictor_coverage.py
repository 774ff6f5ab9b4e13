"""The share of what came that forecasts cover, on stationary loads long enough to tell it."""

import math
import random

import pytest
from predictor_windows import POOL, SETTINGS, WIDTH_S, inventory, poisson, run, window

from schemas.forecast import rate_at, tokens_at
from schemas.telemetry import StartupTime
from services.predictor.core import State, observe, step


def test_the_nominal_share_of_a_stationary_poisson_load_is_covered() -> None:
    # 4 points: 1 500 forecasts whose horizons overlap fivefold have a standard error below 2 points.
    chance = random.Random(3)
    rates = [poisson(chance, 90.0) / WIDTH_S for _ in range(1700)]
    _, issued = run(list(rates))
    horizon = round(issued[0].horizon_s / WIDTH_S)
    scored = range(200, len(rates) - horizon)
    for level in (0.75, 0.9, 0.95):
        share = sum(max(rates[i + 1 : i + 1 + horizon]) <= rate_at(issued[i], level) for i in scored) / len(
            scored
        )
        assert share == pytest.approx(level, abs=0.04)


def test_the_longer_the_learned_lead_time_the_more_is_forecast_and_each_is_covered() -> None:
    # 5 points: 700 forecasts whose horizons overlap up to tenfold have a standard error of about 3 points.
    chance = random.Random(9)
    rates = [poisson(chance, 90.0) / WIDTH_S for _ in range(900)]
    means = []
    for startup_s in (60.0, 270.0):
        learned = StartupTime(accelerator="A100", p50_s=0, p95_s=startup_s, samples=9)
        _, issued = run(list(rates), observe(State(), inventory((learned,))))
        windows = round((startup_s + WIDTH_S) / WIDTH_S)
        scored = range(200, len(rates) - windows)
        covered = [max(rates[i + 1 : i + 1 + windows]) <= rate_at(issued[i], 0.9) for i in scored]
        assert sum(covered) / len(covered) == pytest.approx(0.9, abs=0.05)
        means.append(sum(rate_at(issued[i], 0.5) for i in scored))
    assert means[1] > means[0]


def test_token_quantiles_cover_the_mean_over_the_horizon() -> None:
    # 4 points: 1 400 forecasts whose horizons overlap fivefold have a standard error below 2 points.
    chance, state, issued, lengths = random.Random(8), State(), [], []
    for index in range(1600):
        lengths.append(500.0 * math.exp(chance.gauss(0.0, 0.3)))
        came = window(index, 2.0, input_tokens=lengths[-1], output_tokens=100.0)
        state, outputs = step(state, [came], POOL, SETTINGS)
        issued += outputs.issued
    horizon = round(issued[0].horizon_s / WIDTH_S)
    means = [sum(lengths[i + 1 : i + 1 + horizon]) / horizon for i in range(len(lengths) - horizon)]
    for level in (0.5, 0.9, 0.95):
        said = [tokens_at(f, level) for f in issued]
        covered = [means[i] <= (said[i][0] or 0.0) for i in range(200, len(means))]
        assert sum(covered) / len(covered) == pytest.approx(level, abs=0.04)
    # What never varies is forecast as it is.
    assert said[-1][1] == pytest.approx(100.0)
