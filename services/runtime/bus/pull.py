"""A pull on a consumer that keeps requests open, so that messages are handed over as they arrive."""

import asyncio
import contextlib
import json
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.runtime.envelope import Raw
from services.runtime.errors import TopologyDrift

_EXPIRES_S = 30.0
_HEARTBEAT_S = 2.0
_SILENCE_S = 2.5 * _HEARTBEAT_S
_MAX_BYTES = 64 << 20
_REBUFF_S = 0.25
_GONE_S = 30.0
_ENDED = ("404", "408")


class Pull:
    """Open pull requests on one consumer.

    gone_s: seconds for which the server may know no such consumer before that is an error.
    """

    def __init__(
        self, client: Client, stream: str, consumer: str, batch: int, gone_s: float = _GONE_S
    ) -> None:
        self._gone_s = gone_s
        self._client = client
        self._stream = stream
        self._ask_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._batch = batch
        self._inbox = client.new_inbox()
        self._open = 0
        self._subscription: Any = None
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._stopping = False
        self._heard_s = 0.0
        self._ask_from_s = 0.0
        self._rebuffed_s: float | None = None

    async def start(self) -> None:
        """Subscribe; `next` makes the requests."""
        self._subscription = await self._client.subscribe(
            self._inbox, cb=self._take, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        self._heard_s = asyncio.get_running_loop().time()

    async def _take(self, message: Msg) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        self._arrived.put_nowait(message)

    @property
    def stopped(self) -> bool:
        """Whether nothing more will come."""
        return self._stopping

    def reopen(self) -> None:
        """Forget the open requests, which a new connection does not know."""
        self._open = 0

    async def next(self, linger_s: float = 0.0) -> list[Raw]:
        """All that has arrived, at most a batch; waits until there is something; nothing once stopped.

        With `linger_s` it waits that long for more after the first.

        Raises TopologyDrift when the server has known no such consumer for that long.
        """
        loop = asyncio.get_running_loop()
        found: list[Raw] = []
        while not found and not self._stopping:
            pause_s = self._ask_from_s - loop.time()
            if self._open <= self._batch // 2 and pause_s <= 0:
                await self._ask()
            wait_s = pause_s if 0 < pause_s < _HEARTBEAT_S else _HEARTBEAT_S
            try:
                self._sort(await asyncio.wait_for(self._arrived.get(), wait_s), found)
            except TimeoutError:
                # A server that restarted has forgotten the requests; its heartbeats stop.
                if loop.time() - self._heard_s > _SILENCE_S:
                    self.reopen()
            if self._rebuffed_s is not None and loop.time() - self._rebuffed_s > self._gone_s:
                raise TopologyDrift(f"{self._ask_subject} has no answer; run `stoker bus apply`")
            if found and linger_s:
                await asyncio.sleep(linger_s)
            while len(found) < self._batch and not self._arrived.empty():
                self._sort(self._arrived.get_nowait(), found)
        return found

    async def _ask(self) -> None:
        if not self._client.is_connected:
            return
        wanted = self._batch - self._open
        request = {
            "batch": wanted,
            "max_bytes": _MAX_BYTES,
            "expires": int(_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        self._open += wanted
        with contextlib.suppress(nats.errors.Error):
            await self._client.publish(self._ask_subject, json.dumps(request).encode(), reply=self._inbox)

    def _sort(self, message: Msg | None, found: list[Raw]) -> None:
        if message is None:
            return
        headers = message.headers or {}
        status = headers.get("Status")
        if status is not None and message.subject == self._inbox:
            if status in _ENDED or "Batch Completed" in headers.get("Description", ""):
                unused = headers.get("Nats-Pending-Messages", "")
                self._open = max(0, self._open - int(unused)) if unused.isdigit() else 0
            elif status != "100":
                self._rebuff()
            if status == "100" or status in _ENDED:
                self._rebuffed_s = None
            return
        self._rebuffed_s = None
        self._open = max(0, self._open - 1)
        metadata = message.metadata
        found.append(
            Raw(
                subject=message.subject,
                data=message.data,
                headers=headers,
                stream=self._stream,
                sequence=metadata.sequence.stream,
                deliveries=metadata.num_delivered or 1,
                token=message,
            )
        )

    def _rebuff(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self.reopen()
        self._ask_from_s = now_s + _REBUFF_S
        if self._rebuffed_s is None:
            self._rebuffed_s = now_s

    async def stop(self) -> None:
        """Unsubscribe, so that a later drain has nothing to wait for, and let `next` return."""
        self._stopping = True
        self._arrived.put_nowait(None)
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()
            self._subscription = None
