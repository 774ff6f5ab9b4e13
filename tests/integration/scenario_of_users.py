"""The services as processes, each under its own user of the bus."""

import asyncio
import time
from pathlib import Path
from typing import Any

from guarded import Guarded, kept

from benchmarks.deployment import SERVICES, Deployment
from schemas.topics import VERBS
from services.runtime.bus import Bus
from services.runtime.permissions import OPERATOR
from services.simulator.demo import DEMO_FLEET, DEMO_PLANT


class Users(Deployment):
    """A deployment on a guarded server. Parameters: tls, what every user's settings of the bus have."""

    def __init__(self, server: Guarded, folder: Path, tls: dict[str, Any]) -> None:
        super().__init__(server.url, folder, DEMO_FLEET.read_text(), DEMO_PLANT.read_text(), 20.0, 20.0)
        self._server = server
        self._tls = tls

    def _environment(self, service: str, port: int) -> dict[str, str]:
        own = self._server.credentials.get(service, {}) | self._tls
        return super()._environment(service, port) | {
            f"STOKER_BUS__{name.upper()}": str(value) for name, value in own.items()
        }

    async def decide(self) -> None:
        """Run until there are decisions, every question is answered and every service is ready."""
        people = await Bus.connect(self._server.settings(OPERATOR, **self._tls), OPERATOR)
        try:
            for service in SERVICES:
                await asyncio.to_thread(self.start, service)
            deadline = time.monotonic() + 60
            while not await asyncio.to_thread(lambda: all(self.ready(service) for service in SERVICES)):
                assert time.monotonic() < deadline, "not every service is ready"
                await asyncio.sleep(0.2)
            await kept(people, "DECISIONS", "stoker.v1.decision.made.*")
            for verb in (verb for verb in VERBS if verb.service in SERVICES):
                # A bad question is answered too.
                assert (await people.request(verb.subject, b"{}", timeout_s=20))[:1] == b"{", verb.subject
            assert all(self.ready(service) for service in SERVICES)
            logs = {service: self.log(service) for service in SERVICES}
            assert not [s for s, text in logs.items() if "violation" in text.lower() or "denied" in text]
        finally:
            codes = await asyncio.to_thread(self.stop)
            await people.close()
        assert set(codes.values()) == {0}, codes
