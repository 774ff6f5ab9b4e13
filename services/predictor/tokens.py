"""Tokens of a request, input or output: their mean over the horizon, and how far it strays from the newest. Pure.

The point forecast is a mean that forgets, weighted by requests. What comes is the mean over all requests of the
horizon, which is what a replica meets; the largest of single windows would say more of their few requests than of
the load. Its quantiles are conformal, as those of rates.
"""

from dataclasses import dataclass, field

from services.predictor.quantiles import LEVELS, Ratios, rising, with_ratio

_LEAST_REQUESTS = 1e-9
"""What rounding leaves of a forgotten weight is no request."""


@dataclass(frozen=True)
class TokenMean:
    """One kind of tokens of one server.

    total, weight: discounted sum of tokens and of requests; sum, requests: both since the series began, from
    which the mean over any span follows; ratios: how earlier forecasts turned out.
    """

    total: float = 0.0
    weight: float = 0.0
    sum: float = 0.0
    requests: float = 0.0
    ratios: Ratios = field(default_factory=Ratios)

    @property
    def point(self) -> float | None:
        """The mean to expect, in tokens; nothing before a request was measured."""
        return self.total / self.weight if self.weight > _LEAST_REQUESTS else None


@dataclass(frozen=True)
class TokensSaid:
    """A point forecast and where the sums stood when it was made."""

    point: float | None
    sum: float
    requests: float


def told(mean: TokenMean) -> TokensSaid:
    """What has to be remembered of a forecast until it is due."""
    return TokensSaid(mean.point, mean.sum, mean.requests)


def with_window(mean: TokenMean, tokens: float | None, requests: float, keep: float) -> TokenMean:
    """The mean after one more window; `keep` is what is left of the past, 0 to 1.

    Parameters: tokens, the window's mean, nothing where it was not measured; requests, its weight.
    """
    total, weight = mean.total * keep, mean.weight * keep
    if tokens is None or not requests:
        return TokenMean(total, weight, mean.sum, mean.requests, mean.ratios)
    came = tokens * requests
    return TokenMean(total + came, weight + requests, mean.sum + came, mean.requests + requests, mean.ratios)


def with_due(mean: TokenMean, said: TokensSaid, most: int) -> TokenMean:
    """The mean after a forecast came due, of which `most` are kept; nothing new where no request came."""
    requests = mean.requests - said.requests
    if said.point is None or requests <= _LEAST_REQUESTS * mean.requests:
        return mean
    came = max(mean.sum - said.sum, 0.0) / requests
    ratios = with_ratio(mean.ratios, (came + 1.0) / (said.point + 1.0), most)
    return TokenMean(mean.total, mean.weight, mean.sum, mean.requests, ratios)


def token_quantiles(mean: TokenMean, trusted: int) -> tuple[float, ...]:
    """The mean over the horizon at each of LEVELS, rising; nothing before a request was measured.

    Before `trusted` forecasts have come due it is the point at every level: the largest of a few ratios is chance,
    and what it adds would be planned for now and taken away later.
    """
    point = mean.point
    if point is None:
        return ()
    if len(mean.ratios) < trusted:
        return (point,) * len(LEVELS)
    return rising([(point + 1.0) * ratio - 1.0 for ratio in mean.ratios.at_levels()])
