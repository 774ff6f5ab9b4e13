"""A proposed sweep goes round: tuner, bus, collector, simulated fleet, telemetry, tuner."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.parameters import CalibrationProposed, Health, ParametersEstimated
from schemas.telemetry import TelemetryObserved
from services.allinone import Options, Running, started
from services.runtime.bus import Bus
from services.runtime.envelope import decode
from services.runtime.settings import BusSettings

pytestmark = pytest.mark.timeout(600)

TRUTH = {"alpha_s": 8e-3, "beta_s": 16e-6, "gamma_s": 5e-7}
# 30 % off, each its own way, so that no single figure is wrong by as much.
PRIOR = {"alpha_s": 1.3 * 8e-3, "beta_s": 0.7 * 16e-6, "gamma_s": 0.7 * 5e-7}
SPEED = 60.0

FLEET = f"""
accelerators: [{{name: H100, type: H100, cost_per_hour: 4}}]
models:
  - name: org/m
    profiles:
      - {{accelerator: H100, max_batch: 64, startup_s: 20, parameters: {{values: {PRIOR}}}}}
service_classes:
  - {{name: c, priority: 1, objectives: [{{model: org/m, ttft_s: 0.5, itl_s: 0.03}}]}}
servers: [{{name: s, model: org/m, service_class: c, min_replicas: 2, max_replicas: 2}}]
"""
# Requests that are all alike at one rate: one operating point, which identifies nothing.
PLANT = f"""
seed: 5
accelerators: [{{type: H100, count: 4}}]
servers:
  - name: s
    model: org/m
    variants:
      - {{accelerator: H100, accelerator_type: H100, max_batch: 64, startup_s: {{median: 10, p95: 20}},
          alpha_s: {TRUTH["alpha_s"]}, beta_s: {TRUTH["beta_s"]}, gamma_s: {TRUTH["gamma_s"]}}}
    initial: [{{accelerator: H100, replicas: 2}}]
    arrivals:
      kind: generated
      rate_rps: [[0, 1]]
      input_tokens: {{mean: 300, cv: 0.4, shape: fixed}}
      output_tokens: {{mean: 100, cv: 0.4, shape: fixed}}
"""


@pytest.fixture
async def loop(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "plant.yaml").write_text(PLANT)
    async with started(
        Options(
            tmp_path / "fleet.yaml",
            tmp_path / "plant.yaml",
            speed=SPEED,
            store=tmp_path / "nats",
            prometheus=False,
        )
    ) as running:
        yield running


async def told(bus: Bus, stream: str, subject: str) -> list[Any]:
    return [decode(raw).payload for raw in await bus.everything(stream, [f"stoker.v1.{subject}"])]


async def test_a_pair_whose_prior_is_30_percent_off_is_identified_by_a_sweep_that_is_nobodys_load(
    loop: Running,
) -> None:
    bus = await Bus.connect(BusSettings(url=loop.bus_url), "test")
    parameters: list[ParametersEstimated] = []
    deadline_s = time.monotonic() + 120.0
    while not parameters or parameters[-1].health is not Health.IDENTIFIED:
        assert time.monotonic() < deadline_s, parameters[-1:]
        await asyncio.sleep(0.5)
        parameters = await told(bus, "STATE", "parameters.estimated.>")
    proposals: list[CalibrationProposed] = await told(bus, "STATE", "calibration.proposed.>")
    windows: list[TelemetryObserved] = await told(bus, "TELEMETRY", "telemetry.observed.>")
    forecasts = await told(bus, "STATE", "forecast.issued.>")
    await bus.close()

    (proposed,) = proposals
    (swept,) = (window for window in windows if window.calibration)
    assert len(swept.replicas) == len(proposed.points)
    before = [one for one in parameters if one.estimated_at_s < swept.window_end_s]
    assert {one.health for one in before} <= {Health.PRIOR, Health.LEARNING}
    learned = {name: parameters[-1].values[name] / true for name, true in TRUTH.items()}
    # Four points of some hundred requests each. Beta is what is left of TTFT, which the queueing model has 5 %
    # too high for requests that are all alike.
    assert (learned["alpha_s"], learned["gamma_s"]) == (
        pytest.approx(1, abs=0.05),
        pytest.approx(1, abs=0.05),
    )
    assert learned["beta_s"] == pytest.approx(1, abs=0.15)
    assert {forecast.server for forecast in forecasts} == {"s"}
