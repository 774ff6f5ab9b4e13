"""Load over time from files: a timestamped rate CSV, and request logs of Azure, BurstGPT and Mooncake. Pure.

| format | recognised by | time | tokens |
|---|---|---|---|
| rates | `window_start_s` or `timestamp`, then one column for each series | seconds, or ISO 8601 | – |
| Azure | `TIMESTAMP,ContextTokens,GeneratedTokens` | date and time | in, out |
| BurstGPT | `Timestamp,Model,Request tokens,Response tokens,…` | seconds | in, out; one series for each model |
| Mooncake | a JSON object in each line with `timestamp`, `input_length`, `output_length` | milliseconds | in, out |

Windows without a row in a rate CSV, and empty or NaN fields, are missing; of windows that come twice the later row
counts. A request log misses nothing: a window without requests is a zero.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from services.predictor.history import Floats

# A byte order mark, which spreadsheets write, is no part of the first name.
_ENCODING = "utf-8-sig"
_STARTS = ("window_start_s", "timestamp", "time")
_NOT_SERIES = ("active_clients",)
_MOST_WINDOWS = 1_000_000
_ALMOST = 0.95
"""Share of its last window that a request log must reach for it to count: its end is that of its last request."""


class TraceRefused(ValueError):
    """A trace that cannot be read; the text names the file, the place, the value and what was expected."""


@dataclass(frozen=True)
class Trace:
    """Series of equal windows.

    start_s: Unix seconds, or seconds of the trace's own, at which the first window begins; rates_rps: by series,
    requests per second, shape (n,), NaN where missing; tokens: by series, where lengths are known, mean input and
    mean output tokens of a request in each window, shape (n,), NaN where there was none.
    """

    start_s: float
    width_s: float
    rates_rps: Mapping[str, Floats]
    tokens: Mapping[str, tuple[Floats, Floats]]


def read(path: Path, width_s: float, columns: Sequence[str] = ()) -> Trace:
    """The series of a file in any of the formats, or those named.

    Parameters: width_s, the window that request logs are counted in; a rate CSV has its own. Raises TraceRefused.
    """
    try:
        with path.open(encoding=_ENCODING, newline="") as file:
            first = file.readline()
        found = _mooncake(path, width_s) if first.lstrip().startswith("{") else _of_csv(path, first, width_s)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceRefused(f"{path}: cannot be read: {error}") from None
    if missing := [name for name in columns if name not in found.rates_rps]:
        known = ", ".join(found.rates_rps)
        raise TraceRefused(f"{path}: column {missing[0]!r} does not exist; there is: {known}")
    wanted = {name: found.rates_rps[name] for name in columns or found.rates_rps}
    return Trace(found.start_s, found.width_s, wanted, found.tokens)


def _of_csv(path: Path, header: str, width_s: float) -> Trace:
    names = [name.strip() for name in next(csv.reader([header]), [])]
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(names):
        return _requests(path, width_s, _rows(path, names, "TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    if {"Timestamp", "Request tokens", "Response tokens"} <= set(names):
        model = "Model" if "Model" in names else ""
        figures = ("Timestamp", "Request tokens", "Response tokens")
        return _requests(path, width_s, _rows(path, names, *figures, model))
    start = next((name for name in names if name.lower() in _STARTS), None)
    series = [name for name in names if name != start and name not in _NOT_SERIES]
    if start is None or not series:
        raise TraceRefused(
            f"{path}: header {header.strip()[:200]!r}: expected one of {', '.join(_STARTS)} and columns of rates, "
            "or the header of an Azure or BurstGPT log, or Mooncake's JSON lines"
        )
    return _rates(path, names, start, series)


def _lines(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    """The rows below the header of a CSV, each with where it is, by the names without the spaces about them."""
    with path.open(encoding=_ENCODING, newline="") as file:
        reader = csv.DictReader(file, names, skipinitialspace=True)
        next(reader)
        for row in reader:
            yield f"{path}:{reader.line_num}", row


def _rates(path: Path, names: Sequence[str], start: str, series: Sequence[str]) -> Trace:
    at_s: list[float] = []
    rates: list[list[float]] = []
    for here, row in _lines(path, names):
        at_s.append(_seconds(row[start], f"{here}: {start}"))
        rates.append([_rate(row[name], f"{here}: {name}") for name in series])
    if len(at_s) < 2:
        raise TraceRefused(f"{path}: {len(at_s)} windows: expected at least 2")
    gaps = np.diff(np.unique(at_s))
    # The most frequent distance is the window; longer ones are gaps.
    widths, counts = np.unique(gaps, return_counts=True)
    if not len(widths):
        raise TraceRefused(f"{path}: every row begins at {at_s[0]}: expected a window after another")
    width_s = float(widths[counts.argmax()])
    begin_s = min(at_s)
    windows = round(_bounded(path, (max(at_s) - begin_s) / width_s)) + 1
    table = np.full((windows, len(series)), np.nan)
    for moment_s, values in zip(at_s, rates, strict=True):
        table[round((moment_s - begin_s) / width_s)] = values
    return Trace(begin_s, width_s, {name: table[:, i].copy() for i, name in enumerate(series)}, {})


@dataclass(frozen=True)
class _Request:
    at_s: float
    input_tokens: float
    output_tokens: float
    series: str


def _rows(
    path: Path, names: Sequence[str], at: str, inputs: str, outputs: str, series: str = ""
) -> Iterator[_Request]:
    for here, row in _lines(path, names):
        yield _Request(
            _seconds(row[at], f"{here}: {at}"),
            _rate(row[inputs], f"{here}: {inputs}"),
            _rate(row[outputs], f"{here}: {outputs}"),
            (row[series] or "") if series else "",
        )


def _mooncake(path: Path, width_s: float) -> Trace:
    def requests() -> Iterator[_Request]:
        with path.open(encoding=_ENCODING) as file:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                    figures = [row[name] for name in ("timestamp", "input_length", "output_length")]
                except (ValueError, TypeError, KeyError) as error:
                    raise TraceRefused(
                        f"{path}:{line}: {error!r}: expected an object with timestamp, input_length, output_length"
                    ) from None
                at, inputs, outputs = (_rate(str(figure), f"{path}:{line}") for figure in figures)
                yield _Request(at / 1000.0, inputs, outputs, "")

    return _requests(path, width_s, requests())


def _requests(path: Path, width_s: float, requests: Iterator[_Request]) -> Trace:
    held = list(requests)
    if not held:
        raise TraceRefused(f"{path}: no requests: expected at least one")
    at_s = np.array([one.at_s for one in held])
    if np.isnan(at_s).any():
        raise TraceRefused(f"{path}: a request without a time: expected seconds")
    begin_s = float(at_s.min())
    # A window that is not over when the log ends would count too few.
    windows = max(1, floor(_bounded(path, (float(at_s.max()) - begin_s) / width_s) + 1.0 - _ALMOST))
    places = ((at_s - begin_s) // width_s).astype(int)
    names = sorted({one.series for one in held if one.series})
    lengths = np.array([(one.input_tokens, one.output_tokens) for one in held])
    inside, known = places < windows, ~np.isnan(lengths).any(axis=1)
    rates, tokens = {}, {}
    for name in ["total_rps", *(names if len(names) > 1 else [])]:
        mine = inside & np.array([name == "total_rps" or one.series == name for one in held])
        rates[name] = np.bincount(places[mine], minlength=windows) / width_s
        if (measured := mine & known).any():
            tokens[name] = (
                _means(places[measured], lengths[measured, 0], windows),
                _means(places[measured], lengths[measured, 1], windows),
            )
    return Trace(begin_s, width_s, rates, tokens)


def _means(places: Any, lengths: Floats, windows: int) -> Floats:
    counts = np.bincount(places, minlength=windows)
    sums = np.bincount(places, weights=lengths, minlength=windows)
    return np.asarray(np.divide(sums, counts, out=np.full(windows, np.nan), where=counts > 0))


def _bounded(path: Path, windows: float) -> float:
    if windows > _MOST_WINDOWS:
        raise TraceRefused(
            f"{path}: {windows:.0f} windows: expected at most {_MOST_WINDOWS}; is the time in seconds?"
        )
    return windows


def _seconds(raw: str | None, where: str) -> float:
    try:
        found = float(raw or "")
    except ValueError:
        try:
            moment = datetime.fromisoformat((raw or "").strip())
        except ValueError:
            raise TraceRefused(f"{where} is {raw!r}: expected seconds or a date and time") from None
        found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0.0 <= found <= 1e11:
        raise TraceRefused(f"{where} is {raw!r}: expected 0 to 1e11 seconds")
    return found


def _rate(raw: str | None, where: str) -> float:
    if raw is None or not raw.strip():
        return float("nan")
    try:
        found = float(raw)
    except ValueError:
        raise TraceRefused(f"{where} is {raw!r}: expected a number") from None
    if found != found:
        return found
    if not 0.0 <= found <= 1e9:
        raise TraceRefused(f"{where} is {raw!r}: expected at least 0 and at most 1e9")
    return found
