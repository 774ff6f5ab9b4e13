"""Generations go on where they were, however long no optimizer was there."""

import asyncio
from pathlib import Path

from echo import chassis_of, sent, until

from schemas.plan import PlanIssued
from services.optimizer.service import OptimizerService
from services.optimizer.settings import Settings
from services.runtime.bus import Bus
from services.runtime.embedded import EmbeddedServer

EXAMPLE = Path(__file__).parents[2] / "schemas/examples/plan.issued/v1/full.json"


async def test_an_optimizer_that_starts_after_all_plans_have_expired_goes_on_from_the_last_generation(
    nats: EmbeddedServer, bus: Bus
):
    expired = PlanIssued.model_validate_json(EXAMPLE.read_text()).model_copy(update={"generation": 41})
    await bus.publish(sent(expired, expires_at_s=expired.expires_at_s))
    chassis = chassis_of(nats, service := OptimizerService(Settings()))
    task = asyncio.create_task(chassis.run())
    await until(lambda: chassis.active and "no fleet is declared yet" in chassis.reasons())
    assert service._state.last_generation == 41
    chassis.stop()
    await asyncio.wait_for(task, 60)
