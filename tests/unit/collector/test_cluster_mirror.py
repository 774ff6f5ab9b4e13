"""The copy of a cluster's resource, where it cannot be resumed or an object of it cannot be read."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from services.cluster.client import Refused
from services.cluster.mirror import Mirror

EXPIRED = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}


class Server:
    """Lists nothing at a version that is the number of the list, once it is `let`; each watch ends as expired."""

    def __init__(self, *refused: int) -> None:
        self.let, self.lists, self.refused = asyncio.Semaphore(0), 0, refused

    async def call(self, method: str, path: str, query: Mapping[str, str]) -> Any:
        self.lists += 1
        number = self.lists
        await self.let.acquire()
        if number in self.refused:
            raise Refused(f"{method} {path}", 410, "Expired", "the continue token is too old")
        return {"kind": "PodList", "items": [], "metadata": {"resourceVersion": str(number)}}

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        yield EXPIRED


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0)


async def test_a_copy_that_cannot_be_resumed_is_not_current_until_it_is_listed_again() -> None:
    mirror: Mirror[object] = Mirror(server := Server(), "/pods", lambda item: item)  # type: ignore[arg-type]
    current: list[object] = []
    mirror._on_change = lambda: current.append(mirror.error)
    following = asyncio.create_task(mirror.run())
    server.let.release()
    await until(lambda: server.lists == 2)
    assert current == [None]
    assert mirror.error is not None and mirror.error.status == 410  # type: ignore[attr-defined]
    server.let.release()
    await until(lambda: server.lists == 3)
    assert current == [None, None]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_list_that_expires_on_its_way_is_told_and_waited_after() -> None:
    mirror: Mirror[object] = Mirror(server := Server(1, 2), "/pods", lambda item: item)  # type: ignore[arg-type]
    following = asyncio.create_task(mirror.run())
    server.let.release()
    server.let.release()
    await until(mirror.settled.is_set)
    assert server.lists == 1 and "the continue token is too old" in str(mirror.error)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_an_object_that_cannot_be_read_is_named_and_read_again_until_it_can_be() -> None:
    class Listed(Server):
        text = "many"

        async def call(self, method: str, path: str, query: Mapping[str, str]) -> Any:
            meta = {"namespace": "n", "name": "odd", "resourceVersion": "1"}
            item = {"metadata": meta, "replicas": self.text}
            return {"kind": "SetList", "items": [item], "metadata": {"resourceVersion": "1"}}

        async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
            await asyncio.Event().wait()
            yield EXPIRED

    server = Listed()
    mirror: Mirror[int] = Mirror(server, "/sets", lambda item: int(item["replicas"]))  # type: ignore[arg-type]
    following = asyncio.create_task(mirror.run())
    await until(mirror.settled.is_set)
    assert str(mirror.error).startswith("/sets: n/odd cannot be read: ValueError: invalid literal")
    server.text = "3"
    await until(lambda: mirror.error is None)
    assert mirror.objects == {("n", "odd"): 3}
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
