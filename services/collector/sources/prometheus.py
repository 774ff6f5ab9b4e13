"""Metrics read from Prometheus: one instant query a poll, whatever the size of the fleet.

The query returns the newest sample of every wanted series together with the samples' own times, so that
values and times come from one consistent view of the database; two queries could have a scrape between them.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.alert import AlertKind
from services.collector.series import Labels, MetricNames, Series, assemble, listed
from services.collector.source import Problem, Provides, Readings

TIME_OF = "stoker_time_of"


class PrometheusSettings(BaseModel):
    """Where Prometheus is, and how its series are read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str = "http://127.0.0.1:9090"
    """Address of Prometheus or of anything that speaks its query API."""
    matchers: str = ""
    """Label matchers added to every selector, such as job="vllm"; needed where a fleet is scraped twice."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Wall seconds to wait for an answer; under the cycle, because the next poll is the retry."""
    token_file: Path | None = None
    """File with a bearer token, read anew at every poll because it is rotated."""
    ca_file: Path | None = None
    """File with the certificate authority, read anew at every poll."""
    labels: Labels = Labels()
    """Which label names whom."""
    names: MetricNames = MetricNames()
    """Where each figure is found."""


class PrometheusSource:
    """Reads a fleet's newest samples; Prometheus' wall time is mapped to control time."""

    name: ClassVar[str] = "prometheus"
    Settings: ClassVar[type[BaseModel]] = PrometheusSettings
    provides: ClassVar[frozenset[Provides]] = frozenset({Provides.METRICS})

    def __init__(self, settings: PrometheusSettings, *, to_clock_s: Callable[[float], float]) -> None:
        self._settings = settings
        self._to_clock_s = to_clock_s
        self._query = query(settings.names, settings.matchers)
        self._client: Any = None

    async def poll(self, now_s: float) -> Readings:
        return await asyncio.to_thread(self._poll)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.close)

    def _poll(self) -> Readings:
        # Imported here because it takes half a second and only this source needs it.
        from prometheus_api_client.exceptions import PrometheusApiClientException
        from requests.exceptions import RequestException

        settings = self._settings
        try:
            client = self._connect()
            series = list(self._series(client.custom_query(self._query)))
            assembled = assemble(self.name, series, settings.labels, settings.names)
            problems = tuple(self._explain(client, problem) for problem in assembled.problems)
        except (
            RequestException,
            PrometheusApiClientException,
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            message = f"{settings.url}: {type(error).__name__}: {_cause(error)}"[:3000]
            failure = Problem(AlertKind.SOURCE_FAILED, self.name, message)
            return Readings(self.name, self.provides, problems=(failure,))
        return Readings(
            self.name,
            self.provides,
            replicas=assembled.replicas,
            gateways=assembled.gateways,
            problems=problems,
        )

    def _connect(self) -> Any:
        from prometheus_api_client import PrometheusConnect
        from urllib3.util.retry import Retry

        settings = self._settings
        if self._client is None:
            self._client = PrometheusConnect(
                settings.url,
                retry=Retry(total=0),
                timeout=settings.timeout_s,
                # The query is longer than what some proxies take in an address.
                method="POST",
            )
        if settings.token_file is not None:
            self._client.headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
        if settings.ca_file is not None:
            self._client._session.verify = str(settings.ca_file)
        return self._client

    def _series(self, result: Iterable[Mapping[str, Any]]) -> Iterable[Series]:
        for element in result:
            labels = dict(element["metric"])
            value = float(element["value"][1])
            of = labels.pop(TIME_OF, None)
            if of is None:
                yield Series(labels.pop("__name__"), labels, value, None)
            else:
                yield Series(of, labels, None, self._to_clock_s(value))

    def _explain(self, client: Any, problem: Problem) -> Problem:
        """Add to a problem the names nearest to those that match nothing, and the labels that exist."""
        if problem.subject != self.name:
            return problem
        known = client.get_label_values("__name__")
        wanted = self._settings.names.series()
        near = sorted({match for name in wanted for match in get_close_matches(name, known, 2, 0.7)} - wanted)
        labels = sorted(client.get_label_names())
        message = (
            f"{problem.message}; query at {self._settings.url}: {self._query}; names nearest to these: "
            f"{listed(near)}; labels that exist: {listed(labels)}"
        )
        return Problem(problem.kind, problem.subject, message[:4000])


def _cause(error: Exception) -> object:
    """What went wrong, without the retries and the address, which holds the whole query, around it."""
    around = error.args[0] if error.args else error
    return getattr(around, "reason", None) or error


def query(names: MetricNames, matchers: str) -> str:
    """The query for every wanted series and for the sample times of those that a window cannot do without.

    A time carries the name of its series in a label of ours, for `timestamp` drops the name and `or` leaves
    out what has the labels of something on its left.
    """
    more = f",{matchers}" if matchers else ""
    pattern = "|".join(sorted(names.series()))
    timed = (*names.completed, *names.running, *names.gateway_requests)
    times = (f'label_replace(timestamp({name}{{{matchers}}}),"{TIME_OF}","{name}","","")' for name in timed)
    return " or ".join((f'{{__name__=~"{pattern}"{more}}}', *times))
