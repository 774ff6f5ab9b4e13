"""What the predictor issues: the load that will be there when a decision taken now serves traffic."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import Contract, Count, Name, Quality, Rate, Seconds, Tokens, UnixSeconds


class RateQuantile(Contract):
    """One quantile of the largest request rate within the horizon."""

    quantile: Annotated[float, Field(gt=0, lt=1)]
    """The quantile's level."""
    rate_rps: Rate
    """Its value."""


class BacktestScore(Contract):
    """How the forecaster did recently at this horizon, against repeating the last value."""

    windows: Count
    """Forecasts scored."""
    pinball_p90: Annotated[float, Field(ge=0)]
    """Mean pinball loss at 0.9, in requests per second."""
    pinball_p90_last: Annotated[float, Field(ge=0)]
    """The same for the last value."""


class ForecastIssued(Contract):
    """Load of one server over its lead time."""

    server: Name
    """The server."""
    issued_at_s: UnixSeconds
    """End of the newest window used."""
    horizon_s: Seconds
    """The lead time: start-up of a replica plus one control cycle."""
    quality: Quality
    """Quality of the newest window used."""
    rate: tuple[RateQuantile, ...] = Field(min_length=1)
    """Quantiles of the largest rate within the horizon, in rising order."""
    input_tokens: Tokens | None = None
    """Expected mean input tokens."""
    output_tokens: Tokens | None = None
    """Expected mean output tokens."""
    forecaster: Name
    """Plug-in whose forecast this is."""
    reason: Annotated[str, Field(max_length=2000)] = ""
    """Why this forecaster was chosen."""
    score: BacktestScore | None = None
    """Recent score, once there is one."""

    @model_validator(mode="after")
    def _quantiles_rise(self) -> "ForecastIssued":
        for lower, upper in pairwise(self.rate):
            if upper.quantile <= lower.quantile or upper.rate_rps < lower.rate_rps:
                raise ValueError("rate: expected rising quantiles with rates that do not fall")
        return self


def rate_at(forecast: ForecastIssued, quantile: float) -> float:
    """The forecast's rate at a quantile, interpolated between those issued, in requests per second."""
    points = forecast.rate
    if quantile <= points[0].quantile:
        return points[0].rate_rps
    for lower, upper in pairwise(points):
        if quantile <= upper.quantile:
            share = (quantile - lower.quantile) / (upper.quantile - lower.quantile)
            return lower.rate_rps + share * (upper.rate_rps - lower.rate_rps)
    return points[-1].rate_rps
