"""The simulated fleet as a target, against the real one and against backends that misbehave."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import unquote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from gate_cases import ask, hold
from simulated_backend import (
    ACCELERATORS,
    ORIGIN_S,
    SERVER,
    Client,
    Clock,
    inventory_of,
    set_by_hand,
    simulated_fleet,
    url_of,
)

from schemas.actuation import FailureReason, VariantScale
from services.actuator.target import Applied, Failed
from services.actuator.targets.simulated import SimulatedSettings, SimulatedTarget

OLD, NEW = ACCELERATORS


def scale(accelerator: str, replicas: int, max_batch: int | None = None) -> VariantScale:
    return VariantScale(accelerator=accelerator, replicas=replicas, max_batch=max_batch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(clock: Clock) -> AsyncIterator[Client]:
    async with simulated_fleet(clock) as client:
        yield client


@pytest.fixture
async def target(client: Client) -> AsyncIterator[SimulatedTarget]:
    target = SimulatedTarget(SimulatedSettings(url=url_of(client)))
    yield target
    await target.close()


async def counts(client: Client) -> dict[str, int]:
    return {v.accelerator: v.desired for v in (await inventory_of(client)).variants if v.desired}


async def test_it_scales_up_and_down(client: Client, target: SimulatedTarget) -> None:
    for replicas in (4, 1):
        result = await target.apply(SERVER, [scale(OLD, replicas)], await inventory_of(client))
        assert isinstance(result, Applied) and result.changed
        assert await counts(client) == {OLD: replicas}
        versions = {v.accelerator: v.resource_version for v in (await inventory_of(client)).variants}
        assert result.resource_version == versions[OLD]


async def test_it_sets_the_batch_limit(client: Client, target: SimulatedTarget) -> None:
    result = await target.apply(SERVER, [scale(OLD, 2, 16)], await inventory_of(client))
    assert isinstance(result, Applied) and result.changed
    (batch,) = [v.max_batch for v in (await inventory_of(client)).variants if v.accelerator == OLD]
    assert batch == 16


async def test_it_moves_in_two_steps_and_the_old_serve_until_the_new_do(
    client: Client, clock: Clock, target: SimulatedTarget
) -> None:
    assert await target.apply(SERVER, [scale(OLD, 2), scale(NEW, 3)], await inventory_of(client))
    assert await counts(client) == {OLD: 2, NEW: 3}
    clock.time_s = ORIGIN_S + 600
    ready = {v.accelerator: v.ready for v in (await inventory_of(client)).variants}
    assert ready == {OLD: 2, NEW: 3}
    assert await target.apply(SERVER, [scale(OLD, 0), scale(NEW, 3)], await inventory_of(client))
    assert await counts(client) == {NEW: 3}


async def test_what_another_writer_changed_meanwhile_is_a_conflict(
    client: Client, target: SimulatedTarget
) -> None:
    seen = await inventory_of(client)
    await set_by_hand(client, OLD, 5)
    result = await target.apply(SERVER, [scale(OLD, 3)], seen)
    assert isinstance(result, Failed) and result.reason is FailureReason.CONFLICT
    assert await counts(client) == {OLD: 5}


async def test_nothing_goes_while_what_shall_stay_is_no_longer_as_it_was_seen(
    client: Client, target: SimulatedTarget
) -> None:
    await target.apply(SERVER, [scale(NEW, 2)], await inventory_of(client))
    seen = await inventory_of(client)
    await set_by_hand(client, NEW, 0)
    result = await target.apply(SERVER, [scale(OLD, 0), scale(NEW, 2)], seen)
    assert isinstance(result, Failed) and result.reason is FailureReason.CONFLICT
    assert await counts(client) == {OLD: 2}


async def test_what_does_not_exist_is_not_found(client: Client, target: SimulatedTarget) -> None:
    seen = await inventory_of(client)
    for server, accelerator in (("nobody", OLD), (SERVER, "no/such accelerator")):
        result = await target.apply(server, [scale(accelerator, 3)], seen)
        assert isinstance(result, Failed) and result.reason is FailureReason.NOT_FOUND
        assert "status 404" in result.message


async def test_what_the_fleet_cannot_do_is_refused(client: Client, target: SimulatedTarget) -> None:
    result = await target.apply(SERVER, [scale(OLD, 100_000)], await inventory_of(client))
    assert isinstance(result, Failed) and result.reason is FailureReason.REFUSED
    assert "replicas" in result.message


async def test_a_fleet_that_is_not_there_is_unreachable(unused_tcp_port: int) -> None:
    target = SimulatedTarget(SimulatedSettings(url=f"http://127.0.0.1:{unused_tcp_port}"))
    result = await target.apply("s", [scale("A", 3)], hold(ask(A=2)))
    await target.close()
    assert isinstance(result, Failed) and result.reason is FailureReason.UNREACHABLE


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def backend(handler: Handler, timeout_s: float = 5.0) -> AsyncIterator[SimulatedTarget]:
    app = web.Application()
    app.router.add_put("/servers/{server}/variants/{accelerator}", handler)
    async with TestClient(TestServer(app)) as client:
        target = SimulatedTarget(SimulatedSettings(url=url_of(client), timeout_s=timeout_s))
        try:
            yield target
        finally:
            await target.close()


async def test_a_fleet_that_does_not_answer_in_time_is_unreachable() -> None:
    never = asyncio.Event()

    async def silent(_: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    async with backend(silent, timeout_s=0.05) as target:
        result = await target.apply("s", [scale("A", 3)], hold(ask(A=2)))
        never.set()
    assert isinstance(result, Failed) and result.reason is FailureReason.UNREACHABLE
    assert "0.05 s" in result.message


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"", FailureReason.UNREACHABLE),
        (200, b"<html>", FailureReason.UNREACHABLE),
        (200, b"\xff\xfe", FailureReason.UNREACHABLE),
        (200, b"{}", FailureReason.UNREACHABLE),
        (200, b"[1]", FailureReason.UNREACHABLE),
        (200, b'{"resource_version": null}', FailureReason.UNREACHABLE),
        (200, b'{"resource_version": ""}', FailureReason.UNREACHABLE),
        (200, b'{"resource_version": "two\\nlines"}', FailureReason.UNREACHABLE),
        (200, b'{"resource_version": "' + b"9" * 300 + b'"}', FailureReason.UNREACHABLE),
        (204, b"", FailureReason.UNREACHABLE),
        (500, b"x" * 100_000, FailureReason.UNREACHABLE),
        (403, b"", FailureReason.FORBIDDEN),
        (422, b"\xff", FailureReason.REFUSED),
        (409, b"{}", FailureReason.CONFLICT),
        (404, b"{}", FailureReason.NOT_FOUND),
    ],
)
async def test_a_nonsense_reply_is_a_value(status: int, body: bytes, reason: FailureReason) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type="application/json", charset="utf-8")

    async with backend(answer) as target:
        result = await target.apply("s", [scale("A", 3)], hold(ask(A=2)))
    assert isinstance(result, Failed) and result.reason is reason
    assert 0 < len(result.message) <= 4000


async def test_what_grows_is_written_first_and_a_failure_takes_nothing_away() -> None:
    calls: list[tuple[str, int]] = []

    async def record(request: web.Request) -> web.StreamResponse:
        asked = (unquote(request.match_info["accelerator"]), (await request.json())["replicas"])
        calls.append(asked)
        return web.json_response(
            {"resource_version": 7}, status=200 if asked[0] != "B" or asked[1] < 9 else 500
        )

    seen = hold(ask(A=4, B=2))
    async with backend(record) as target:
        result = await target.apply("s", [scale("A", 1), scale("B", 3), scale("C", 0)], seen)
        assert result == Applied(changed=True, resource_version="7")
        assert calls[0] == ("B", 3) and ("A", 1) in calls
        calls.clear()
        assert isinstance(await target.apply("s", [scale("A", 1), scale("B", 9)], seen), Failed)
        assert calls == [("B", 9)]


async def test_what_is_as_asked_is_not_written() -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        raise AssertionError("nothing was to be written")

    async with backend(refuse) as target:
        result = await target.apply("s", [scale("A", 4, 64), scale("B", 2)], hold(ask(A=4, B=2)))
    assert result == Applied(changed=False)
