"""Requests to the optimizer: solve, explain, and both what-if; nothing is published by them."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import psutil
import pytest
from optimizer_builders import NOW_S, fleet, server, telemetry

from schemas.plan import SolveStatus
from schemas.request import ExplainAnswered, ExplainRequested, SolveAnswered, SolveRequested
from services.optimizer.core import observe
from services.optimizer.service import OptimizerService
from services.optimizer.settings import Settings
from services.optimizer.state import State
from services.runtime.clock import VirtualClock
from services.runtime.metrics import Metrics


@pytest.fixture
async def service() -> AsyncIterator[OptimizerService]:
    """The optimizer with a fleet of two servers, without a bus."""
    made = OptimizerService(Settings())
    made.host = SimpleNamespace(clock=VirtualClock(NOW_S), metrics=Metrics(), log=None, active=True)  # type: ignore[assignment]
    state = State()
    for message in (fleet(server("a"), server("b")), telemetry("a"), telemetry("b", 40.0)):
        state = observe(state, message)
    made._state = state
    yield made
    await made.close()


async def solved(service: OptimizerService, **asked: object) -> SolveAnswered:
    answer = await service.verbs()["solve"](SolveRequested.model_validate(asked))
    assert isinstance(answer, SolveAnswered)
    return answer


async def explained(service: OptimizerService, **asked: object) -> ExplainAnswered:
    answer = await service.verbs()["explain"](ExplainRequested.model_validate(asked))
    assert isinstance(answer, ExplainAnswered)
    return answer


async def test_an_explanation_has_the_plan_every_candidate_and_the_whole(service: OptimizerService) -> None:
    answer = await explained(service, server="a", solver="greedy")
    assert answer.plan.server == "a"
    assert "decides the size" in answer.plan.explanation
    assert {c.accelerator for c in answer.candidates} == {"slow", "2xfast"}
    best = min(answer.candidates, key=lambda c: c.value_per_hour)
    assert answer.plan.allocations is not None
    assert answer.plan.allocations[0].accelerator == best.accelerator
    assert answer.manifest.servers == 2


async def test_what_if_changes_the_answer_and_nothing_else(service: OptimizerService) -> None:
    before = service._state
    plain = await solved(service, solver="greedy", servers=("a",))
    asked = {"solver": "greedy", "servers": ("a",), "overrides": ("servers[a].min_replicas=9",)}
    changed = await solved(service, **asked)
    assert plain.plans[0].allocations != changed.plans[0].allocations
    assert changed.plans[0].allocations is not None
    assert changed.plans[0].allocations[0].replicas == 9
    assert service._state is before


async def test_a_heavy_solver_answers_from_its_process_with_prices_and_classes(
    service: OptimizerService,
) -> None:
    scarce = ("capacity[S].count=2", "capacity[F].count=2")
    answer = await solved(service, solver="milp", overrides=scarce)
    assert answer.manifest.solver == "milp"
    assert answer.manifest.bound_cost_per_hour is not None
    assert [c.priority for c in answer.manifest.classes] == [1]
    assert {p.type for p in answer.manifest.shadow_prices} == {"F", "S"}


async def test_plans_do_not_wait_for_the_process_that_answers_requests(service: OptimizerService) -> None:
    await solved(service, solver="milp")
    (asked,) = service._answering._pool._processes  # type: ignore[union-attr]
    psutil.Process(asked).suspend()
    waiting = asyncio.create_task(solved(service, solver="milp"))
    planned = await asyncio.wait_for(service._planned(service._solver("milp", service._worker)), 20)
    assert not waiting.done()
    assert planned[1].manifest.status is SolveStatus.OPTIMAL
    waiting.cancel()
    service._answering.close()
    psutil.Process(asked).resume()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("servers[c].min_replicas=2",), "'c' is not in the list"),
        (("servers[a].min_replicas=-2",), "min_replicas"),
        (("nothing",), "expected PATH=VALUE"),
    ],
)
async def test_a_what_if_that_cannot_be_made_is_a_bad_request(
    service: OptimizerService, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError) as refused:
        await solved(service, overrides=overrides)
    assert said in str(refused.value)


async def test_an_unknown_server_cannot_be_explained(service: OptimizerService) -> None:
    with pytest.raises(ValueError, match="nobody not declared; declared: a, b"):
        await explained(service, server="nobody")
