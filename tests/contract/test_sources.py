"""The built-in sources keep the contract of sources; the one for Prometheus is tested beside a real one."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from source_suite import SourceContract

from schemas.alert import AlertKind
from schemas.parameters import CalibrationPoint, CalibrationProposed
from services.collector.source import Calibrator, ReplicaState, Source
from services.collector.sources.endpoints import EndpointsSettings, EndpointsSource
from services.collector.sources.replay import ReplaySettings, ReplaySource
from services.collector.sources.simulated import SimulatedSettings, SimulatedSource
from services.runtime.errors import Retry
from services.simulator.exposition import render
from services.simulator.fleet import Fleet
from services.simulator.plant import Plant
from services.simulator.service import create_app

NOW_S = SourceContract.NOW_S
NOBODY = f"http://127.0.0.1:{unused_port()}"


class Stopped:
    """A clock that stands where it is put."""

    time_s = NOW_S

    def now_s(self) -> float:
        return self.time_s


def to_clock_s(wall_s: float) -> float:
    """Control time that stood at NOW_S when the module was loaded."""
    return NOW_S + (wall_s - STARTED_S)


STARTED_S = time.time()


def plant() -> Plant:
    variant = {
        "accelerator": "2xH100",
        "accelerator_type": "H100",
        "units": 2,
        "alpha_s": 0.008,
        "beta_s": 1.6e-5,
        "gamma_s": 5e-7,
        "max_batch": 32,
        "kv_tokens": 64_000,
        "startup_s": {"median": 60.0, "p95": 90.0},
    }
    arrivals = {
        "kind": "generated",
        "rate_rps": [[0.0, 5.0]],
        "input_tokens": {"mean": 500},
        "output_tokens": {"mean": 100},
    }
    server = {
        "name": "meta-llama/Llama-3.1-8B",
        "model": 'a "quoted" model',
        "variants": [variant],
        "initial": [{"accelerator": "2xH100", "replicas": 2}],
        "arrivals": arrivals,
    }
    return Plant.model_validate({"accelerators": [{"type": "H100", "count": 8}], "servers": [server]})


@pytest.fixture
async def simulated_fleet() -> AsyncIterator[str]:
    """Address of a simulated fleet, two minutes after its start."""
    app = create_app(Fleet(plant(), origin_s=NOW_S - 120), Stopped())
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


class TestEndpoints(SourceContract):
    @pytest.fixture
    def source(self, simulated_fleet: str) -> Source:
        return EndpointsSource(EndpointsSettings(urls=(f"{simulated_fleet}/metrics",)), to_clock_s=to_clock_s)

    @pytest.fixture
    def broken(self) -> Source:
        return EndpointsSource(EndpointsSettings(urls=(f"{NOBODY}/metrics",)), to_clock_s=to_clock_s)


class TestSimulated(SourceContract):
    @pytest.fixture
    def source(self, simulated_fleet: str) -> Source:
        return SimulatedSource(SimulatedSettings(url=simulated_fleet), to_clock_s=to_clock_s)

    @pytest.fixture
    def broken(self) -> Source:
        return SimulatedSource(SimulatedSettings(url=NOBODY), to_clock_s=to_clock_s)


class TestReplayedTrace(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        file = tmp_path / "trace.csv"
        file.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            + "".join(f"2026-01-05 10:00:{k:02d}.1234567,{100 + k},{k}\n" for k in range(60))
        )
        return ReplaySource(ReplaySettings(file=file, server="chat"), to_clock_s=to_clock_s)

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Source:
        return ReplaySource(ReplaySettings(file=tmp_path / "none.csv", server="chat"), to_clock_s=to_clock_s)


class TestReplayedPages(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        fleet, chunks = Fleet(plant(), origin_s=NOW_S), []
        for minute in range(3):
            fleet.advance(NOW_S + 60.0 * minute + 1)
            page = render(list(fleet.pods.values()), fleet.servers.values(), fleet.now_s)
            chunks.append(f"== t={60 * minute}s ==\n{page}")
        (tmp_path / "pages.prom.txt").write_text("\n".join(chunks))
        return ReplaySource(ReplaySettings(file=tmp_path / "pages.prom.txt"), to_clock_s=to_clock_s)

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Source:
        return ReplaySource(ReplaySettings(file=tmp_path / "none.txt"), to_clock_s=to_clock_s)


async def test_the_simulated_fleet_is_read_as_it_is(simulated_fleet: str) -> None:
    pages = EndpointsSource(EndpointsSettings(urls=(f"{simulated_fleet}/metrics",)), to_clock_s=to_clock_s)
    platform = SimulatedSource(SimulatedSettings(url=simulated_fleet), to_clock_s=to_clock_s)
    metrics, inventory = await pages.poll(NOW_S), await platform.poll(NOW_S)
    await pages.close()
    await platform.close()
    (server,) = inventory.inventory
    assert (server.server, server.observed_at_s) == ("meta-llama/Llama-3.1-8B", NOW_S)
    assert [(v.accelerator, v.desired, v.ready, v.max_batch) for v in server.variants] == [
        ("2xH100", 2, 2, 32)
    ]
    assert all(one.state is ReplicaState.READY and one.ready_at_s is not None for one in server.replicas)
    assert {one.replica for one in metrics.replicas} == {one.name for one in server.replicas}
    assert [(one.type, one.total, one.free) for one in inventory.capacity] == [("H100", 8, 4)]
    (gateway,) = metrics.gateways
    assert gateway.requests is not None and gateway.waiting == 0
    held = sum((one.completed or 0) + (one.running or 0) + (one.waiting or 0) for one in metrics.replicas)
    assert gateway.requests == held > 300
    assert all(one.ttft and one.itl and one.accelerator == "2xH100" for one in metrics.replicas)


async def test_one_dead_page_of_several_is_a_problem_and_the_others_are_read(simulated_fleet: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text='vllm:num_requests_running{pod="x} 1\n')

    app = web.Application()
    app.router.add_get("/metrics", answer)
    async with TestServer(app) as malformed:
        urls = (f"{NOBODY}/metrics", str(malformed.make_url("/metrics")), f"{simulated_fleet}/nowhere")
        source = EndpointsSource(
            EndpointsSettings(urls=(*urls, f"{simulated_fleet}/metrics")), to_clock_s=to_clock_s
        )
        readings = await source.poll(NOW_S)
        await source.close()
    assert len(readings.replicas) == 2
    (problem,) = readings.problems
    assert problem.kind is AlertKind.SOURCE_FAILED
    assert all(url in problem.message for url in urls)
    assert "line 1" in problem.message and "status 404" in problem.message


async def test_a_sweep_is_carried_out_when_the_source_is_asked_to_and_is_refused_with_a_reason() -> None:
    clock = Stopped()
    point = CalibrationPoint(rate_rps=1.0, input_tokens=200, output_tokens=50)
    proposed = CalibrationProposed(
        model='a "quoted" model', accelerator="2xH100", points=(point,), reason="why", proposed_at_s=NOW_S
    )
    async with TestServer(create_app(Fleet(plant(), origin_s=NOW_S), clock)) as server:
        url = str(server.make_url(""))
        quiet = SimulatedSource(SimulatedSettings(url=url), to_clock_s=to_clock_s)
        asked = SimulatedSource(SimulatedSettings(url=url, calibrate=True), to_clock_s=to_clock_s)
        assert isinstance(asked, Calibrator) and asked.calibrates and not quiet.calibrates
        for _ in range(2):
            assert await asked.calibrate(proposed) is None
        refusal = await asked.calibrate(proposed.model_copy(update={"model": "other"}))
        clock.time_s += 600.0
        swept, unasked = await asked.poll(clock.time_s), await quiet.poll(clock.time_s)
        await asked.close()
        await quiet.close()
    assert refusal is not None and "other" in refusal
    (window,) = swept.calibrations
    assert window.calibration and window.replicas[0].accelerator == "2xH100"
    assert unasked.calibrations == ()
    nobody = SimulatedSource(SimulatedSettings(url=NOBODY, calibrate=True), to_clock_s=to_clock_s)
    with pytest.raises(Retry, match=NOBODY):
        await nobody.calibrate(proposed)
    await nobody.close()


async def test_an_inventory_of_another_form_names_the_field() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"now_s": 1, "servers": [{"name": "a", "replicas": [{"name": "x"}]}]})

    app = web.Application()
    app.router.add_get("/inventory", answer)
    async with TestServer(app) as other:
        source = SimulatedSource(SimulatedSettings(url=str(other.make_url(""))), to_clock_s=to_clock_s)
        readings = await source.poll(NOW_S)
        await source.close()
    assert "servers.0.replicas.0.accelerator: Field required" in readings.problems[0].message
