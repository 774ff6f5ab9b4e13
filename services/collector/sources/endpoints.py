"""Metrics read directly from /metrics pages: small fleets, and a simulated one without a Prometheus."""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, ClassVar

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from schemas.alert import AlertKind
from services.collector.exposition import Malformed, parse
from services.collector.series import Labels, MetricNames, Series, assemble, listed
from services.collector.source import Problem, Provides, Readings


class EndpointsSettings(BaseModel):
    """Which pages to read, and how to read them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    urls: Annotated[tuple[str, ...], Field(min_length=1)]
    """Pages to read at every poll; a replica must occur on one of them only, or it counts twice."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Wall seconds to wait for a page; well under the cycle, so that a dead page costs one window."""
    labels: Labels = Labels()
    """Which label names whom."""
    names: MetricNames = MetricNames()
    """Where each figure is found."""


class EndpointsSource:
    """Reads every page once a poll; a sample's time is when its page began to arrive."""

    name: ClassVar[str] = "endpoints"
    Settings: ClassVar[type[BaseModel]] = EndpointsSettings
    provides: ClassVar[frozenset[Provides]] = frozenset({Provides.METRICS})

    def __init__(self, settings: EndpointsSettings, *, to_clock_s: Callable[[float], float]) -> None:
        self._settings = settings
        self._to_clock_s = to_clock_s
        self._wanted = settings.names.series()
        self._session: aiohttp.ClientSession | None = None

    async def poll(self, now_s: float) -> Readings:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout)
        pages = await asyncio.gather(*(self._read(self._session, url) for url in self._settings.urls))
        series = [one for page in pages if not isinstance(page, str) for one in page]
        failures = [page for page in pages if isinstance(page, str)]
        problems: list[Problem] = []
        if failures:
            problems.append(Problem(AlertKind.SOURCE_FAILED, self.name, listed(failures)))
        if len(failures) == len(pages):
            return Readings(self.name, self.provides, problems=tuple(problems))
        assembled = assemble(self.name, series, self._settings.labels, self._settings.names)
        return Readings(
            self.name,
            self.provides,
            replicas=assembled.replicas,
            gateways=assembled.gateways,
            problems=(*problems, *assembled.problems),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _read(self, session: aiohttp.ClientSession, url: str) -> list[Series] | str:
        """The series of one page, or why there are none."""
        try:
            async with session.get(url, headers={"Accept": "text/plain; version=0.0.4"}) as response:
                at_s = self._to_clock_s(time.time())
                if response.status != 200:
                    return f"{url}: HTTP status {response.status}, expected 200"
                text = await response.text()
            return parse(text, self._wanted, at_s, self._to_clock_s)
        except TimeoutError:
            return f"{url}: no answer within {self._settings.timeout_s:g} s"
        except (aiohttp.ClientError, OSError, Malformed, ValueError) as error:
            return f"{url}: {str(error) or type(error).__name__}"
