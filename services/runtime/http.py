"""/livez, /readyz and /metrics of a process."""

from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import generate_latest

from services.runtime.metrics import Metrics
from services.runtime.settings import HttpSettings


class HealthServer:
    """Serves the health of a process; `reasons` tells, by service, why it is not ready."""

    def __init__(
        self,
        settings: HttpSettings,
        metrics: Metrics,
        reasons: Callable[[], dict[str, Sequence[str]]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._reasons = reasons
        self._runner: web.AppRunner | None = None
        self.port = settings.port

    async def start(self) -> None:
        """Listen; raises OSError when the port is taken."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._live),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._scrape),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _: web.Request) -> web.Response:
        reasons = self._reasons()
        not_ready = {service: list(found) for service, found in reasons.items() if found}
        return web.json_response(
            {"ready": not not_ready, "services": sorted(reasons), "reasons": not_ready},
            status=503 if not_ready else 200,
        )

    async def _scrape(self, _: web.Request) -> web.Response:
        for service, found in self._reasons().items():
            self._metrics.ready.labels(service).set(0 if found else 1)
        return web.Response(body=generate_latest(self._metrics.registry), content_type="text/plain")

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
