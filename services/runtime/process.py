"""One service as a process: signals, health endpoint, exit code."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from services.runtime import logs
from services.runtime.chassis import Chassis
from services.runtime.errors import Fatal
from services.runtime.http import HealthServer
from services.runtime.metrics import Metrics
from services.runtime.plugins import PluginRefused
from services.runtime.service import Service
from services.runtime.settings import (
    RuntimeSettings,
    SettingsRefused,
    clock_of,
    load,
    unknown_environment,
)

OTHERS = {"collector", "tuner", "predictor", "optimizer", "actuator", "operator", "simulator"}
"""Heads of settings that belong to other services of the same deployment, which share one environment."""


S = TypeVar("S", bound=RuntimeSettings)


def main(make: Callable[[S], Service], settings_type: type[S]) -> int:
    """Run a service with settings from the environment until SIGTERM or SIGINT; a second signal exits at once.

    Returns the exit code: 0 done, 1 failed, 2 bad settings.
    """
    try:
        settings = load(settings_type)
        clock_of(settings.clock)
        service = make(settings)
    except (SettingsRefused, PluginRefused) as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log)
    spare_the_collector()
    if unread := unknown_environment(set(settings_type.model_fields) | OTHERS):
        logs.logger(service.name).warning("unread environment", variables=unread)
    return asyncio.run(_run(service, settings))


def spare_the_collector() -> None:
    """Let the collector of cyclic garbage pass over all that is there now, and come by less often.

    What is imported stays, and messages are trees, which counting references frees: looking for cycles among them
    is a fifth of the time that a message takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def _run(service: Service, settings: RuntimeSettings) -> int:
    metrics = Metrics()
    chassis = Chassis(service, settings, clock_of(settings.clock), metrics)
    health = HealthServer(settings.http, metrics, lambda: {service.name: chassis.reasons()})
    stop_on_signals(chassis.stop)
    try:
        await health.start()
        chassis.log.info("listening", port=health.port)
        await chassis.run()
    except (Fatal, OSError) as error:
        chassis.log.error("ended", error=str(error))
        return 1
    finally:
        await health.stop()
    return 0


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT, and leave at once at the second."""
    loop = asyncio.get_running_loop()
    asked = False

    def on_signal() -> None:
        nonlocal asked
        if asked:
            os._exit(130)
        asked = True
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
