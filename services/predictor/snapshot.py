"""Series and journal entries as JSON and back; floats keep every bit. Pure."""

import json
from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.predictor.choice import Levels, Rates, Record
from services.predictor.core import Taken
from services.predictor.history import Floats, History
from services.predictor.quantiles import LEVELS, Ratios
from services.predictor.series import Measured, Open, Series
from services.predictor.tokens import TokenMean, TokensSaid


def dump(series: Series, names: Sequence[str]) -> bytes:
    """A series of the forecasters of these names, the last value first."""
    return json.dumps({"names": list(names), **_plain(series)}, default=_plain).encode()


def load(raw: bytes, names: Sequence[str]) -> Series:
    """What `dump` wrote; raises ValueError for what cannot be read.

    Of a series of other forecasters the history is kept; what they did is learned anew.
    """
    try:
        kept = json.loads(raw)
        same = kept["names"] == list(names)
        return Series(
            end_s=float(kept["end_s"]),
            history=_history(kept["history"]),
            fits=_fits(kept["fits"]) if same else {},
            fitted_s=float(kept["fitted_s"]) if same else 0.0,
            fitted_steps=int(kept["fitted_steps"]) if same else 0,
            open=tuple(_open(one, len(names)) for one in kept["open"]) if same else (),
            record=_record(kept["record"], len(names)) if same and kept["record"] is not None else None,
            input_tokens=_token_mean(kept["input_tokens"]),
            output_tokens=_token_mean(kept["output_tokens"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot be read: {error!r}") from None


def dump_entry(taken: Mapping[str, Taken]) -> bytes:
    """A step's windows by server."""
    rows = {
        name: [[list(vars(w).values()) for w in one.windows], one.horizon_s, one.fit]
        for name, one in taken.items()
    }
    return json.dumps(rows).encode()


def load_entry(raw: bytes) -> dict[str, Taken]:
    """What `dump_entry` wrote; raises ValueError for what cannot be read."""
    try:
        return {
            name: Taken(tuple(Measured(*map(_number, w)) for w in windows), float(horizon_s), bool(fit))  # type: ignore[arg-type]
            for name, (windows, horizon_s, fit) in json.loads(raw).items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot be read: {error!r}") from None


def _number(raw: Any) -> float | None:
    return None if raw is None else float(raw)


def _plain(held: Any) -> Any:
    """Dataclasses by field, arrays packed; ratios as they came, from which their order follows."""
    if isinstance(held, Ratios):
        return _packed(np.array(held.came))
    return _packed(held) if isinstance(held, np.ndarray) else vars(held)


def _packed(figures: Floats) -> str:
    return b64encode(figures.astype("<f8").tobytes()).decode()


def _array(raw: Any) -> Floats:
    return np.frombuffer(b64decode(raw, validate=True), dtype="<f8").astype(float)


def _history(raw: Any) -> History:
    rates, logs, usable = (_array(raw[name]) for name in ("rates", "logs", "usable"))
    if not len(rates) == len(logs) == len(usable):
        raise ValueError(f"{len(rates)} rates, {len(logs)} logs, {len(usable)} flags: expected as many")
    return History(
        end_s=float(raw["end_s"]),
        width_s=float(raw["width_s"]),
        filled_s=float(raw["filled_s"]),
        rates=rates,
        logs=logs,
        usable=usable.astype(bool),
        highest_rps=float(raw["highest_rps"]),
    )


def _fits(raw: Any) -> dict[str, dict[str, list[float]]]:
    return {
        name: {key: [float(v) for v in values] for key, values in fit.items()} for name, fit in raw.items()
    }


def _open(raw: Any, forecasters: int) -> Open:
    said = raw["rates_rps"]
    return Open(
        issued_at_s=float(raw["issued_at_s"]),
        due_at_s=float(raw["due_at_s"]),
        newest_rps=float(raw["newest_rps"]),
        points_rps=_floats(raw["points_rps"], forecasters),
        rates_rps=Rates(_rows(said["pool"], forecasters), _levels(said["ensemble"]), _levels(said["issued"])),
        input_tokens=_tokens_said(raw["input_tokens"]),
        output_tokens=_tokens_said(raw["output_tokens"]),
    )


def _record(raw: Any, forecasters: int) -> Record:
    if len(raw["ratios"]) != forecasters:
        raise ValueError(f"ratios of {len(raw['ratios'])} forecasters: expected {forecasters}")
    return Record(
        ratios=tuple(map(_ratios, raw["ratios"])),
        rises_rps=_floats(raw["rises_rps"], forecasters),
        pool=_rows(raw["pool"], forecasters),
        pool_weight=float(raw["pool_weight"]),
        last=_levels(raw["last"]),
        ensemble=_levels(raw["ensemble"]),
        issued=_levels(raw["issued"]),
        plain=float(raw["plain"]),
        weight=float(raw["weight"]),
        shift=_levels(raw["shift"]),
        scale=float(raw["scale"]),
        scored=int(raw["scored"]),
    )


def _ratios(raw: Any) -> Ratios:
    came = array("d", _array(raw).tolist())
    return Ratios(came, array("d", sorted(came)))


def _token_mean(raw: Any) -> TokenMean:
    total, weight, since, requests = (float(raw[name]) for name in ("total", "weight", "sum", "requests"))
    return TokenMean(total, weight, since, requests, _ratios(raw["ratios"]))


def _tokens_said(raw: Any) -> TokensSaid:
    return TokensSaid(_number(raw["point"]), float(raw["sum"]), float(raw["requests"]))


def _rows(raw: Any, count: int) -> tuple[Levels, ...]:
    if len(raw) != count:
        raise ValueError(f"rows of {len(raw)} forecasters: expected {count}")
    return tuple(map(_levels, raw))


def _levels(raw: Any) -> Levels:
    return _floats(raw, len(LEVELS))


def _floats(raw: Any, count: int) -> tuple[float, ...]:
    if len(raw) != count:
        raise ValueError(f"{len(raw)} numbers: expected {count}")
    return tuple(map(float, raw))
