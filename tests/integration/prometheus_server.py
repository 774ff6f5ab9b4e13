"""A real Prometheus as a child process, pages for it to scrape, and a way to wait for what it has scraped."""

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp.test_utils import unused_port

from services.runtime.child import end, last_lines, spawn

T = TypeVar("T")
DEADLINE_S = 60.0
SCRAPE_S = 0.5


async def until(read: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """What was read as soon as it is good, or after the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        found = await read()
        if good(found) or time.monotonic() > deadline_s:
            return found
        await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(folder: Path, scrapes: str) -> AsyncIterator[str]:
    """The address of a Prometheus with these scrape configurations; ends it afterwards. Skips without one."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on PATH; Debian has it as the package prometheus")
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: {SCRAPE_S * 1000:.0f}ms}}\nscrape_configs:\n{scrapes}"
    )
    url = f"http://127.0.0.1:{(port := unused_port())}"
    child = spawn(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder / "log",
    )
    try:
        async with aiohttp.ClientSession() as session:
            assert await until(lambda: is_ready(session, url), bool), last_lines(folder / "log")
        yield url
    finally:
        end(child)


@contextmanager
def served_page(body: Callable[[], bytes]) -> Iterator[str]:
    """The host and port of a page to scrape, made anew at each scrape.

    It is served by a thread of its own: a scrape between two tests, when no loop runs, must find it too. As text,
    for in OpenMetrics the client library writes underscores for colons.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = body()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/-/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def ask(session: aiohttp.ClientSession, url: str, query: str) -> list[dict[str, Any]]:
    """What an instant query answers."""
    async with session.get(f"{url}/api/v1/query", params={"query": query}) as response:
        result: list[dict[str, Any]] = (await response.json())["data"]["result"]
    return result
