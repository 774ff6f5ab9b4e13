"""Series and journal entries as JSON and back; floats keep every bit. Pure."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.predictor.core import Measured, Taken
from services.predictor.history import Floats, History
from services.predictor.quantiles import LEVELS
from services.predictor.series import Open, Record, Series


def dump(series: Series, names: Sequence[str]) -> bytes:
    """A series of the forecasters of these names, the last value first."""
    record = series.record
    return json.dumps(
        {
            "names": list(names),
            "end_s": series.end_s,
            "history": _plain(series.history),
            "fits": series.fits,
            "fitted_s": series.fitted_s,
            "fitted_steps": series.fitted_steps,
            "open": [_plain(one) for one in series.open],
            "record": None if record is None else _plain(record),
            "input_tokens": series.input_tokens,
            "output_tokens": series.output_tokens,
        }
    ).encode()


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
            input_tokens=_pair(kept["input_tokens"]),
            output_tokens=_pair(kept["output_tokens"]),
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


def _plain(held: Any) -> dict[str, Any]:
    return {key: _packed(v) if isinstance(v, np.ndarray) else v for key, v in vars(held).items()}


def _packed(array: Any) -> list[Any]:
    return [list(array.shape), b64encode(array.astype("<f8").tobytes()).decode()]


def _array(raw: Any, *shape: int) -> Floats:
    """An array as it was packed; of −1 in `shape` any number."""
    held, packed = raw
    found = np.frombuffer(b64decode(packed, validate=True), dtype="<f8").reshape([int(n) for n in held])
    if len(held) != len(shape) or any(n not in (-1, m) for n, m in zip(shape, found.shape, strict=True)):
        raise ValueError(f"an array of shape {found.shape}: expected {shape}")
    return found.astype(float)


def _history(raw: Any) -> History:
    rates = _array(raw["rates"], -1)
    return History(
        end_s=float(raw["end_s"]),
        width_s=float(raw["width_s"]),
        filled_s=float(raw["filled_s"]),
        rates=rates,
        logs=_array(raw["logs"], len(rates)),
        usable=_array(raw["usable"], len(rates)).astype(bool),
    )


def _fits(raw: Any) -> dict[str, dict[str, list[float]]]:
    return {
        name: {key: [float(v) for v in values] for key, values in fit.items()} for name, fit in raw.items()
    }


def _open(raw: Any, forecasters: int) -> Open:
    return Open(
        issued_at_s=float(raw["issued_at_s"]),
        due_at_s=float(raw["due_at_s"]),
        points_rps=_array(raw["points_rps"], forecasters),
        rates_rps=_array(raw["rates_rps"], forecasters + 1, len(LEVELS)),
        largest_rps=float(raw["largest_rps"]),
    )


def _record(raw: Any, forecasters: int) -> Record:
    return Record(
        ratios=_array(raw["ratios"], forecasters, -1),
        rises_rps=_array(raw["rises_rps"], forecasters),
        losses=_array(raw["losses"], forecasters + 1, len(LEVELS)),
        shift=_array(raw["shift"], len(LEVELS)),
        weight=float(raw["weight"]),
        scale=float(raw["scale"]),
        scored=int(raw["scored"]),
    )


def _pair(raw: Sequence[float]) -> tuple[float, float]:
    total, weight = raw
    return float(total), float(weight)
