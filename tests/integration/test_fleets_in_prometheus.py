"""Simulated fleets under several engines' names, scraped by a real Prometheus, against their own request logs.

Control time runs twenty times as fast as the wall's, so a scrape every half second is one every ten seconds.
Each scraped page carries the simulated time that it was made at, so counts between two scrapes are exact.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiohttp.test_utils import unused_port
from gate_cases import NOW_S, built_in_rules, case, propose, watch
from gate_cases import ask as asking
from prometheus_server import SCRAPE_S, ask, prometheus, served_page, until

from schemas.alert import AlertKind, AlertRaised
from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from schemas.telemetry import OfferedFrom, TelemetryObserved
from services.actuator.gate import Memory, pass_gate
from services.collector.core import State, step
from services.collector.series import Labels, MetricNames
from services.collector.settings import CollectorSettings
from services.collector.source import Readings, ReplicaReading
from services.collector.sources.prometheus import PrometheusSettings, PrometheusSource
from services.collector.sources.simulated import SimulatedSettings, SimulatedSource
from services.runtime.child import end, last_lines, spawn
from services.runtime.clock import AcceleratedClock

SPEED = 20.0
NAMINGS = {
    "vllm": "stoker",
    "vllm-0": "inference-objective",
    "sglang": "inference-model",
    "sglang-0": "llm-d",
}
SETTINGS = CollectorSettings(stale_after_s=40.0)
NO_GATEWAY = MetricNames(gateway_requests=(), gateway_waiting=())


def plant(engine: str) -> dict[str, Any]:
    """A server that keeps up, and one that is offered several times what it can do."""
    variant = {
        "accelerator": "H100",
        "accelerator_type": "H100",
        "alpha_s": 0.008,
        "beta_s": 1.6e-5,
        "gamma_s": 5e-7,
        "max_batch": 32,
        "startup_s": {"median": 60.0, "p95": 90.0},
    }
    lengths = {"input_tokens": {"mean": 300}, "output_tokens": {"mean": 60}}
    servers = [
        {
            "name": f"{name}-{engine}",
            "model": f"{name}-{engine}",
            "variants": [variant | {"max_batch": batch}],
            "initial": [{"accelerator": "H100", "replicas": replicas}],
            "arrivals": {"kind": "generated", "rate_rps": [[0.0, rate_rps]]} | lengths,
        }
        for name, replicas, batch, rate_rps in (("calm", 2, 32, 5.0), ("busy", 1, 2, 16.0))
    ]
    return {"accelerators": [{"type": "H100", "count": 8}], "servers": servers}


def declared(*names: str) -> FleetDeclared:
    return FleetDeclared(
        declared_at_s=0,
        revision="r",
        accelerators=(Accelerator(name="H100", type="H100", cost_per_hour=1),),
        models=tuple(Model(name=n, profiles=(ModelProfile(accelerator="H100"),)) for n in names),
        service_classes=(ServiceClass(name="c", priority=1),),
        servers=tuple(Server(name=n, model=n, service_class="c") for n in names),
    )


@dataclass
class Scraped:
    """Fleets by engine naming, the Prometheus that scrapes them, and the clock that they share."""

    fleets: Mapping[str, str]
    prometheus_url: str
    clock: AcceleratedClock
    session: aiohttp.ClientSession

    def source(self, engine: str, **settings: Any) -> PrometheusSource:
        # The endpoint picker's series carry the model's name only, which is the server's here.
        labels = Labels(gateway=None if NAMINGS.get(engine) == "stoker" else "model_name")
        said = {"url": self.prometheus_url, "matchers": f'job="{engine}"', "labels": labels} | settings
        return PrometheusSource(PrometheusSettings(**said), to_clock_s=self.clock.to_clock_s)

    def inventory(self, engine: str) -> SimulatedSource:
        return SimulatedSource(SimulatedSettings(url=self.fleets[engine]), to_clock_s=self.clock.to_clock_s)

    async def pages_s(self, engine: str) -> dict[str, float]:
        """Simulated time of the newest page of each replica, and of the gateway under no name."""
        query = f'stoker_simulated_clock_seconds{{job="{engine}"}}'
        found = await ask(self.session, self.prometheus_url, query)
        return {one["metric"].get("pod", ""): float(one["value"][1]) for one in found}

    async def read(self, engine: str, source: PrometheusSource) -> tuple[Readings, dict[str, float]]:
        """Readings and the simulated times of the very pages that they are from."""
        while True:
            before = await self.pages_s(engine)
            readings = await source.poll(self.clock.now_s())
            if before == await self.pages_s(engine):
                return readings, before

    async def finished(
        self, engine: str, server: str, since_s: float, until_s: float
    ) -> list[dict[str, Any]]:
        """The fleet's log of requests that finished after a time, once it reaches well beyond another."""
        url = f"{self.fleets[engine]}/requests"

        async def read() -> dict[str, Any]:
            async with self.session.get(
                url, params={"since_s": repr(since_s), "server": server, "limit": "20000"}
            ) as response:
                found: dict[str, Any] = await response.json()
                return found

        answer = await until(read, lambda found: found["now_s"] > until_s + 40)
        assert not answer["more"] and not answer["forgotten"]
        requests: list[dict[str, Any]] = answer["requests"]
        return requests

    async def fail(self, engine: str, pod: str) -> None:
        fault = {"kind": "metrics-dropout", "pod": pod, "duration_s": 1e6}
        async with self.session.post(f"{self.fleets[engine]}/faults", json=fault) as response:
            assert response.status == 200, await response.text()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def scraped(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scraped]:
    folder, anchor_s = tmp_path_factory.mktemp("fleets"), time.time()
    with ExitStack() as stack:
        fleets, scrapes = {}, ""
        for engine, gateway in NAMINGS.items():
            own = folder / engine
            own.mkdir()
            (own / "plant.yaml").write_text(json.dumps(plant(engine)))
            settings = {
                "clock": {"speed": SPEED, "anchor_s": anchor_s},
                "http": {"host": "127.0.0.1", "port": (port := unused_port())},
                "simulator": {
                    "plant": str(own / "plant.yaml"),
                    "engine_naming": engine,
                    "gateway_naming": gateway,
                },
            }
            (own / "settings.yaml").write_text(json.dumps(settings))
            command = [
                "env",
                f"STOKER_CONFIG={own / 'settings.yaml'}",
                sys.executable,
                "-m",
                "services.simulator",
            ]
            stack.callback(end, spawn(command, own / "log"))
            fleets[engine] = f"http://127.0.0.1:{port}"
            scrapes += (
                f"  - job_name: {engine}\n    honor_labels: true\n"
                f"    http_sd_configs: [{{url: '{fleets[engine]}/targets', refresh_interval: 1s}}]\n"
            )
        page = stack.enter_context(served_page(without_numbers))
        scrapes += f"  - {{job_name: nan, static_configs: [{{targets: ['{page}']}}]}}\n"
        async with prometheus(folder, scrapes) as url, aiohttp.ClientSession() as session:
            made = Scraped(fleets, url, AcceleratedClock(SPEED, anchor_s), session)
            for engine in NAMINGS:
                pages = await until(lambda one=engine: made.pages_s(one), lambda found: len(found) == 4)
                assert len(pages) == 4, last_lines(folder / engine / "log")
            yield made


