"""The performance model asked over a real bus: one problem, a list, and what cannot be answered."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from schemas.request import PerformanceAnswered, RequestRefused
from services.optimizer.service import OptimizerService
from services.optimizer.settings import Settings
from services.runtime.bus import Bus
from services.runtime.chassis import Chassis
from services.runtime.clock import WallClock
from services.runtime.embedded import EmbeddedServer
from services.runtime.metrics import Metrics
from services.runtime.settings import BusSettings

OWN: dict[str, Any] = {
    "parameters": {"alpha_s": 0.012, "beta_s": 5e-5, "gamma_s": 5e-7},
    "input_tokens": 128,
    "output_tokens": 512,
    "max_batch": 48,
    "max_queue": 128,
    "rate_rps": 3,
    "targets": {"ttft_s": 0.5, "itl_s": 0.02},
}
REFERENCE = {
    "RPS": 3,
    "maxBatchSize": 48,
    "AvgInputTokens": 128,
    "AvgOutputTokens": 512,
    "alpha": 12,
    "beta": 0.05,
    "gamma": 0.0005,
    "maxQueueSize": 128,
    "targetITL": 20,
}
Ask = Callable[[str, object], Awaitable[Any]]


@pytest_asyncio.fixture
async def ask(nats: EmbeddedServer, bus: Bus) -> AsyncIterator[Ask]:
    """Asks a running optimizer, which knows of no fleet; returns what the body of its answer holds."""
    settings = Settings(instance="one", bus=BusSettings(url=nats.url, storage="memory", connect_timeout_s=30))
    chassis = Chassis(OptimizerService(settings), settings, WallClock(), Metrics())
    task = asyncio.create_task(chassis.run())
    deadline = time.monotonic() + 60
    while chassis.metrics.registry.get_sample_value("stoker_active", {"service": "optimizer"}) != 1:
        assert not task.done() and time.monotonic() < deadline, chassis.reasons()
        await asyncio.sleep(0.01)

    async def asked(verb: str, request: object) -> Any:
        subject = f"stoker.v1.svc.optimizer.{verb}"
        # The first question compiles the kernels, or reads them.
        return json.loads(await bus.request(subject, json.dumps(request).encode(), timeout_s=60))

    yield asked
    chassis.stop()
    await asyncio.wait_for(task, 60)


async def test_a_problem_is_answered_in_its_form_and_a_list_in_its_order(ask: Ask) -> None:
    one = await ask("analyze", {"problems": OWN})
    assert one["answers"]["throughput_rps"] == pytest.approx(3.0, rel=1e-6)
    many = (await ask("size", {"problems": [REFERENCE, 5, OWN]}))["answers"]
    assert many[0]["RPSTargetITL"] == pytest.approx(many[0]["offeredRPS"], rel=1e-9)
    assert "expected an object" in many[1]["error"]
    assert many[2]["max_rate_rps"] == pytest.approx(many[0]["offeredRPS"], rel=1e-6)
    PerformanceAnswered.model_validate({"answers": many})


async def test_what_cannot_be_asked_is_refused_and_costs_the_other_problems_nothing(ask: Ask) -> None:
    for request, said in (
        ({"problems": OWN, "model": "oracle"}, "there is: birth-death"),
        ({"problems": OWN, "law": "newton"}, "there is: seven-parameter"),
        ({"problems": OWN, "model": "simulation"}, "not asked over the bus"),
        ({"problems": [1] * 10_001}, "10000"),
        ({}, "problems"),
        ({"problems": 7}, "problems"),
    ):
        assert said in RequestRefused.model_validate(await ask("size", request)).error
    huge = {**OWN, "max_batch": 1_000_000}
    answers = (await ask("analyze", {"problems": [huge, OWN, huge, huge, {**OWN, "model": "simulation"}]}))[
        "answers"
    ]
    assert ["error" in one for one in answers] == [False, False, False, True, True]
    assert "97104 more, got 1000000" in answers[3]["error"]
    assert "not asked over the bus" in answers[4]["error"]
