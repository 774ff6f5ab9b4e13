"""The simulated fleet over HTTP: metrics to scrape, an inventory to read, targets to set.

The routes, with names URL-encoded:

    GET  /inventory                               servers, variants, replicas, accelerators
    PUT  /servers/{server}/variants/{accelerator} {"replicas": 2, "max_batch": 64}, optional If-Match
    GET  /targets                                 Prometheus HTTP service discovery
    GET  /replicas/{pod}/metrics                  one replica's page; 503 while it would not answer
    GET  /gateway/metrics                         the gateways' page
    GET  /metrics                                 everything on one page
    GET  /requests?since_s=&server=&limit=        log of completed requests
    POST /faults                                  put a fault in
    POST /calibrations                            {"model": …, "accelerator": …, "points": […]}, as it is proposed;
                                                  twice is once
    GET  /calibrations                            windows that sweeps measured, as telemetry
    GET  /livez

Errors are {"error": …} with 404 for an unknown name, 409 for another resource version, 422 for bad input.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Protocol
from urllib.parse import quote

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.parameters import CalibrationProposed
from services.simulator.exposition import CONTENT_TYPE, render
from services.simulator.faults import FAULTS
from services.simulator.fleet import Conflict, Fleet, Refused, UnknownName
from services.simulator.inventory import take_inventory, view_variant
from services.simulator.naming import Names
from services.simulator.plant import faults_of
from services.simulator.server import Pod, PodState

log = logging.getLogger(__name__)

# About 10 ms of work between two looks at the event loop.
EVENTS_PER_SLICE = 200


class Clock(Protocol):
    """Whatever tells the time in Unix seconds."""

    def now_s(self) -> float: ...


class Target(BaseModel):
    """The body of a scaling request."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    replicas: Annotated[int, Field(ge=0, le=10_000)]
    max_batch: Annotated[int, Field(ge=1)] | None = None


