"""Everything in one process: embedded NATS, the simulated fleet, Prometheus when installed, every service."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.topics import ROOT
from services.actuator.service import ActuatorService
from services.actuator.settings import ActuatorSettings
from services.actuator.settings import Settings as ActuatorProcess
from services.collector.fleet_files import read_fleet
from services.collector.service import CollectorService
from services.collector.settings import CollectorSettings
from services.collector.settings import Settings as CollectorProcess
from services.collector.sources.prometheus import PrometheusSettings
from services.optimizer.service import OptimizerService
from services.optimizer.settings import Settings as OptimizerProcess
from services.predictor.service import PredictorService
from services.predictor.settings import Settings as PredictorProcess
from services.runtime.bus import Bus
from services.runtime.chassis import Chassis
from services.runtime.clock import AcceleratedClock, Clock, WallClock
from services.runtime.embedded import EmbeddedPrometheus, EmbeddedServer, find_prometheus
from services.runtime.envelope import Raw
from services.runtime.errors import Fatal
from services.runtime.http import HealthServer
from services.runtime.metrics import Metrics
from services.runtime.service import Service
from services.runtime.settings import BusSettings, ClockSettings, HttpSettings, LogSettings, RuntimeSettings
from services.runtime.topology import topology
from services.simulator.derive import plant_of
from services.simulator.fleet import Fleet
from services.simulator.plant import Plant, load_plant
from services.simulator.service import serving, trace_folders
from services.tuner.service import TunerService
from services.tuner.settings import Settings as TunerProcess

_SCRAPES_PER_CYCLE = 4


@dataclass(frozen=True)
class Options:
    """What `stoker up` is asked for."""

    fleet: Path
    plant: Path | None
    bus: str = "embedded"
    target: str = "simulated"
    speed: float = 30.0
    cycle_s: float = 30.0
    duration_s: float | None = None
    store: Path | None = None
    prometheus: bool = True
    http_port: int = 0
    log_level: str = "warning"
    kubeconfig: Path | None = None
    prometheus_url: str | None = None

    @property
    def in_cluster(self) -> bool:
        """Whether a Kubernetes cluster is measured, rather than a simulated fleet."""
        return self.target == "kubernetes" or self.kubeconfig is not None


@dataclass(frozen=True)
class Running:
    """What a run is made of, for those who watch it."""

    clock: Clock
    bus_url: str
    metrics_from: str
    arrivals: tuple[str, ...]
    health_port: int
    messages: AsyncIterator[Raw]
    stop: Callable[[], None]
    chassis: tuple[Chassis, ...]


Watch = Callable[[Running], Awaitable[None]]


async def run(options: Options, watch: Watch) -> None:
    """Run until the duration has passed, `watch` returns, or `Running.stop` is called.

    Nothing is left behind, however it ends. Raises Fatal when a part cannot start or fails.
    """
    async with AsyncExitStack() as stack:
        url = options.bus
        if options.bus == "embedded":
            url = (await stack.enter_async_context(EmbeddedServer(options.store))).url
        bus_settings = BusSettings(url=url)
        watcher = await Bus.connect(bus_settings, "watch")
        stack.push_async_callback(watcher.close)
        await watcher.apply(topology())

        anchor_s = time.time()
        accelerated = options.speed != 1.0
        clock: Clock = AcceleratedClock(options.speed, anchor_s) if accelerated else WallClock()
        simulated = ""
        arrivals: tuple[str, ...] = ()
        if options.in_cluster:
            sources, metrics_from = _cluster_sources(options)
        else:
            fleet = Fleet(_plant(options, anchor_s), trace_folders(os.environ, Path.cwd()), clock.now_s())
            arrivals = tuple(f"{s.name}: {s.source}" for s in fleet.servers.values())
            simulated = await stack.enter_async_context(serving(fleet, clock, "127.0.0.1", 0))
            sources, metrics_from = await _sources(stack, options, simulated)

        common: dict[str, Any] = {
            "bus": bus_settings,
            "clock": ClockSettings(speed=options.speed, anchor_s=anchor_s if accelerated else None),
            "http": HttpSettings(port=options.http_port),
            "log": LogSettings(level=options.log_level),
        }
        chassis = _services(options, common, clock, sources, simulated)
        health = HealthServer(
            common["http"], chassis[0].metrics, lambda: {c.service.name: c.reasons() for c in chassis}
        )
        await health.start()
        stack.push_async_callback(health.stop)
        stopping = asyncio.Event()
        running = Running(
            clock=clock,
            bus_url=url,
            metrics_from=metrics_from,
            arrivals=arrivals,
            health_port=health.port,
            messages=watcher.listen(f"{ROOT}.>"),
            stop=stopping.set,
            chassis=chassis,
        )
        await _supervise(chassis, watch(running), stopping, options.duration_s)


def _plant(options: Options, now_s: float) -> Plant:
    """The plant given, or one derived from the fleet."""
    if options.plant is not None:
        return load_plant(options.plant)
    return plant_of(read_fleet([options.fleet], now_s))


def _cluster_sources(options: Options) -> tuple[dict[str, Any], str]:
    """A cluster's inventory and the Prometheus that scrapes its servers."""
    url = options.prometheus_url or PrometheusSettings().url
    return {"prometheus": {"url": url}, "kubernetes": {"cluster": _cluster(options)}}, f"Prometheus at {url}"


