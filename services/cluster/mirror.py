"""A local copy of one resource of a cluster: listed once, then watched, and resumed where a watch ended."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from services.cluster.client import Cluster, ClusterError, Refused, Unreachable

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace, empty for what has none, and name."""

_PAGE = 500
_PAUSE_S = (0.5, 15.0)
_ABSENT_S = 60.0
"""How long before a resource that the server does not know is asked for again."""


class Mirror(Generic[T]):
    """Keeps `objects` while `run` runs.

    Parameters: path, of the list over all namespaces; read, makes of an object's JSON what is kept of it, or nothing.
    `error` says why the copy may be old, and is nothing while it is current. A resource that the server does not
    know is empty and no problem when it is `optional`. `on_change` is called after each answer and event.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        read: Callable[[dict[str, Any]], T | None],
        query: Mapping[str, str] | None = None,
        optional: bool = False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.objects: dict[Key, T] = {}
        self.error: ClusterError | None = Unreachable(f"{path}: not read yet")
        self.settled = asyncio.Event()
        """Set once the first attempt has ended, well or not."""
        self._cluster, self._path, self._read = cluster, path, read
        self._query = dict(query or {})
        self._optional = optional
        self._on_change = on_change
        self._version = ""

    async def run(self) -> None:
        """Follow the resource until cancelled; no failure ends it."""
        shortest_s, longest_s = _PAUSE_S
        pause_s = shortest_s
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                pause_s = shortest_s
            except Refused as refusal:
                if refusal.status == 410 and self._version:
                    # Too old to resume from: the copy is wrong from here on until it is listed again.
                    self.error, self._version = refusal, ""
                    continue
                if refusal.status == 404 and self._optional:
                    self.objects, self._version = {}, ""
                    self._current()
                    await asyncio.sleep(_ABSENT_S)
                    continue
                await self._wait(refusal, pause_s)
                pause_s = min(longest_s, 2 * pause_s)
            except ClusterError as error:
                await self._wait(error, pause_s)
                pause_s = min(longest_s, 2 * pause_s)

    async def _wait(self, error: ClusterError, pause_s: float) -> None:
        self.error = error
        self.settled.set()
        await asyncio.sleep(pause_s)

    async def _list(self) -> None:
        found: dict[Key, T] = {}
        query = {**self._query, "limit": str(_PAGE)}
        while True:
            page = await self._cluster.call("GET", self._path, query)
            kind = str(page.get("kind", "")).removesuffix("List")
            for item in page.get("items") or ():
                self._take(found, {"kind": kind, **item})
            meta = page.get("metadata", {})
            if not meta.get("continue"):
                break
            query["continue"] = meta["continue"]
        self.objects, self._version = found, str(meta["resourceVersion"])
        self._current()

    async def _follow(self) -> None:
        query = {**self._query, "resourceVersion": self._version, "allowWatchBookmarks": "true"}
        events = self._cluster.watch(self._path, query)
        try:
            async for event in events:
                kind, item = event["type"], event["object"]
                if kind == "ERROR":
                    raise Refused(
                        f"watch of {self._path}",
                        int(item.get("code", 0)),
                        str(item.get("reason")),
                        str(item.get("message")),
                    )
                self._version = item["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self.objects.pop(_key(item), None)
                elif kind != "BOOKMARK":
                    self._take(self.objects, item)
                self._current()
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        self._current()

    def _current(self) -> None:
        self.error = None
        self.settled.set()
        self._on_change()

    def _take(self, objects: dict[Key, T], item: dict[str, Any]) -> None:
        try:
            kept = self._read(item)
        except Exception as error:
            # Told by its name, and listed again until it can be read: a copy without it would be wrong.
            self._version = ""
            name = "/".join(filter(None, _key(item)))
            said = f"{type(error).__name__}: {error}"
            raise ClusterError(f"{self._path}: {name} cannot be read: {said}") from error
        if kept is None:
            objects.pop(_key(item), None)
        else:
            objects[_key(item)] = kept


class Following:
    """Some mirrors of one cluster, started by the first question about them."""

    def __init__(self, *mirrors: Mirror[Any]) -> None:
        self._mirrors = mirrors
        self._running: list[asyncio.Task[None]] = []

    async def error(self, within_s: float) -> ClusterError | None:
        """Why some copy may be old, or nothing; waits so many wall seconds for the first lists."""
        if not self._running:
            self._running = [asyncio.create_task(mirror.run()) for mirror in self._mirrors]
        settled = asyncio.create_task(self._settled())
        await asyncio.wait([settled, *self._running], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        late = settled.cancel()
        for task in self._running:
            if task.done():
                # Nothing ends one but a fault of ours, which must not leave an old copy in use.
                task.result()
        if late:
            return Unreachable(f"not everything was listed within {within_s:g} s")
        return next((mirror.error for mirror in self._mirrors if mirror.error is not None), None)

    async def close(self) -> None:
        """Stop; closing twice is harmless."""
        running, self._running = self._running, []
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _settled(self) -> None:
        for mirror in self._mirrors:
            await mirror.settled.wait()


def _key(item: Mapping[str, Any]) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
