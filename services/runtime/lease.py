"""A lease: of all instances of a service one at a time is active.

Times are each instance's own monotonic clock, so clocks need not agree. The holder renews three times per
term and counts its term from before it asked; another instance takes the lease only when it has watched it
unchanged for a whole term. So the holder always stops first.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from services.runtime.bus import Conflict
from services.runtime.errors import Fatal, Retry

_MARGIN = 0.8


class LeaseLost(Fatal):
    """Another instance holds the lease."""


class LeaseStore(Protocol):
    """The part of a bucket that a lease needs."""

    def get(self, key: str) -> Awaitable[tuple[bytes, int] | None]: ...

    def create(self, key: str, value: bytes) -> Awaitable[int]: ...

    def update(self, key: str, value: bytes, revision: int) -> Awaitable[int]: ...

    def delete(self, key: str, revision: int) -> Awaitable[None]: ...


class Lease:
    """One instance's side of a lease.

    Parameters: holder, name of this instance; term_s, wall seconds after which silence frees the lease.
    """

    def __init__(
        self,
        store: LeaseStore,
        key: str,
        holder: str,
        term_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._key = key
        self._holder = holder
        self._term_s = term_s
        self._monotonic = monotonic
        self._revision: int | None = None
        self._valid_until = float("-inf")
        self._seen_revision, self._seen_at = -1, monotonic()

    @property
    def held(self) -> bool:
        """Whether this instance may act at this moment."""
        return self._monotonic() < self._valid_until

    async def acquire(self) -> None:
        """Wait until this instance holds the lease."""
        while True:
            with contextlib.suppress(Retry):
                if await self.attempt(await self._store.get(self._key)):
                    return
            await asyncio.sleep(self._term_s / 10)

    async def regained(self) -> None:
        """Wait while this instance may not act because a renewal took too long; `keep` tells when it is lost."""
        while not self.held:  # noqa: ASYNC110 - held is a matter of time
            await asyncio.sleep(self._term_s / 30)

    async def attempt(self, entry: tuple[bytes, int] | None) -> bool:
        """Take the lease if it is free or one's own; returns whether it is held.

        entry: the record as it was just read, and its revision; nothing where there is none. A lease counts as
        free once it was shown here with one revision for a whole term.
        """
        if not self.free(entry):
            return False
        asked_at = self._monotonic()
        with contextlib.suppress(Conflict, Retry):
            if entry is None:
                self._won(await self._store.create(self._key, self._record()), asked_at)
            else:
                self._won(await self._store.update(self._key, self._record(), entry[1]), asked_at)
        return self.held

    def free(self, entry: tuple[bytes, int] | None) -> bool:
        """Look at a record as it was just read; returns whether this instance may try to take the lease."""
        if entry is None:
            return True
        value, revision = entry
        now = self._monotonic()
        if revision != self._seen_revision:
            self._seen_revision, self._seen_at = revision, now
        return now - self._seen_at >= self._term_s or _holder_of(value) == self._holder

    async def keep(self) -> None:
        """Renew for ever; raises LeaseLost once another instance has the lease."""
        wait_s = self._term_s / 3
        while True:
            await asyncio.sleep(wait_s)
            asked_at = self._monotonic()
            try:
                if self._revision is None:
                    raise Fatal("a lease is kept before it is acquired")
                self._won(await self._store.update(self._key, self._record(), self._revision), asked_at)
                next_at = asked_at + self._term_s / 3
            except Conflict:
                await self._after_conflict()
                next_at = asked_at
            except Retry:
                next_at = asked_at + self._term_s / 3
            wait_s = max(next_at - self._monotonic(), self._term_s / 30)

    async def _after_conflict(self) -> None:
        # An earlier renewal may have been stored although its acknowledgement was lost.
        try:
            entry = await self._store.get(self._key)
        except Retry:
            return
        if entry is not None and _holder_of(entry[0]) == self._holder:
            self._revision = entry[1]
            return
        self._valid_until = float("-inf")
        other = _holder_of(entry[0]) if entry is not None else "nobody"
        raise LeaseLost(f"the lease {self._key!r} was lost to {other}")

    async def release(self) -> None:
        """Give the lease up, so that another instance need not wait; without the bus, silence frees it."""
        if self.held and self._revision is not None:
            self._valid_until = float("-inf")
            with contextlib.suppress(Conflict, Retry):
                try:
                    await self._store.delete(self._key, self._revision)
                except Conflict:
                    # A renewal may have been stored although it was interrupted.
                    entry = await self._store.get(self._key)
                    if entry is not None and _holder_of(entry[0]) == self._holder:
                        await self._store.delete(self._key, entry[1])

    def _won(self, revision: int, asked_at: float) -> None:
        self._revision = revision
        self._valid_until = asked_at + self._term_s * _MARGIN

    def _record(self) -> bytes:
        return json.dumps({"holder": self._holder}).encode()


def _holder_of(value: bytes) -> str:
    try:
        return str(json.loads(value)["holder"])
    except (ValueError, KeyError, TypeError):
        return ""