def without_numbers() -> bytes:
    """A page whose every figure is not a number."""
    names = MetricNames()
    return "".join(
        f'{name}{{server="calm-nan",pod="p",accelerator="H100"}} NaN\n'
        for figure in ("completed", "running", "waiting", "input_tokens", "output_tokens")
        for name in getattr(names, figure)[:1]
    ).encode()


@dataclass
class Measured:
    """Two readings of one fleet a minute apart, the times of their pages, and the log in between."""

    readings: tuple[Readings, Readings]
    began_s: dict[str, float]
    ended_s: dict[str, float]
    read_at_s: float
    log: list[dict[str, Any]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def minutes(scraped: Scraped) -> dict[str, Measured]:
    """A minute of every fleet at once."""

    async def measure(engine: str) -> Measured:
        source = scraped.source(engine)
        first, began_s = await scraped.read(engine, source)
        second, ended_s = await until(
            lambda: scraped.read(engine, source), lambda r: min(r[1].values()) > max(began_s.values()) + 60
        )
        read_at_s = scraped.clock.now_s()
        await source.close()
        since_s, until_s = min(began_s.values()) - 40, max(ended_s.values())
        log = await scraped.finished(engine, f"calm-{engine}", since_s, until_s)
        return Measured((first, second), began_s, ended_s, read_at_s, log)

    found = await asyncio.gather(*(measure(engine) for engine in NAMINGS))
    return dict(zip(NAMINGS, found, strict=True))


def of(readings: Readings, server: str) -> dict[str, ReplicaReading]:
    return {one.replica: one for one in readings.replicas if one.server == server}


def same_bucket(value_s: float | None, edges_s: Sequence[float], truth_s: float) -> bool:
    """Whether two values lie in one bucket, whose upper edge belongs to it."""
    assert value_s is not None
    return bool(np.searchsorted(edges_s, value_s) == np.searchsorted(edges_s, truth_s))


@pytest.mark.asyncio(loop_scope="module")
class TestSimulatedFleets:
    @pytest.mark.parametrize("engine", NAMINGS)
    async def test_counts_rates_tokens_and_percentiles_are_those_of_the_request_log(
        self, minutes: dict[str, Measured], engine: str
    ) -> None:
        server, minute = f"calm-{engine}", minutes[engine]
        (first, second), log = minute.readings, minute.log
        began_s, ended_s = minute.began_s, minute.ended_s
        assert first.problems == second.problems == ()

        before, after = of(first, server), of(second, server)
        assert before.keys() == after.keys() and len(after) == 2
        firsts: list[float] = []
        for pod, one in after.items():
            own = [r for r in log if r["pod"] == pod]
            done = [r for r in own if began_s[pod] < r["finish_s"] <= ended_s[pod]]
            begun = [r for r in own if began_s[pod] < r["first_token_s"] <= ended_s[pod]]
            inside = [r for r in done if r["first_token_s"] > began_s[pod]]
            touching = [r for r in own if r["finish_s"] > began_s[pod] and r["first_token_s"] <= ended_s[pod]]
            assert one.completed - before[pod].completed == len(done)
            assert one.input_tokens - before[pod].input_tokens == sum(r["input_tokens"] for r in begun)
            tokens = one.output_tokens - before[pod].output_tokens
            assert sum(r["output_tokens"] for r in inside) <= tokens
            assert tokens <= sum(r["output_tokens"] for r in touching)
            firsts += [r["first_token_s"] - r["submitted_s"] for r in begun]

        fleet = declared(server)
        state, _ = step(State(), [first], fleet, minute.read_at_s - 1, SETTINGS)
        _, out = step(state, [second], fleet, minute.read_at_s, SETTINGS)
        (window,) = out.telemetry
        assert window.quality is Quality.OK and window.offered_from is OfferedFrom.GATEWAY
        arrived = [r for r in log if began_s[""] < r["arrival_s"] <= ended_s[""]]
        # Prometheus stamps a scrape when it begins; the page is made some milliseconds, twentyfold, after.
        seconds = pytest.approx(ended_s[""] - began_s[""], rel=0.02)
        assert len(arrived) / window.offered_rate_rps == seconds
        edges_s = next(iter(after.values())).ttft.edges_s
        assert window.ttft.count == len(firsts)
        # The log's Unix times are rounded to the spacing of floats at such a size, the page's sums are not.
        assert window.ttft.mean_s == pytest.approx(float(np.mean(firsts)), abs=float(np.spacing(ended_s[""])))
        for name, share in {"p50_s": 0.5, "p90_s": 0.9, "p95_s": 0.95, "p99_s": 0.99}.items():
            truth_s = float(np.quantile(firsts, share, method="inverted_cdf"))
            assert same_bucket(getattr(window.ttft, name), edges_s, truth_s), name
        gaps = [
            (r["finish_s"] - r["first_token_s"], r["output_tokens"] - 1)
            for r in log
            if r["output_tokens"] > 1 and r["finish_s"] > began_s[r["pod"]]
        ]
        # Requests that the window's ends cut are in the log as a whole.
        assert window.itl.mean_s == pytest.approx(sum(s for s, _ in gaps) / sum(n for _, n in gaps), rel=0.05)

    @pytest.mark.parametrize("engine", ["vllm", "sglang"])
    async def test_load_above_capacity_is_seen_within_two_scrapes(
        self, scraped: Scraped, engine: str
    ) -> None:
        source, server = scraped.source(engine, names=NO_GATEWAY), f"busy-{engine}"
        whole = scraped.source(engine)
        first, _ = await scraped.read(engine, source)
        arrived, before_s = await scraped.read(engine, whole)
        sampled_s = of(first, server).popitem()[1].sampled_at_s
        second, _ = await until(
            lambda: scraped.read(engine, source),
            lambda r: of(r[0], server).popitem()[1].sampled_at_s > sampled_s + 1.5 * SCRAPE_S * SPEED,
        )
        arrived_later, after_s = await scraped.read(engine, whole)
        await source.close()
        await whole.close()
        (before,), (after,) = of(first, server).values(), of(second, server).values()
        scrapes = (after.sampled_at_s - before.sampled_at_s) / (SCRAPE_S * SPEED)
        now_s = scraped.clock.now_s()
        state, _ = step(State(), [first], declared(server), now_s - 1, SETTINGS)
        _, out = step(state, [second], declared(server), now_s, SETTINGS)
        (window,) = out.telemetry
        assert window.offered_from is OfferedFrom.COUNTERS
        # A busy machine may miss a scrape, never more of them than passed.
        assert scrapes <= 4.5
        assert window.offered_rate_rps > 2 * window.completed_rate_rps
        requests = [
            next(g.requests for g in r.gateways if g.server == server) for r in (arrived, arrived_later)
        ]
        true_rps = (requests[1] - requests[0]) / (after_s[""] - before_s[""])
        # Some two hundred arrivals between scrapes of two pages at different moments.
        assert window.offered_rate_rps == pytest.approx(true_rps, rel=0.25)

    async def test_half_of_the_replicas_silent_is_partial_scaled_alerted_and_takes_nothing_away(
        self, scraped: Scraped
    ) -> None:
        server, source = "calm-vllm", scraped.source("vllm", names=NO_GATEWAY)
        inventory, fleet = scraped.inventory("vllm"), declared("calm-vllm")

        async def both() -> list[Readings]:
            now_s = scraped.clock.now_s()
            return [await source.poll(now_s), await inventory.poll(now_s)]

        first = await both()
        silent, speaking = sorted(of(first[0], server))
        state, _ = step(State(), first, fleet, scraped.clock.now_s(), SETTINGS)
        await scraped.fail("vllm", silent)
        states = [state]

        async def cycle() -> tuple[TelemetryObserved, tuple[AlertRaised, ...]]:
            after, out = step(states[-1], await both(), fleet, scraped.clock.now_s(), SETTINGS)
            states.append(after)
            return out.telemetry[0], out.alerts

        raised: list[AlertRaised] = []
        seen: list[TelemetryObserved] = []

        async def until_alerted() -> list[AlertRaised]:
            window, alerts = await cycle()
            seen.append(window)
            raised.extend(alerts)
            return raised

        found = await until(until_alerted, lambda r: any(a.kind is AlertKind.PARTIAL_DATA for a in r))
        await source.close()
        await inventory.close()
        (alert,) = [a for a in found if a.kind is AlertKind.PARTIAL_DATA]
        assert alert.subject == server and silent in alert.message and speaking not in alert.message
        partial = [w for w in seen if w.reporting_share == 0.5 and w.offered_rate_rps is not None]
        assert partial and all(w.quality is Quality.PARTIAL for w in partial)
        counted = [w.offered_rate_rps * (w.window_end_s - w.window_start_s) for w in partial]
        spans_s = sum(w.window_end_s - w.window_start_s for w in partial)
        # Half of a Poisson stream of 5/s over at least 20 s, doubled: within a third, and never about half.
        assert sum(counted) / spans_s == pytest.approx(5.0, rel=0.35)
        assert nothing_goes(partial[-1])

    @pytest.mark.parametrize("trouble", ["down", "slow", "nan", "empty"])
    async def test_trouble_is_said_alerted_and_takes_nothing_away(
        self, scraped: Scraped, trouble: str
    ) -> None:
        server = "calm-nan" if trouble == "nan" else "calm-vllm-0"
        settings: dict[str, Any] = {
            "down": {"url": f"http://127.0.0.1:{unused_port()}"},
            "slow": {"timeout_s": 0.2},
            "nan": {},
            "empty": {"matchers": 'job="nobody"'},
        }[trouble]
        with ExitStack() as stack:
            if trouble == "slow":
                # It takes connections and says nothing.
                listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                settings["url"] = f"http://127.0.0.1:{listening.getsockname()[1]}"
            source = scraped.source("nan" if trouble == "nan" else "vllm-0", **settings)
            state, alerts, window = State(), [], None
            for _ in range(2):
                now_s = scraped.clock.now_s()
                readings = await source.poll(now_s)
                state, out = step(state, [readings], declared(server), now_s, SETTINGS)
                (window,), alerts = out.telemetry, [*alerts, *out.alerts]
            await source.close()
        # The page whose figures are no numbers says when it was scraped, and nothing else.
        assert window.quality in (Quality.MISSING, Quality.STALE)
        assert window.offered_rate_rps is None and window.ttft is None
        said = " ".join(f"{a.kind.value} {a.subject} {a.message}" for a in alerts)
        expected = {
            "down": ("source_failed", "Connection"),
            "slow": ("source_failed", "timed out"),
            "nan": ("no_series", "vllm:request_success_total", "labels that exist"),
            "empty": ("no_series", 'job="nobody"', "labels that exist: ", "accelerator", server),
        }[trouble]
        assert all(word in said for word in expected), said
        assert nothing_goes(window)

    @pytest.mark.parametrize("servers", [1, 1000])
    async def test_a_poll_takes_one_query_and_at_most_three_whatever_the_fleet_is(
        self, scraped: Scraped, servers: int
    ) -> None:
        """The query names no server, so a thousand declared ones cost what one does."""
        fleet = declared(*(f"calm-vllm-{k}" for k in range(servers)))
        source = scraped.source("sglang")
        before = await scraped_queries(scraped)
        readings = await source.poll(scraped.clock.now_s())
        step(State(), [readings], fleet, scraped.clock.now_s(), SETTINGS)
        assert await scraped_queries(scraped) - before == 1
        nobody = scraped.source("sglang", matchers='job="nobody"')
        before = await scraped_queries(scraped)
        await nobody.poll(scraped.clock.now_s())
        await source.close()
        await nobody.close()
        # With the names and the labels that exist, for the alert.
        assert await scraped_queries(scraped) - before == 3


async def scraped_queries(scraped: Scraped) -> float:
    """Requests to its query interface that Prometheus has answered; asking this does not count as one."""
    async with scraped.session.get(f"{scraped.prometheus_url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("prometheus_http_requests_total") and 'handler="/api/v1/' in line
    )


def nothing_goes(window: TelemetryObserved) -> bool:
    """Whether the gate keeps what is there when a plan made of such a window asks for less."""
    shown = window.model_copy(update={"window_start_s": NOW_S - 30, "window_end_s": NOW_S})
    memory = Memory(recommended=watch(2))
    gated = pass_gate(
        case(asking(A=4), propose(asking(A=2)), telemetry=shown, memory=memory), built_in_rules()
    )
    return gated.rule == "freshness" and gated.target == asking(A=4)


class Recording:
    """Recorded gauges of one engine: its page shows one chunk after the other."""

    def __init__(self, file: Path) -> None:
        chunks = file.read_text().split("== ")[1:]
        self.chunks = [chunk.partition("\n")[2] for chunk in chunks]
        self.shown = 0

    def figure(self, name: str) -> float:
        lines = (line for line in self.chunks[self.shown].splitlines() if line.startswith(f"{name}{{"))
        return sum(float(line.split()[-1]) for line in lines)


@pytest.mark.asyncio
async def test_recorded_gauges_of_vllm_are_read_as_they_were(reference_data: Path, tmp_path: Path) -> None:
    files = [reference_data / "control-logs" / f"vllm_{name}_metrics.prom.txt" for name in ("llama", "qwen")]
    recordings = [Recording(file) for file in files]

    def page() -> bytes:
        return "".join(one.chunks[one.shown] for one in recordings).encode()

    # A recording of one engine each: the model's name is all that says whose it is.
    labels = Labels(server="model_name", replica="engine")
    loads = []
    async with AsyncExitStack() as stack:
        address = stack.enter_context(served_page(page))
        scrapes = f"  - {{job_name: vllm, static_configs: [{{targets: ['{address}']}}]}}\n"
        url = await stack.enter_async_context(prometheus(tmp_path, scrapes))
        source = PrometheusSource(
            PrometheusSettings(url=url, labels=labels), to_clock_s=lambda wall_s: wall_s
        )
        for chunk in range(max(len(one.chunks) for one in recordings)):
            for one in recordings:
                one.shown = min(chunk, len(one.chunks) - 1)
            expected = [
                (one.figure("vllm:num_requests_running"), one.figure("vllm:num_requests_waiting"))
                for one in recordings
            ]
            readings = await until(
                lambda: source.poll(0),
                lambda r, want=expected: [(x.running, x.waiting) for x in r.replicas] == want,
            )
            assert [(one.running, one.waiting) for one in readings.replicas] == expected
            assert [one.completed for one in readings.replicas] == [None, None]
            loads.append(expected)
        await source.close()
    assert max(running for chunk in loads for running, _ in chunk) >= 128
    missing = " ".join(problem.message for problem in readings.problems)
    assert "completed (vllm:request_success_total" in missing and "ttft (" in missing
