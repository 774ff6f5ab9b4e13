"""What the predictor issues: the load that will be there when a decision taken now serves traffic."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import Contract, Count, Name, Quality, Rate, Seconds, Tokens, UnixSeconds


class RateQuantile(Contract):
    """One quantile of the load within the horizon."""

    quantile: Annotated[float, Field(gt=0, lt=1)]
    """The quantile's level."""
    rate_rps: Rate
    """The largest request rate within the horizon."""
    input_tokens: Tokens | None = None
    """Mean input tokens of a request over the horizon, at this level of their own distribution."""
    output_tokens: Tokens | None = None
    """Mean output tokens of a request over the horizon, at this level of their own distribution."""


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
            if _fall(lower.input_tokens, upper.input_tokens) or _fall(
                lower.output_tokens, upper.output_tokens
            ):
                raise ValueError("rate: expected token means that do not fall from one quantile to the next")
        return self


def _fall(lower: float | None, upper: float | None) -> bool:
    return lower is not None and upper is not None and upper < lower


def rate_at(forecast: ForecastIssued, quantile: float) -> float:
    """The forecast's rate at a quantile, interpolated between those issued, in requests per second."""
    return _between([(one.quantile, one.rate_rps) for one in forecast.rate], quantile)


def tokens_at(forecast: ForecastIssued, quantile: float) -> tuple[float | None, float | None]:
    """Mean input and output tokens at a quantile, interpolated; the expected ones where no quantiles were issued."""
    inputs = [(one.quantile, one.input_tokens) for one in forecast.rate if one.input_tokens is not None]
    outputs = [(one.quantile, one.output_tokens) for one in forecast.rate if one.output_tokens is not None]
    return (
        _between(inputs, quantile) if inputs else forecast.input_tokens,
        _between(outputs, quantile) if outputs else forecast.output_tokens,
    )


def _between(points: Sequence[tuple[float, float]], level: float) -> float:
    """The figure at a level between points of rising level, beyond them that of the nearest."""
    if level <= points[0][0]:
        return points[0][1]
    for (lower, one), (upper, two) in pairwise(points):
        if level <= upper:
            return one + (level - lower) / (upper - lower) * (two - one)
    return points[-1][1]
