"""What a service on a real server answers: requests, its status, its health."""

import json
import time
from dataclasses import replace

import aiohttp
import pytest
from echo import (
    Echo,
    chassis_of,
    counted,
    messages,
    running,
    sent,
    until,
    window,
)

from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer
from services.runtime.http import HealthServer
from services.runtime.metrics import Metrics
from services.runtime.settings import HttpSettings

# Requests.


@pytest.mark.parametrize(
    ("body", "told", "outcome"),
    [
        (b"{", "Invalid JSON", "refused"),
        (b"", "server: Field required", "refused"),
        (b'{"server": 3}', "server: Input should be a valid string, got '3'", "refused"),
        (b'{"server": "unknown"}', "server 'unknown' is not in the fleet", "refused"),
        (b'{"server": "broken"}', "KeyError: 'broken'", "failed"),
        (b'{"server": "long"}', "bytes: at most 921600 are carried", "refused"),
    ],
)
async def test_a_request_that_cannot_be_met_is_answered_with_what_is_wrong(
    nats: EmbeddedServer, outside: Bus, body: bytes, told: str, outcome: str
):
    chassis = chassis_of(nats, Echo())
    async with running(chassis):
        answer = json.loads(await outside.request("stoker.v1.svc.predictor.forecast", body))
        assert list(answer) == ["error"]
        assert told in answer["error"]
        assert counted(chassis, "stoker_requests_total", verb="forecast", outcome=outcome) == 1


async def test_a_service_answers_what_it_knows_of_itself(nats: EmbeddedServer, outside: Bus):
    echo = Echo()
    chassis = chassis_of(nats, echo)
    async with running(chassis):
        await outside.publish(sent(window(1.0)))
        await outside.publish(replace(sent(window(2.0)), data=b""))
        await until(lambda: echo.counts and messages(chassis, "parked"))
        status = json.loads(await outside.request("stoker.v1.svc.predictor.status", b""))
        assert status["service"] == "predictor"
        assert (status["ready"], status["handled"], status["parked"]) == (True, 1, 1)
        echo.trouble = lambda: ["x" * 5000]  # type: ignore[method-assign]
        status = json.loads(await outside.request("stoker.v1.svc.predictor.status", b""))
        assert (status["ready"], len(status["reasons"][0])) == (False, 2000)


# Health.


async def test_the_health_endpoints_follow_the_life_of_the_service(nats: EmbeddedServer, outside: Bus):
    chassis = chassis_of(nats, echo := Echo())
    health = HealthServer(HttpSettings(), chassis.metrics, lambda: {"predictor": chassis.reasons()})
    await health.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{health.port}") as http:

        async def get(path: str) -> tuple[int, str]:
            async with http.get(path) as answer:
                return answer.status, await answer.text()

        async def readiness(within_s: float, wanted: list[str]) -> None:
            deadline = time.monotonic() + within_s
            while True:
                status, text = await get("/readyz")
                reasons = json.loads(text)["reasons"].get("predictor", [])
                assert json.loads(text)["ready"] == (status == 200) == (not reasons)
                if reasons == wanted:
                    return
                assert time.monotonic() < deadline, reasons

        await readiness(1, ["connecting"])
        assert 'stoker_ready{service="predictor"} 0.0' in (await get("/metrics"))[1]
        async with running(chassis):
            await readiness(5, [])
            page = (await get("/metrics"))[1]
            assert 'stoker_ready{service="predictor"} 1.0' in page
            assert 'stoker_active{service="predictor"} 1.0' in page
            echo.trouble = lambda: ["no telemetry yet"]  # type: ignore[method-assign]
            await readiness(1, ["no telemetry yet"])
            echo.trouble = lambda: ()  # type: ignore[method-assign]
            nats.kill()
            await readiness(5, ["the bus is not connected"])
            assert (await get("/livez"))[0] == 200
            await nats.start()
            await readiness(10, [])
        await readiness(1, ["stopped"])
        assert (await get("/livez"))[0] == 200
    await health.stop()


async def test_a_port_of_the_health_endpoint_that_is_taken_is_an_error():
    one = HealthServer(HttpSettings(), Metrics(), dict)
    await one.start()
    other = HealthServer(HttpSettings(port=one.port), Metrics(), dict)
    with pytest.raises(OSError, match="in use"):
        await other.start()
    await other.stop()
    await one.stop()
