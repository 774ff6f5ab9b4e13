"""The Prometheus source against a real Prometheus that scrapes a page of ours."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiohttp.test_utils import unused_port
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_server import ask, prometheus, served_page, until
from source_suite import SourceContract

from schemas.alert import AlertKind
from schemas.base import Quality
from services.collector.histograms import quantile
from services.collector.population import ServerView
from services.collector.series import Labels
from services.collector.settings import CollectorSettings
from services.collector.source import Readings, ReplicaReading, Source
from services.collector.sources.endpoints import EndpointsSettings, EndpointsSource
from services.collector.sources.prometheus import PrometheusSettings, PrometheusSource
from services.collector.windows import difference
from services.runtime.child import last_lines

REPLICAS = ("chat-0", "chat-1")
AHEAD_S = 1000.0
"""Control time is this far ahead of wall time, so that a time that was not mapped is seen."""


def to_clock_s(wall_s: float) -> float:
    return wall_s + AHEAD_S


class Page:
    """A page of two replicas and their gateway, which changes only when told to."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        where = ("server", "pod", "accelerator")
        self.done = Counter("vllm:request_success", "", (*where, "finished_reason"), registry=self.registry)
        self.prompt = Counter("vllm:prompt_tokens", "", where, registry=self.registry)
        self.generated = Counter("vllm:generation_tokens", "", where, registry=self.registry)
        self.running = Gauge("vllm:num_requests_running", "", where, registry=self.registry)
        self.waiting = Gauge("vllm:num_requests_waiting", "", where, registry=self.registry)
        self.ttft = Histogram("vllm:time_to_first_token_seconds", "", where, registry=self.registry)
        self.itl = Histogram("vllm:inter_token_latency_seconds", "", where, registry=self.registry)
        self.gateway = Counter("stoker_gateway_requests", "", ("server",), registry=self.registry)
        self.random = np.random.default_rng(7)
        self.serve(0)

    def serve(self, requests: int) -> None:
        """Let each replica complete some requests, a quarter of them cut short."""
        self.gateway.labels("a/chat").inc(len(REPLICAS) * requests)
        for pod in REPLICAS:
            where = ("a/chat", pod, "2xH100")
            self.done.labels(*where, "stop").inc(requests - requests // 4)
            self.done.labels(*where, "length").inc(requests // 4)
            self.prompt.labels(*where).inc(100 * requests)
            self.generated.labels(*where).inc(20.5 * requests)
            self.running.labels(*where).set(requests % 7)
            self.waiting.labels(*where).set(requests % 3)
            # Made before anything is observed, as an engine does: without requests they are series of zeros.
            ttft, itl = self.ttft.labels(*where), self.itl.labels(*where)
            for value_s in self.random.lognormal(-2, 1, requests):
                ttft.observe(value_s)
                itl.observe(value_s / 10)


@dataclass
class Setup:
    """A page, its address, and the Prometheus that scrapes it."""

    page: Page
    page_url: str
    prometheus_url: str

    def source(self, labels: Labels | None = None) -> PrometheusSource:
        settings = PrometheusSettings(url=self.prometheus_url, labels=labels or Labels())
        return PrometheusSource(settings, to_clock_s=to_clock_s)

    def endpoints(self) -> EndpointsSource:
        settings = EndpointsSettings(urls=(self.page_url,))
        return EndpointsSource(settings, to_clock_s=to_clock_s)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def setup(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setup]:
    page, folder = Page(), tmp_path_factory.mktemp("prometheus")
    with served_page(lambda: generate_latest(page.registry)) as address:
        scrapes = f"  - {{job_name: fleet, static_configs: [{{targets: ['{address}']}}]}}\n"
        async with prometheus(folder, scrapes) as url:
            made = Setup(page, f"http://{address}/metrics", url)
            source = made.source()
            found = await until(lambda: source.poll(0), lambda readings: len(readings.replicas) == 2)
            await source.close()
            assert len(found.replicas) == 2, last_lines(folder / "log")
            yield made


def timeless(readings: Readings) -> tuple[list[ReplicaReading], list[float | None]]:
    """What was read without when, for two sources never sample at the same instant."""
    return [replace(one, sampled_at_s=0.0) for one in readings.replicas], [
        g.requests for g in readings.gateways
    ]


async def served(setup: Setup, source: Source, requests: int) -> tuple[Readings, Readings]:
    """Readings of both sources after some more requests, once Prometheus has scraped them."""
    setup.page.serve(requests)
    direct = setup.endpoints()
    expected = await direct.poll(0)
    await direct.close()
    found = await until(lambda: source.poll(0), lambda readings: timeless(readings) == timeless(expected))
    return found, expected


async def own_queries(session: aiohttp.ClientSession, url: str) -> float:
    """Queries that Prometheus says it has answered."""
    async with session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    query = 'prometheus_http_requests_total{code="200",handler="/api/v1/query"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(query))


@pytest.mark.asyncio(loop_scope="module")
class TestBesideARealPrometheus:
    async def test_its_readings_equal_those_of_the_page_itself(self, setup: Setup) -> None:
        source = setup.source()
        found, expected = await served(setup, source, 41)
        await source.close()
        assert timeless(found) == timeless(expected)
        assert found.problems == expected.problems == ()
        assert found.replicas[0].ttft is not None and found.replicas[0].ttft.count >= 41

    async def test_sample_times_are_those_of_the_scrapes_on_the_control_clock(self, setup: Setup) -> None:
        source = setup.source()
        first = await source.poll(0)
        later = await until(
            lambda: source.poll(0), lambda r: r.replicas[0].sampled_at_s > first.replicas[0].sampled_at_s
        )
        await source.close()
        advanced_s = later.replicas[0].sampled_at_s - first.replicas[0].sampled_at_s
        # Scrapes are 0.5 s apart; a busy machine may skip some between two polls.
        assert advanced_s / 0.5 == pytest.approx(round(advanced_s / 0.5), abs=0.1)
        assert later.gateways[0].sampled_at_s == later.replicas[0].sampled_at_s
        assert to_clock_s(time.time()) - later.replicas[0].sampled_at_s < 5.0

    async def test_windows_made_of_both_sources_agree(self, setup: Setup) -> None:
        settings, source = CollectorSettings(), setup.source()
        before = await served(setup, source, 0)
        after = await served(setup, source, 200)
        await source.close()
        windows = []
        for first, second in zip(before, after, strict=True):
            record = None
            for at_s, readings in ((1000.0, first), (1030.0, second)):
                replicas = {one.replica: replace(one, sampled_at_s=at_s) for one in readings.replicas}
                window = difference(record, ServerView("a/chat", "m", replicas), at_s, settings)
                record = window.record
            windows.append(window.observed)
        assert windows[0] == windows[1]
        assert windows[0].quality is Quality.OK
        assert windows[0].completed_rate_rps == pytest.approx(400 / 30)
        assert windows[0].output_tokens == pytest.approx(20.5)

    @pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
    async def test_percentiles_are_those_of_promql(self, setup: Setup, share: float) -> None:
        source = setup.source()
        found, _ = await served(setup, source, 50)
        query = f'histogram_quantile({share}, vllm:time_to_first_token_seconds_bucket{{pod="chat-0"}})'
        async with aiohttp.ClientSession() as session:
            (result,) = await ask(session, setup.prometheus_url, query)
        await source.close()
        assert found.replicas[0].ttft is not None
        assert quantile(found.replicas[0].ttft, share) == pytest.approx(float(result["value"][1]), rel=1e-9)

    async def test_a_poll_is_one_query(self, setup: Setup) -> None:
        source = setup.source()
        async with aiohttp.ClientSession() as session:
            before = await own_queries(session, setup.prometheus_url)
            await source.poll(0)
            after = await own_queries(session, setup.prometheus_url)
        await source.close()
        assert after - before == 1

    async def test_a_label_that_does_not_exist_is_named_with_those_that_do(self, setup: Setup) -> None:
        source = setup.source(Labels(server="inference_server"))
        readings = await source.poll(0)
        await source.close()
        assert readings.replicas == () and not readings.failed
        messages = {problem.subject: problem.message for problem in readings.problems}
        assert "'inference_server'" in messages["prometheus labels"]
        assert "accelerator" in messages["prometheus labels"] and "pod" in messages["prometheus labels"]

    async def test_a_name_that_matches_nothing_is_alerted_with_the_query_and_the_names_near_it(
        self, setup: Setup
    ) -> None:
        names = PrometheusSettings().names.model_copy(update={"ttft": ("vllm:time_to_first_tokens_seconds",)})
        settings = PrometheusSettings(url=setup.prometheus_url, names=names)
        source = PrometheusSource(settings, to_clock_s=to_clock_s)
        readings = await source.poll(0)
        await source.close()
        assert len(readings.replicas) == 2 and readings.replicas[0].ttft is None
        (problem,) = readings.problems
        assert problem.kind is AlertKind.NO_SERIES
        assert "ttft (vllm:time_to_first_tokens_seconds)" in problem.message
        assert "query at " in problem.message and "__name__=~" in problem.message
        assert "vllm:time_to_first_token_seconds_bucket" in problem.message
        assert "labels that exist: __name__, accelerator" in problem.message

    async def test_a_query_that_prometheus_refuses_is_a_problem(self, setup: Setup) -> None:
        settings = PrometheusSettings(url=setup.prometheus_url, matchers="pod=")
        source = PrometheusSource(settings, to_clock_s=to_clock_s)
        readings = await source.poll(0)
        await source.close()
        assert readings.failed and "bad_data" in readings.problems[0].message


@pytest.mark.asyncio(loop_scope="module")
class TestPrometheusKeepsTheContract(SourceContract):
    NOW_S = time.time() + AHEAD_S + 60

    @pytest_asyncio.fixture(loop_scope="module")
    async def source(self, setup: Setup) -> Source:
        """Once what earlier tests did to the page has been scraped away."""
        await served(setup, setup.source(), 0)
        source = setup.source()
        await until(lambda: source.poll(0), lambda readings: not readings.problems)
        return source

    @pytest.fixture
    def broken(self) -> Source:
        settings = PrometheusSettings(url=f"http://127.0.0.1:{unused_port()}")
        return PrometheusSource(settings, to_clock_s=to_clock_s)
