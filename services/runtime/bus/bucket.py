"""Private state of a service in a key-value bucket: snapshots and leases."""

from collections.abc import Awaitable, Callable, Sequence

import nats.errors
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from services.runtime.envelope import Raw
from services.runtime.errors import Retry

CONFLICT_CODES = (10071, 10164)
_FAULTS = (nats.errors.Error, APIError, TimeoutError, OSError)


class Conflict(Exception):
    """Another writer was first: the expected sequence or revision no longer holds.

    `last` is the message that is in the way, where it could be read.
    """

    last: Raw | None = None


class Bucket:
    """The keys of one service; keys are subject tokens."""

    def __init__(
        self,
        held: KeyValue,
        name: str,
        service: str,
        newest: Callable[[str, Sequence[str]], Awaitable[list[Raw]]],
        store: Callable[[str, bytes], Awaitable[object]],
    ) -> None:
        self._held = held
        self._stream = f"KV_{name}"
        self._own = f"{service}."
        self._prefix = f"$KV.{name}.{service}."
        self._newest = newest
        self._store = store

    async def all(self, *groups: str) -> dict[str, tuple[bytes, int]]:
        """Every key of this service with its value and revision; raises Retry.

        groups: only keys that begin with one of these tokens.
        """
        filters = [f"{self._prefix}{group}.>" for group in groups] or [f"{self._prefix}>"]
        return {
            raw.subject.removeprefix(self._prefix): (raw.data, raw.sequence)
            for raw in await self._newest(self._stream, filters)
            if raw.headers.get("KV-Operation") not in ("DEL", "PURGE")
        }

    async def put(self, key: str, value: bytes) -> None:
        """Store a value; raises Retry when it is not acknowledged in time."""
        await self._store(self._prefix + key, value)

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """A value and its revision, or nothing; raises Retry."""
        try:
            entry = await self._held.get(self._own + key)
        except KeyNotFoundError:
            return None
        except _FAULTS as error:
            raise Retry(f"reading {self._own}{key}: {error or type(error).__name__}") from error
        return entry.value or b"", entry.revision or 0

    async def create(self, key: str, value: bytes) -> int:
        """Store a value where there is none; returns its revision; raises Conflict or Retry."""
        return await self._write(self._held.create(self._own + key, value))

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Replace a value of a known revision; returns the new one; raises Conflict or Retry."""
        return await self._write(self._held.update(self._own + key, value, revision))

    async def _write(self, writing: Awaitable[int]) -> int:
        try:
            return await writing
        except KeyWrongLastSequenceError as error:
            raise Conflict(str(error)) from error
        except _FAULTS as error:
            raise Retry(f"writing: {error or type(error).__name__}") from error

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove a key, of a known revision when given; raises Conflict or Retry."""
        try:
            await self._held.delete(self._own + key, last=revision)
        except APIError as error:
            if error.err_code in CONFLICT_CODES:
                raise Conflict(str(error)) from error
            raise Retry(f"deleting {self._own}{key}: {error}") from error
        except _FAULTS as error:
            raise Retry(f"deleting {self._own}{key}: {error or type(error).__name__}") from error