class RequestsQuery(BaseModel):
    """The query of the request log; `limit` is exceeded only by requests that finish at the same instant."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    since_s: float = 0.0
    server: str | None = None
    limit: Annotated[int, Field(ge=1, le=20_000)] = 5_000


def trace_folders(environment: Mapping[str, str], working_directory: Path) -> list[Path]:
    """Where traces are looked for: STOKER_DATA/traces, then ../shared/data/traces."""
    folders = [Path(environment["STOKER_DATA"]) / "traces"] if "STOKER_DATA" in environment else []
    return [*folders, working_directory.parent / "shared" / "data" / "traces"]


def create_app(
    fleet: Fleet, clock: Clock, tick_s: float = 0.25, names: Names = MappingProxyType({})
) -> web.Application:
    """The HTTP application; it keeps the fleet at the clock's time, also every `tick_s` on its own.

    Parameters: names, other names for the figures of its metrics pages.
    """
    shell = _Shell(fleet, clock, tick_s, names)
    app = web.Application(middlewares=[_errors_as_json])
    app.cleanup_ctx.append(shell.ticking)
    app.add_routes(
        [
            web.get("/inventory", shell.inventory),
            web.put("/servers/{server}/variants/{accelerator}", shell.scale),
            web.get("/targets", shell.targets),
            web.get("/replicas/{pod}/metrics", shell.replica_metrics),
            web.get("/gateway/metrics", shell.gateway_metrics),
            web.get("/metrics", shell.fleet_metrics),
            web.get("/requests", shell.requests),
            web.post("/faults", shell.inject),
            web.post("/calibrations", shell.calibrate),
            web.get("/calibrations", shell.calibrations),
            web.get("/livez", shell.livez),
        ]
    )
    return app


@asynccontextmanager
async def serving(
    fleet: Fleet,
    clock: Clock,
    host: str,
    port: int,
    tick_s: float = 0.25,
    names: Names = MappingProxyType({}),
) -> AsyncIterator[str]:
    """Serve the fleet while the context lasts; yields the base URL (port 0 takes a free one)."""
    runner = web.AppRunner(create_app(fleet, clock, tick_s, names), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound_host, bound_port = runner.addresses[0][:2]
        for server in fleet.servers.values():
            log.info("server %s: arrivals %s", server.name, server.source)
        yield f"http://{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


class _Shell:
    def __init__(self, fleet: Fleet, clock: Clock, tick_s: float, names: Names) -> None:
        self.fleet = fleet
        self.names = names
        self.clock = clock
        self.tick_s = tick_s
        self._sweeps: dict[tuple[str, str], tuple[float, float]] = {}
        self._advancing = asyncio.Lock()
        self._ticker: asyncio.Task[None] | None = None

    async def ticking(self, _: web.Application) -> AsyncIterator[None]:
        self._ticker = asyncio.create_task(self._tick(), name="simulated-fleet")
        yield
        self._ticker.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticker

    async def _tick(self) -> None:
        while True:
            await self._catch_up()
            await asyncio.sleep(self.tick_s)

    async def _catch_up(self) -> None:
        """Simulate up to now, in slices; what follows it without awaiting sees the fleet at that time."""
        until_s = self.clock.now_s()
        async with self._advancing:
            while True:
                if self.fleet.advance(until_s, EVENTS_PER_SLICE):
                    return
                await asyncio.sleep(0)

    async def inventory(self, _: web.Request) -> web.Response:
        await self._catch_up()
        return web.json_response(asdict(take_inventory(self.fleet)))

    async def scale(self, request: web.Request) -> web.Response:
        target = Target.model_validate_json(await request.read())
        expected = _resource_version(request.headers.get("If-Match"))
        await self._catch_up()
        names = request.match_info
        variant = self.fleet.scale(
            names["server"], names["accelerator"], target.replicas, target.max_batch, expected
        )
        return web.json_response(asdict(view_variant(variant)))

    async def targets(self, request: web.Request) -> web.Response:
        await self._catch_up()
        groups = [
            {
                "targets": [request.host],
                "labels": {
                    "__metrics_path__": f"/replicas/{quote(pod.name, safe='')}/metrics",
                    "server": pod.server.name,
                    "pod": pod.name,
                    "accelerator": pod.variant.accelerator,
                },
            }
            for pod in self.fleet.pods.values()
            if pod.state is not PodState.PENDING
        ]
        gateway = {"targets": [request.host], "labels": {"__metrics_path__": "/gateway/metrics"}}
        return web.json_response([*groups, gateway])

    async def replica_metrics(self, request: web.Request) -> web.Response:
        await self._catch_up()
        pod = self.fleet.pod(request.match_info["pod"])
        if not self.fleet.answers_scrapes(pod):
            return web.json_response(
                {"error": f"replica {pod.name!r} ({pod.state}) does not answer"}, status=503
            )
        return self._page([pod], gateways=False)

    async def gateway_metrics(self, _: web.Request) -> web.Response:
        await self._catch_up()
        return self._page([], gateways=True)

    async def fleet_metrics(self, _: web.Request) -> web.Response:
        await self._catch_up()
        answering = [pod for pod in self.fleet.pods.values() if self.fleet.answers_scrapes(pod)]
        return self._page(answering, gateways=True)

    async def requests(self, request: web.Request) -> web.Response:
        query = RequestsQuery.model_validate(dict(request.query))
        await self._catch_up()
        if query.server is not None and query.server not in self.fleet.servers:
            raise UnknownName(f"server {query.server!r}: expected one of {sorted(self.fleet.servers)}")
        records = self.fleet.finished_since(query.since_s, query.server)
        end = query.limit
        while 0 < end < len(records) and records[end].finish_s == records[end - 1].finish_s:
            end += 1
        more = end < len(records)
        return web.json_response(
            {
                "now_s": self.fleet.now_s,
                "requests": [record._asdict() for record in records[:end]],
                "next_since_s": records[end - 1].finish_s if more else self.fleet.now_s,
                "more": more,
                "forgotten": self.fleet.forgotten_until_s > query.since_s,
            }
        )

    async def inject(self, request: web.Request) -> web.Response:
        fault = FAULTS.validate_json(await request.read())
        await self._catch_up()
        self.fleet.inject(fault)
        return web.json_response({"now_s": self.fleet.now_s, "fault": fault.model_dump()})

    async def calibrate(self, request: web.Request) -> web.Response:
        asked = CalibrationProposed.model_validate_json(await request.read())
        await self._catch_up()
        pair = asked.model, asked.accelerator
        proposed_at_s, ends_at_s = self._sweeps.get(pair, (-1.0, 0.0))
        if asked.proposed_at_s > proposed_at_s:
            ends_at_s = self.fleet.calibrate(*pair, asked.points)
            self._sweeps[pair] = asked.proposed_at_s, ends_at_s
        return web.json_response({"now_s": self.fleet.now_s, "ends_at_s": ends_at_s})

    async def calibrations(self, _: web.Request) -> web.Response:
        await self._catch_up()
        windows = [window.model_dump(mode="json") for window in self.fleet.calibrations]
        return web.json_response({"now_s": self.fleet.now_s, "windows": windows})

    async def livez(self, _: web.Request) -> web.Response:
        if self._ticker is None or self._ticker.done():
            return web.json_response({"error": "the simulation has stopped"}, status=503)
        return web.json_response({"status": "ok"})

    def _page(self, pods: list[Pod], gateways: bool) -> web.Response:
        servers = self.fleet.servers.values() if gateways else ()
        text = render(pods, servers, self.fleet.now_s, self.names)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})


def _resource_version(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    try:
        return int(if_match.strip().strip('"'))
    except ValueError:
        raise Refused(f"If-Match: expected a resource version such as 3, not {if_match!r}") from None


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ValidationError as error:
        return web.json_response({"error": "; ".join(faults_of(error))}, status=422)
    except Refused as error:
        return web.json_response({"error": str(error)}, status=422)
    except UnknownName as error:
        return web.json_response({"error": str(error)}, status=404)
    except Conflict as error:
        return web.json_response({"error": str(error)}, status=409)
