"""A trace of requests, or pages that were scraped once, as if they were happening now.

| file | what it holds |
|---|---|
| `.csv` | one request a row: when, input and output tokens; no latency follows from it |
| anything else | pages in Prometheus' text format, each after a line `== t=<seconds>s ==` |

After its end a recording is silent, as an engine would be that stopped, so that it grows stale.
"""

import asyncio
import csv
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.alert import AlertKind
from services.collector.exposition import Malformed, parse
from services.collector.series import Labels, MetricNames, Series, assemble
from services.collector.source import GatewayReading, Problem, Provides, Readings, ReplicaReading

_PAGE = re.compile(r"^== (?:t=(\d+(?:\.\d+)?)s|baseline) ==$", re.MULTILINE)


class ReplaySettings(BaseModel):
    """What is replayed, and when it began."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: Path
    """The recording."""
    begins_at_s: Annotated[float, Field(ge=0)] | None = None
    """Control time of its first moment, Unix seconds; nothing for that of the first poll."""
    server: str | None = None
    """Server that a trace belongs to; needed for one, pages say it themselves."""
    replica: str = "trace"
    """Replica that a trace's completions are counted under."""
    accelerator: str | None = None
    """Accelerator of that replica; where it is absent the inventory says it."""
    time_column: str = "TIMESTAMP"
    """Column of a trace that holds when a request came: a date and time, or seconds."""
    input_column: str = "ContextTokens"
    """Column of a trace that holds a request's input tokens."""
    output_column: str = "GeneratedTokens"
    """Column of a trace that holds a request's output tokens."""
    labels: Labels = Labels()
    """Which label of the pages names whom."""
    names: MetricNames = MetricNames()
    """Where each figure of the pages is found."""


class Refused(ValueError):
    """A recording that cannot be read; names the file, the place in it, the value and what was expected."""


@dataclass(frozen=True)
class Trace:
    """Requests in the order of time: seconds since the first, and tokens of all up to each."""

    at_s: Sequence[float]
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]

    def readings(
        self, settings: ReplaySettings, elapsed_s: float, begins_at_s: float
    ) -> tuple[tuple[ReplicaReading, ...], tuple[GatewayReading, ...], tuple[Problem, ...]]:
        """What had come by then; each request counts as served the moment that it comes."""
        count = bisect_right(self.at_s, elapsed_s)
        sampled_at_s = begins_at_s + min(elapsed_s, self.at_s[-1])
        server = settings.server or ""
        replica = ReplicaReading(
            server=server,
            replica=settings.replica,
            sampled_at_s=sampled_at_s,
            accelerator=settings.accelerator,
            completed=float(count),
            input_tokens=float(self.input_tokens[count - 1]) if count else 0.0,
            output_tokens=float(self.output_tokens[count - 1]) if count else 0.0,
        )
        return (replica,), (GatewayReading(server, sampled_at_s, requests=float(count)),), ()


@dataclass(frozen=True)
class Pages:
    """Scraped pages, each with its moment in seconds since the first."""

    at_s: Sequence[float]
    pages: Sequence[tuple[Series, ...]]

    def readings(
        self, settings: ReplaySettings, elapsed_s: float, begins_at_s: float
    ) -> tuple[tuple[ReplicaReading, ...], tuple[GatewayReading, ...], tuple[Problem, ...]]:
        """The newest page by then."""
        newest = max(0, bisect_right(self.at_s, elapsed_s) - 1)
        sampled_at_s = begins_at_s + self.at_s[newest]
        series = (Series(s.name, s.labels, s.value, sampled_at_s) for s in self.pages[newest])
        found = assemble(ReplaySource.name, series, settings.labels, settings.names)
        return found.replicas, found.gateways, found.problems


class ReplaySource:
    """Reads its file once, at the first poll."""

    name: ClassVar[str] = "replay"
    Settings: ClassVar[type[BaseModel]] = ReplaySettings
    provides: ClassVar[frozenset[Provides]] = frozenset({Provides.METRICS})

    def __init__(self, settings: ReplaySettings, *, to_clock_s: Callable[[float], float]) -> None:
        del to_clock_s  # A recording has no wall time of its own.
        self._settings = settings
        self._recording: Trace | Pages | None = None
        self._begins_at_s = settings.begins_at_s

    async def poll(self, now_s: float) -> Readings:
        if self._recording is None:
            try:
                self._recording = await asyncio.to_thread(read, self._settings)
            except (Refused, OSError, UnicodeDecodeError) as error:
                problem = Problem(AlertKind.SOURCE_FAILED, self.name, str(error)[:4000])
                return Readings(self.name, self.provides, problems=(problem,))
        if self._begins_at_s is None:
            self._begins_at_s = now_s
        elapsed_s = now_s - self._begins_at_s
        if elapsed_s < 0:
            return Readings(self.name, self.provides)
        replicas, gateways, problems = self._recording.readings(self._settings, elapsed_s, self._begins_at_s)
        return Readings(self.name, self.provides, replicas=replicas, gateways=gateways, problems=problems)

    async def close(self) -> None:
        self._recording = None


def read(settings: ReplaySettings) -> Trace | Pages:
    """The recording that the settings name; raises Refused, OSError or UnicodeDecodeError."""
    return _trace(settings) if settings.file.suffix == ".csv" else _pages(settings)


def _trace(settings: ReplaySettings) -> Trace:
    if not settings.server:
        raise Refused(f"{settings.file}: expected the setting server, for a trace does not say whose it is")
    columns = (settings.time_column, settings.input_column, settings.output_column)
    rows: list[tuple[float, int, int]] = []
    with settings.file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise Refused(
                f"{settings.file}:1: no column {', '.join(missing)}: there are {', '.join(reader.fieldnames or ())}"
            )
        for number, row in enumerate(reader, 2):
            try:
                rows.append((_seconds(row[columns[0]]), int(row[columns[1]]), int(row[columns[2]])))
            except (TypeError, ValueError):
                shown = ", ".join(repr(row[name]) for name in columns)
                raise Refused(
                    f"{settings.file}:{number}: {shown}: expected a time and two numbers of tokens"
                ) from None
    if not rows:
        raise Refused(f"{settings.file}: holds no request")
    rows.sort(key=lambda row: row[0])
    return Trace(
        [at_s - rows[0][0] for at_s, _, _ in rows],
        list(accumulate(row[1] for row in rows)),
        list(accumulate(row[2] for row in rows)),
    )


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # More digits than a microsecond has are more than Python reads.
        return datetime.fromisoformat(text.strip()[:26]).timestamp()


def _pages(settings: ReplaySettings) -> Pages:
    text = settings.file.read_text(encoding="utf-8")
    marks = list(_PAGE.finditer(text))
    if not marks:
        raise Refused(f"{settings.file}: expected pages, each after a line such as == t=15s ==")
    wanted = settings.names.series()
    at_s: list[float] = []
    pages: list[tuple[Series, ...]] = []
    for mark, end in zip(marks, [*(m.start() for m in marks[1:]), len(text)], strict=True):
        moment_s = float(mark[1] or 0.0)
        if at_s and moment_s <= at_s[-1]:
            raise Refused(f"{settings.file}: {mark[0]}: expected a later time than {at_s[-1]:g} s")
        try:
            series = parse(text[mark.end() : end], wanted, 0.0, lambda wall_s: wall_s)
        except Malformed as error:
            raise Refused(f"{settings.file}: after {mark[0]}: {error}") from None
        at_s.append(moment_s)
        pages.append(tuple(series))
    return Pages([moment - at_s[0] for moment in at_s], pages)