def _cluster(options: Options) -> dict[str, Any]:
    return {} if options.kubeconfig is None else {"kubeconfig": str(options.kubeconfig)}


async def _sources(stack: AsyncExitStack, options: Options, simulated: str) -> tuple[dict[str, Any], str]:
    """Where metrics come from: Prometheus when it is installed, else the endpoints' own text."""
    inventory = {"simulated": {"url": simulated, "calibrate": options.target == "simulated"}}
    binary = find_prometheus() if options.prometheus else None
    if binary is None:
        why = " because no prometheus is on PATH" if options.prometheus else ""
        return {"endpoints": {"urls": [f"{simulated}/metrics"]}} | inventory, f"the endpoints' own text{why}"
    scrape_s = max(0.1, options.cycle_s / options.speed / _SCRAPES_PER_CYCLE)
    server = EmbeddedPrometheus(binary, f"{simulated.removeprefix('http://')}/metrics", scrape_s)
    await stack.enter_async_context(server)
    said = f"Prometheus at {server.url}, scraping every {scrape_s:.2g} s"
    return {"prometheus": {"url": server.url}} | inventory, said


def _services(
    options: Options, common: dict[str, Any], clock: Clock, sources: dict[str, Any], simulated: str
) -> tuple[Chassis, ...]:
    metrics = Metrics()
    collector = CollectorProcess(
        **common,
        collector=CollectorSettings(
            fleet=options.fleet, cycle_s=options.cycle_s, sources=tuple(sources), source_settings=sources
        ),
    )
    settings_of_targets: dict[str, dict[str, Any]] = {
        "simulated": {"url": simulated},
        "kubernetes": {"cluster": _cluster(options)},
    }
    target_settings = settings_of_targets.get(options.target, {})
    actuator = ActuatorProcess(
        **common, actuator=ActuatorSettings(target=options.target, target_settings=target_settings)
    )
    tuner, predictor, optimizer = (
        TunerProcess(**common),
        PredictorProcess(**common),
        OptimizerProcess(**common),
    )

    def on_chassis(service: Service, settings: RuntimeSettings) -> Chassis:
        return Chassis(service, settings, clock, metrics)

    return (
        on_chassis(CollectorService(collector), collector),
        on_chassis(TunerService(tuner), tuner),
        on_chassis(PredictorService(predictor), predictor),
        on_chassis(OptimizerService(optimizer), optimizer),
        on_chassis(ActuatorService(actuator), actuator),
    )


async def _supervise(
    chassis: tuple[Chassis, ...], watching: Awaitable[None], stopping: asyncio.Event, duration_s: float | None
) -> None:
    """Run the services; when one fails, all end, and the failure is raised."""
    services = [asyncio.create_task(c.run(), name=c.service.name) for c in chassis]
    ending = [asyncio.ensure_future(watching), asyncio.create_task(stopping.wait())]
    try:
        done, _ = await asyncio.wait(
            [*services, *ending], timeout=duration_s, return_when=asyncio.FIRST_COMPLETED
        )
        for one in chassis:
            one.stop()
        results = await asyncio.gather(*services, return_exceptions=True)
        failures = [r for r in (*results, *(t.exception() for t in done if t in ending)) if r is not None]
        if failures:
            first = failures[0]
            raise first if isinstance(first, Fatal) else Fatal(f"{first!r}") from first
    finally:
        for task in (*services, *ending):
            task.cancel()
        await asyncio.gather(*services, *ending, return_exceptions=True)


@asynccontextmanager
async def started(options: Options) -> AsyncIterator[Running]:
    """A run in the background, for tests and benchmarks."""
    ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()

    async def hand_over(running: Running) -> None:
        ready.set_result(running)
        await asyncio.Event().wait()

    task = asyncio.create_task(run(options, hand_over))
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if task.done():
            task.result()
        yield ready.result()
    finally:
        if ready.done():
            ready.result().stop()
        await task
