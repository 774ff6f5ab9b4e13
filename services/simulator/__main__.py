"""The simulated fleet as a process of its own."""

import asyncio
import os
import sys
from pathlib import Path

from services.runtime import logs
from services.runtime.process import stop_on_signals
from services.runtime.settings import SettingsRefused, clock_of, load
from services.simulator.arrivals import TraceError
from services.simulator.fleet import Fleet
from services.simulator.naming import names_of
from services.simulator.plant import PlantError, load_plant
from services.simulator.service import serving, trace_folders
from services.simulator.settings import Settings


def main() -> int:
    """Simulate until SIGTERM or SIGINT; returns 0, or 2 for bad settings or a bad plant."""
    try:
        settings = load(Settings)
        clock = clock_of(settings.clock)
        folders = trace_folders(os.environ, Path.cwd())
        fleet = Fleet(load_plant(settings.simulator.plant), folders, clock.now_s())
    except (SettingsRefused, PlantError, TraceError) as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log)

    async def serve() -> None:
        stopping = asyncio.Event()
        stop_on_signals(stopping.set)
        http = settings.http
        names = names_of(settings.simulator.engine_naming, settings.simulator.gateway_naming)
        async with serving(fleet, clock, http.host, http.port, settings.simulator.tick_s, names) as url:
            logs.logger("simulator").info("listening", url=url)
            await stopping.wait()

    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
