"""What a benchmark sweep is: load points of one engine, checked one by one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


class SweepRefused(ValueError):
    """A file that is no benchmark sweep; its text names the file, row, field, value and what was expected."""


@dataclass(frozen=True)
class LoadPoint:
    """One load that an engine was held under, in SI units.

    row: position in the file, from 1; label: the benchmark's name of the load.
    rate_rps: requests completed per second.
    input_tokens, output_tokens: means per request; *_sd their standard deviations, 0 where unknown.
    ttft_s, itl_s: means; *_p95_s: 95th percentiles, None where the file has none.
    concurrency: mean requests in flight, waiting included.
    clients: requests that a closed loop keeps in flight, None where requests arrive whatever the engine does.
    arrival_scv: squared coefficient of variation between arrivals: 0 constant rate, 1 Poisson.
    duration_s: length of the measurement; requests: how many were completed in it.
    """

    row: int
    label: str
    rate_rps: float
    input_tokens: float
    output_tokens: float
    ttft_s: float
    itl_s: float
    concurrency: float
    duration_s: float
    requests: float
    input_tokens_sd: float = 0.0
    output_tokens_sd: float = 0.0
    ttft_p95_s: float | None = None
    itl_p95_s: float | None = None
    clients: float | None = None
    arrival_scv: float = 0.0

    @property
    def latency_s(self) -> float:
        """Mean seconds from the request to its last token."""
        return self.ttft_s + (self.output_tokens - 1.0) * self.itl_s

    @property
    def kv_tokens_each(self) -> float:
        """KV tokens of a request in service, averaged over its life: E[LK + K²/2] / E[K]."""
        square = self.output_tokens**2 + self.output_tokens_sd**2
        return self.input_tokens + square / (2.0 * self.output_tokens)


@dataclass(frozen=True)
class Rejected:
    """A row that was left out, and why."""

    file: str
    row: int
    field: str
    value: float
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}: {self.field} is {self.value:g}, expected {self.expected}"


@dataclass(frozen=True)
class Sweep:
    """The usable load points of one file, and the rows that were left out."""

    file: str
    points: tuple[LoadPoint, ...]
    rejected: tuple[Rejected, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Powers of two nearest to the mean prompt and output lengths: what tells token shapes apart."""
        return (
            _power_of_two([point.input_tokens for point in self.points]),
            _power_of_two([point.output_tokens for point in self.points]),
        )


def _power_of_two(values: Sequence[float]) -> int:
    middle = sorted(values)[len(values) // 2]
    return int(2 ** round(math.log2(max(middle, 1.0))))


# Longest time that a benchmark could have measured; corrupt clocks give values of minus weeks.
_DAY_S = 86_400.0
_POSITIVE = "a finite number above 0"


def checked(file: Path, points: Sequence[LoadPoint]) -> Sweep:
    """The sweep of a file's rows, those with impossible values taken out and named.

    Raises SweepRefused when no row is left.
    """
    kept: list[LoadPoint] = []
    rejected: list[Rejected] = []
    for point in points:
        fault = _fault(point)
        if fault is None:
            kept.append(point)
        else:
            rejected.append(Rejected(str(file), point.row, *fault))
    if not kept:
        why = f"; {rejected[0]}" if rejected else ""
        raise SweepRefused(f"{file}: no usable row, expected at least one load point{why}")
    return Sweep(str(file), tuple(kept), tuple(rejected))


def _fault(point: LoadPoint) -> tuple[str, float, str] | None:
    for one in fields(point):
        value = getattr(point, one.name)
        if isinstance(value, float) and not math.isfinite(value):
            return one.name, value, "a finite number"
    positive = ("rate_rps", "ttft_s", "itl_s", "duration_s", "requests", "concurrency")
    for name in positive:
        if getattr(point, name) <= 0:
            return name, getattr(point, name), _POSITIVE
    for name in ("ttft_s", "ttft_p95_s", "itl_s", "itl_p95_s"):
        value = getattr(point, name)
        if value is not None and not 0 < value < _DAY_S:
            return name, value, f"seconds above 0 and below {_DAY_S:g}"
    if point.clients is not None and point.clients <= 0:
        return "clients", point.clients, _POSITIVE
    if point.input_tokens < 1:
        return "input_tokens", point.input_tokens, "at least 1"
    if point.output_tokens < 2:
        return "output_tokens", point.output_tokens, "at least 2, or there is no inter-token latency"
    if point.input_tokens_sd < 0 or point.output_tokens_sd < 0:
        return "input_tokens_sd", min(point.input_tokens_sd, point.output_tokens_sd), "at least 0"
    return None


def number(file: Path, row: int, record: Mapping[str, Any], *path: str) -> float:
    """The number at a path of nested objects.

    Raises SweepRefused naming file, row and path where it is missing or no number.
    """
    value: Any = record
    for step in path:
        if not isinstance(value, Mapping) or step not in value:
            raise SweepRefused(f"{file}: row {row}: {'.'.join(path)} is missing, expected a number")
        value = value[step]
    return as_number(file, row, ".".join(path), value)


def as_number(file: Path, row: int, field: str, value: Any) -> float:
    """A cell or JSON value as a float; raises SweepRefused naming file, row, field and value."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        shown = repr(value)[:80]
        raise SweepRefused(f"{file}: row {row}: {field} is {shown}, expected a number") from None
