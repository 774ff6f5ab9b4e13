"""One server's series: what every forecaster makes of it, forecasts not yet due, how earlier ones did. Pure."""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.predictor.forecaster import Forecaster
from services.predictor.quantiles import LEVELS, largest_rates, pinball
from services.predictor.settings import PredictorSettings

_P90 = LEVELS.index(0.9)


@dataclass(frozen=True)
class Open:
    """A forecast that is not due yet: what each forecaster said, and the largest rate since."""

    issued_at_s: float
    due_at_s: float
    points: Mapping[str, float]
    p90s: Mapping[str, float]
    largest_rps: float = 0.0


@dataclass(frozen=True)
class Record:
    """How one forecaster did: ratios in the order of their coming due, and its discounted pinball loss at 0.9.

    `rising` are the same ratios sorted, kept because sorting them for every forecast is dear; `rise_rps` is the
    furthest that a rate went beyond its point forecast, halved over as many forecasts as there are ratios kept.
    """

    ratios: tuple[float, ...] = ()
    loss: float = 0.0
    weight: float = 0.0
    scored: int = 0
    rise_rps: float = 0.0
    rising: tuple[float, ...] = ()

    @property
    def mean_loss(self) -> float:
        return self.loss / self.weight if self.weight else 0.0


@dataclass(frozen=True)
class Series:
    """Everything known of one server's load; times are control time in Unix seconds."""

    end_s: float = 0.0
    states: Mapping[str, Any] = field(default_factory=dict)
    open: tuple[Open, ...] = ()
    records: Mapping[str, Record] = field(default_factory=dict)
    input_tokens: tuple[float, float] = (0.0, 0.0)
    output_tokens: tuple[float, float] = (0.0, 0.0)
    """Discounted sum and weight of the token means."""


@dataclass(frozen=True)
class Spoken:
    """A forecast: the forecaster, why it, rates at LEVELS, and the losses behind the choice."""

    forecaster: str
    reason: str
    rates_rps: tuple[float, ...]
    scored: int
    loss: float
    loss_last: float


def advance(
    series: Series,
    start_s: float,
    end_s: float,
    rate_rps: float,
    forecasters: Sequence[Forecaster[Any]],
    settings: PredictorSettings,
) -> Series:
    """The series after one more window; what came due is scored, unless within a gap or after a long one."""
    width_s = end_s - start_s
    silent_s = start_s - series.end_s
    still = series.open if silent_s <= settings.gap_windows * width_s else ()
    records = dict(series.records)
    waiting = []
    for one in still:
        if one.due_at_s <= start_s:
            continue
        seen = one if rate_rps <= one.largest_rps else replace(one, largest_rps=rate_rps)
        if end_s < one.due_at_s - 0.5 * width_s:
            waiting.append(seen)
            continue
        for name, point_rps in one.points.items():
            records[name] = _scored(records.get(name, Record()), seen, name, point_rps, width_s, settings)
    states = {f.name: f.update(series.states.get(f.name, f.start()), width_s, rate_rps) for f in forecasters}
    return replace(series, end_s=end_s, states=states, open=tuple(waiting), records=records)


def _scored(
    record: Record, one: Open, name: str, point_rps: float, width_s: float, settings: PredictorSettings
) -> Record:
    ratio = (one.largest_rps * width_s + 1.0) / (point_rps * width_s + 1.0)
    ratios, rising = (*record.ratios, ratio), list(record.rising)
    insort(rising, ratio)
    for gone in ratios[: -settings.ratios]:
        del rising[bisect_left(rising, gone)]
    return Record(
        ratios=ratios[-settings.ratios :],
        loss=settings.forget * record.loss + pinball(one.largest_rps, one.p90s[name], LEVELS[_P90]),
        weight=settings.forget * record.weight + 1.0,
        scored=record.scored + 1,
        rise_rps=max(one.largest_rps - point_rps, record.rise_rps * 0.5 ** (1.0 / settings.ratios)),
        rising=tuple(rising),
    )


def speak(
    series: Series,
    width_s: float,
    horizon_s: float,
    forecasters: Sequence[Forecaster[Any]],
    settings: PredictorSettings,
) -> tuple[Series, Spoken | None]:
    """A forecast over the horizon, remembered until it is due; nothing before anything was observed.

    No more forecasts are remembered than ratios are kept, however long the horizon.
    """
    points: dict[str, float] = {}
    rates: dict[str, tuple[float, ...]] = {}
    for forecaster in forecasters:
        point_rps = forecaster.forecast(series.states.get(forecaster.name), horizon_s)
        if point_rps is None:
            continue
        record = series.records.get(forecaster.name, Record())
        points[forecaster.name] = point_rps
        rates[forecaster.name] = largest_rates(
            point_rps, record.rising, width_s, horizon_s, settings.trusted, record.rise_rps
        )
    if "last" not in points:
        return series, None
    name, reason = choose(series.records, points, settings)
    record, last = series.records.get(name, Record()), series.records.get("last", Record())
    spoken = Spoken(name, reason, rates[name], record.scored, record.mean_loss, last.mean_loss)
    if len(series.open) < settings.ratios:
        p90s = {n: r[_P90] for n, r in rates.items()}
        opened = Open(series.end_s, series.end_s + horizon_s, points, p90s)
        series = replace(series, open=(*series.open, opened))
    return series, spoken


def choose(
    records: Mapping[str, Record], points: Mapping[str, float], settings: PredictorSettings
) -> tuple[str, str]:
    """The forecaster with the least loss, and never one that does worse than the last value; and why."""
    last = records.get("last", Record())
    if last.scored < settings.judged:
        return "last", f"the last value: {last.scored} of {settings.judged} forecasts have come due"
    losses = {
        n: records[n].mean_loss for n in points if n in records and records[n].scored >= settings.judged
    }
    best = min(losses, key=lambda n: (losses[n], n != "last", n))
    said = ", ".join(f"{n} {loss:.4g}" for n, loss in sorted(losses.items()))
    if best == "last":
        return "last", f"the last value: nothing does better at 0.9 (pinball {said})"
    return best, f"{best} does better than the last value at 0.9 (pinball {said})"


def discounted(
    mean: tuple[float, float], value: float | None, weight: float, keep: float
) -> tuple[float, float]:
    """A discounted mean with one more value."""
    total, weights = mean[0] * keep, mean[1] * keep
    return (total, weights) if value is None else (total + weight * value, weights + weight)
