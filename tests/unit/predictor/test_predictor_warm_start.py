"""A predictor that is told of the past knows it."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from services.predictor.service import PredictorService, pool_of
from services.predictor.settings import PredictorSettings, Settings, WarmStart
from services.predictor.traces import Trace, TraceRefused
from services.predictor.warm_start import of_prometheus, warmed
from services.runtime.clock import VirtualClock

SETTINGS = PredictorSettings()
STEP_S = 30.0


def started(warm_start: WarmStart, now_s: float = 1e9) -> tuple[PredictorService, list[str]]:
    service = PredictorService(Settings(predictor=PredictorSettings(warm_start=warm_start)))
    said: list[str] = []

    def warn(message: str, **details: Any) -> None:
        said.append(f"{message}: {details['error']}")

    log = SimpleNamespace(warning=warn)
    service.host = SimpleNamespace(log=log, clock=VirtualClock(now_s))  # type: ignore[assignment]
    return service, said


def test_a_past_is_followed_with_its_gaps_and_has_a_record_at_once() -> None:
    rates = 20.0 + np.random.default_rng(1).normal(0.0, 2.0, 400)
    rates[100:110] = np.nan
    series = warmed(Trace(0.0, STEP_S, {"s": rates}, {}), "s", 150.0, pool_of(SETTINGS), SETTINGS)
    assert series.end_s == 400 * STEP_S
    np.testing.assert_array_equal(series.history.rates, rates)
    assert series.record is not None and series.record.scored > SETTINGS.judged
    assert "ar-fourier" in series.fits


async def test_a_history_file_is_known_before_the_first_message(tmp_path: Path) -> None:
    path = tmp_path / "past.csv"
    path.write_text("window_start_s,s\n" + "".join(f"{1e9 + 30 * i},{5 + i % 3}\n" for i in range(200)))
    service, said = started(WarmStart(file=path))
    await service.open()
    service.restore({})
    assert said == []
    assert service._state.series["s"].end_s == 1e9 + 200 * 30


async def test_a_file_that_cannot_be_read_is_said_and_the_start_is_cold(tmp_path: Path) -> None:
    service, said = started(WarmStart(file=tmp_path / "none.csv"))
    await service.open()
    service.restore({})
    assert service._state.series == {}
    assert len(said) == 1 and "none.csv: cannot be read" in said[0]


async def test_prometheus_is_asked_for_the_range_before_now() -> None:
    asked: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        values = [[1e9 - 3000 + 30 * i, str(4 + i % 2)] for i in range(101)]
        result = [{"metric": {"server": "s"}, "values": values}]
        return web.json_response({"status": "success", "data": {"resultType": "matrix", "result": result}})

    site = web.Application()
    site.router.add_get("/api/v1/query_range", answer)
    runner = web.AppRunner(site)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        service, said = started(WarmStart(prometheus_url=f"http://127.0.0.1:{port}", span_s=3000.0))
        await service.open()
        service.restore({})
    finally:
        await runner.cleanup()
    assert said == []
    assert (float(asked[0]["start"]), float(asked[0]["end"])) == (1e9 - 3000, 1e9)
    assert service._state.series["s"].end_s == 1e9
    assert len(service._state.series["s"].history) == 101


async def test_a_prometheus_that_is_not_there_is_said_and_the_start_is_cold(unused_tcp_port: int) -> None:
    service, said = started(WarmStart(prometheus_url=f"http://127.0.0.1:{unused_tcp_port}"))
    await service.open()
    assert len(said) == 1 and str(unused_tcp_port) in said[0]


def test_samples_that_are_absent_or_nan_are_missing() -> None:
    values = [[60, "1"], [90, "NaN"], [150, "2"]]
    answer = {
        "status": "success",
        "data": {"resultType": "matrix", "result": [{"metric": {"server": "s"}, "values": values}]},
    }
    found = of_prometheus(answer, "server", STEP_S)
    assert found.start_s == 30.0
    np.testing.assert_array_equal(found.rates_rps["s"], [1.0, math.nan, math.nan, 2.0])


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"status": "error", "error": "parse error"},
        {"status": "success", "data": {"resultType": "vector", "result": []}},
        {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": []}]}},
    ],
)
def test_an_answer_that_is_no_range_is_refused(answer: Any) -> None:
    with pytest.raises(TraceRefused, match="Prometheus"):
        of_prometheus(answer, "server", STEP_S)
