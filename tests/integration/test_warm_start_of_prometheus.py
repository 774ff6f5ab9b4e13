"""A predictor that starts warm from a real Prometheus; skipped where there is none."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest

from services.predictor.service import PredictorService
from services.predictor.settings import PredictorSettings, Settings, WarmStart
from services.runtime.clock import VirtualClock

SCRAPE_S = 15
SPAN_S = 3600
RATES_RPS = {"steady": 4.0, "idle": 0.0}


def openmetrics(end_s: int) -> str:
    """Counters of an hour, one for each of two replicas of every server."""
    lines = ["# TYPE vllm:request_success counter"]
    for server, rate_rps in RATES_RPS.items():
        for replica in ("a", "b"):
            for at_s in range(end_s - SPAN_S, end_s + 1, SCRAPE_S):
                total = 0.5 * rate_rps * (at_s - end_s + SPAN_S)
                labels = f'server="{server}",replica="{replica}"'
                lines.append(f"vllm:request_success_total{{{labels}}} {total} {at_s}")
    return "\n".join([*lines, "# EOF\n"])


@pytest.fixture
async def prometheus(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[tuple[str, int]]:
    """Address of a Prometheus that holds an hour of counters, and when the hour ended."""
    program, tool = shutil.which("prometheus"), shutil.which("promtool")
    if program is None or tool is None:
        pytest.skip("needs prometheus and promtool on the PATH")
    end_s = int(time.time()) // SCRAPE_S * SCRAPE_S
    (tmp_path / "past.om").write_text(openmetrics(end_s))
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n")
    data = tmp_path / "data"
    words = ("tsdb", "create-blocks-from", "openmetrics", str(tmp_path / "past.om"), str(data))
    made = await asyncio.create_subprocess_exec(tool, *words, stdout=subprocess.DEVNULL)
    assert await made.wait() == 0
    url = f"http://127.0.0.1:{unused_tcp_port}"
    running = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{unused_tcp_port}",
        "--log.level=error",
    )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while not await ready(session, url):  # noqa: ASYNC110 - another process's event
                await asyncio.sleep(0.1)
        yield url, end_s
    finally:
        running.terminate()
        await running.wait()


async def ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/-/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def test_the_load_of_the_past_hour_is_known_before_the_first_message(
    prometheus: tuple[str, int],
) -> None:
    url, end_s = prometheus
    warm_start = WarmStart(prometheus_url=url, span_s=SPAN_S)
    service = PredictorService(Settings(predictor=PredictorSettings(warm_start=warm_start)))
    said: list[str] = []

    def warn(message: str, **details: Any) -> None:
        said.append(f"{message}: {details}")

    host = SimpleNamespace(log=SimpleNamespace(warning=warn), clock=VirtualClock(float(end_s)))
    service.host = host  # type: ignore[assignment]
    await service.open()
    service.restore({})
    assert said == []
    series = service._state.series
    assert series.keys() == RATES_RPS.keys()
    for server, rate_rps in RATES_RPS.items():
        one = series[server]
        assert one.end_s == end_s
        assert SPAN_S / 30 - 3 <= len(one.history) <= SPAN_S / 30 + 1
        # Of the first window Prometheus has seen no more than a half.
        np.testing.assert_allclose(one.history.rates[1:], rate_rps, rtol=1e-6)
    record = series["steady"].record
    assert record is not None and record.scored > 0 and "ses" in series["steady"].fits
