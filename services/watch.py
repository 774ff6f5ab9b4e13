"""Following a run of everything in one process: a board on a terminal, JSON lines in a pipe."""

import asyncio
import contextlib
import signal
import sys
import time

from rich.console import Console
from rich.live import Live

from services.allinone import Options, Running, run
from services.live import Board, as_json, summary
from services.runtime import logs
from services.runtime.envelope import decode
from services.runtime.errors import Fatal, Reject
from services.runtime.plugins import PluginRefused
from services.runtime.process import stop_on_signals
from services.runtime.settings import LogSettings, SettingsRefused
from services.simulator.arrivals import TraceError
from services.simulator.plant import PlantError

_FRAMES_PER_S = 4


def follow(options: Options, lines: bool) -> int:
    """Run everything and show it; returns the exit code. The summary goes to standard error."""
    logs.configure(LogSettings(level=options.log_level, format="text"))
    board = Board()
    began = time.monotonic()

    async def watch(running: Running) -> None:
        stop_on_signals(running.stop)
        if not lines:
            await _draw(running, board, options)
            return
        for text in (f"metrics from {running.metrics_from}", *(f"arrivals of {a}" for a in running.arrivals)):
            print(text, file=sys.stderr)
        await _print(running, board)

    try:
        asyncio.run(run(options, watch))
    except (Fatal, PlantError, TraceError, SettingsRefused, PluginRefused, ValueError) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, Fatal) else 2
    print(summary(board, time.monotonic() - began), file=sys.stderr)
    return 0


async def _print(running: Running, board: Board) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    async for raw in running.messages:
        with contextlib.suppress(Reject):
            board.observe(decode(raw))
        print(as_json(raw), flush=True)


async def _draw(running: Running, board: Board, options: Options) -> None:
    note = f"×{options.speed:g}  target {options.target}  metrics from {running.metrics_from}"
    console = Console()

    async def take() -> None:
        async for raw in running.messages:
            with contextlib.suppress(Reject):
                board.observe(decode(raw))

    taking = asyncio.create_task(take())
    try:
        with Live(console=console, refresh_per_second=_FRAMES_PER_S, screen=False) as live:
            while not taking.done():
                live.update(board.draw(running.clock.now_s(), note))
                await asyncio.sleep(1 / _FRAMES_PER_S)
    finally:
        taking.cancel()
