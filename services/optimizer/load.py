"""The load that a server is planned for, and where it is from. What was not measured is not zero."""

from dataclasses import dataclass

from schemas.base import Quality
from schemas.fleet import FleetDeclared, Server
from schemas.forecast import rate_at, tokens_at
from schemas.plan import Inputs
from services.optimizer.planning import OptimizerSettings
from services.optimizer.state import State

USABLE = (Quality.OK, Quality.PARTIAL)


@dataclass(frozen=True)
class Load:
    """What is planned for.

    inputs: the load and its sources, as plans carry them.
    missing: why there is no load to plan for; empty when there is.
    raise_only: whether nothing fresh was measured, so that a plan may add but not take away.
    """

    inputs: Inputs
    missing: str = ""
    raise_only: bool = False


def planned_load(
    state: State, fleet: FleetDeclared, server: Server, settings: OptimizerSettings, now_s: float
) -> Load:
    """The rate and the token means that a server is planned for.

    The rate is the fresh forecast's at the quantile of the service class, but not below the fresh measured
    one; the nominal rate counts only while nothing was ever measured. Token means are the forecast's at the same
    quantile, the window's, those last planned with, or the nominal ones, in this order.
    """
    window, forecast = state.telemetry.get(server.name), state.forecasts.get(server.name)
    seen = window is not None
    if window and (
        window.quality not in USABLE or now_s - window.window_end_s > settings.telemetry_stale_after_s
    ):
        window = None
    if forecast and (
        forecast.quality not in USABLE or now_s - forecast.issued_at_s > settings.forecast_stale_after_s
    ):
        forecast = None

    measured = window.offered_rate_rps if window else None
    rate, rate_from = measured, "telemetry" if measured is not None else ""
    expected_tokens: tuple[float | None, float | None] = (None, None)
    if forecast:
        quantile = next(c.forecast_quantile for c in fleet.service_classes if c.name == server.service_class)
        expected, expected_tokens = rate_at(forecast, quantile), tokens_at(forecast, quantile)
        if measured is None or expected > measured:
            rate, rate_from = expected, "forecast"
    elif not seen and server.nominal_rate_rps is not None:
        rate, rate_from = server.nominal_rate_rps, "nominal"

    last = state.last_plans.get(server.name)
    sources = (window, last.inputs if last else None)
    input_tokens, output_tokens = (
        _first(expected_tokens[0], *(s.input_tokens for s in sources if s), server.nominal_input_tokens),
        _first(expected_tokens[1], *(s.output_tokens for s in sources if s), server.nominal_output_tokens),
    )
    inputs = Inputs(
        fleet_revision=fleet.revision,
        window_end_s=window.window_end_s if window else None,
        forecast_at_s=forecast.issued_at_s if forecast else None,
        rate_rps=rate,
        rate_from=rate_from,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    if rate is None:
        missing = (
            "telemetry is stale or lacks the offered rate and there is no fresh forecast"
            if seen
            else "no telemetry yet, no forecast and no nominal rate"
        )
    elif input_tokens is None or output_tokens is None:
        missing = "the token lengths of its requests are not known: none measured, forecast or nominal"
    elif measured is None and seen and server.name not in state.inventory:
        missing = "nothing fresh was measured, and without an inventory nobody knows what more would be"
    else:
        missing = ""
    return Load(inputs, missing, raise_only=measured is None)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
