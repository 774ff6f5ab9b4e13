"""One connection of one service: publish, consume, ask and answer."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakSet

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, BucketNotFoundError
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import Service

from services.runtime.bus import streams
from services.runtime.bus.bucket import CONFLICT_CODES, Bucket, Conflict
from services.runtime.bus.client import TolerantClient
from services.runtime.bus.credentials import options_of
from services.runtime.bus.pull import Pull
from services.runtime.envelope import Raw, Wire
from services.runtime.errors import Denied, Fatal, Retry, TooLarge, TopologyDrift
from services.runtime.settings import BusSettings
from services.runtime.topology import ConsumerSpec, Topology, inbox_prefix

_MINIMUM_SERVER = (2, 10)
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "?([^"\s]+)"?', re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_BYTES = 8 * 1024
_HEADER_MARGIN = 64
_SUBJECT_BYTES = 2048
"""The server ends a connection whose protocol line, subjects included, exceeds 4 KiB."""


@dataclass(frozen=True)
class Stored:
    """Acknowledgement of a publish: the place in the stream, and whether it had been there before."""

    sequence: int
    duplicate: bool


Answer = Callable[[bytes], Awaitable[bytes]]


class Bus:
    """One connection of one service."""

    def __init__(self, client: TolerantClient, settings: BusSettings, service: str) -> None:
        self.service = service
        self._client = client
        self._settings = settings
        self._jetstream = client.jetstream(timeout=settings.publish_timeout_s)
        self._pulls: WeakSet[Pull] = WeakSet()
        self._micro: Service | None = None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._refusals: dict[str, str] = {}
        self._closed = asyncio.Event()

    @classmethod
    async def connect(cls, settings: BusSettings, service: str) -> "Bus":
        """Connect as a service; raises Fatal without usable credentials or a usable server within the time-out."""
        bus: Bus | None = None
        loop = asyncio.get_running_loop()

        async def failed(error: Exception) -> None:
            if bus is not None:
                bus._note_refusal(str(error))

        async def closed() -> None:
            if bus is not None:
                bus._closed.set()

        async def reconnected() -> None:
            for pull in list(bus._pulls) if bus else ():
                pull.reopen()

        options: dict[str, Any] = {
            "servers": settings.url.split(","),
            "name": f"stoker-{service}",
            "error_cb": failed,
            "reconnected_cb": reconnected,
            "closed_cb": closed,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.25,
            "connect_timeout": 2,
            "drain_timeout": 5,
            "inbox_prefix": inbox_prefix(service),
            "pending_size": 64 << 20,
            **options_of(settings),
        }
        deadline = loop.time() + settings.connect_timeout_s
        while True:
            client = TolerantClient()
            try:
                # The library goes on for ever when it may reconnect, bad credentials included.
                async with asyncio.timeout_at(deadline):
                    await client.connect(**(options | {"allow_reconnect": False}))
                    await client.close()
                    client = TolerantClient()
                    await client.connect(**options)
                break
            except (OSError, nats.errors.Error, TimeoutError) as error:
                cause = client.last_error or error
                await client.leave()
                if "uthorization" in str(cause):
                    raise Fatal(
                        f"NATS at {settings.url} refused the credentials of {service}: {cause}"
                    ) from error
                if loop.time() >= deadline:
                    raise Fatal(
                        f"no NATS server at {settings.url}: {str(cause) or type(cause).__name__}"
                    ) from error
                await asyncio.sleep(0.1)
        version = client.connected_server_version
        if (version.major, version.minor) < _MINIMUM_SERVER:
            await client.close()
            raise Fatal(f"NATS server is {version}: at least 2.10 is needed for filtered consumers")
        bus = cls(client, settings, service)
        return bus

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""
        return self._client.is_connected

    @property
    def refusals(self) -> tuple[str, ...]:
        """What the server has denied this user, in its own words."""
        return tuple(self._refusals.values())

    def _note_refusal(self, text: str) -> None:
        if found := _DENIED.search(text):
            # The library hands over the server's words in lower case.
            self._refusals[found[2].lower()] = text

    async def lost(self) -> None:
        """Wait until the connection has ended for good, which the library does on most errors of the server.

        Raises Fatal then.
        """
        await self._closed.wait()
        raise Fatal(f"the connection to NATS was ended: {self._client.last_error}")

    async def publish(self, wire: Wire) -> Stored:
        """Store a message, repeating it under the same id until acknowledged.

        Raises Denied, Conflict (an expected sequence no longer holds), TooLarge, or Retry when time is up.
        """
        try:
            return await self._store(wire.subject, wire.data, wire.headers)
        except Conflict as conflict:
            # The server looks at the expected sequence before the id, so what is in the way may be this very
            # message, stored although its acknowledgement was lost.
            with contextlib.suppress(Retry):
                for last in await self.newest(wire.stream, [wire.subject]):
                    if last.headers.get("Nats-Msg-Id") == wire.id:
                        return Stored(last.sequence, True)
                    conflict.last = last
            raise

    async def _store(self, subject: str, data: bytes, headers: dict[str, str] | None) -> Stored:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.publish_deadline_s
        if len(subject) > _SUBJECT_BYTES:
            raise TooLarge(f"{subject[:80]}… has {len(subject)} bytes: at most {_SUBJECT_BYTES} are carried")
        size = len(data) + sum(len(k) + len(v) + 4 for k, v in (headers or {}).items()) + _HEADER_MARGIN
        if size > self._client.max_payload:
            raise TooLarge(f"{subject} has {size} bytes: the server takes {self._client.max_payload}")
        while True:
            try:
                ack = await self._jetstream.publish(subject, data, headers=headers)
            except APIError as error:
                if error.err_code in CONFLICT_CODES:
                    raise Conflict(error.description or str(error)) from error
                reason = error.description or str(error)
            except (nats.errors.Error, TimeoutError, OSError) as error:
                reason = str(error) or type(error).__name__
            else:
                self._refusals.pop(subject.lower(), None)
                return Stored(ack.seq, bool(ack.duplicate))
            if refusal := self._refusals.get(subject.lower()):
                raise Denied(refusal)
            if loop.time() > deadline:
                raise Retry(f"publishing to {subject}: {reason}")
            await asyncio.sleep(0.2)

    async def pull(self, spec: ConsumerSpec) -> "Pull":
        """Bind to a durable consumer that exists and is as it must be; raises TopologyDrift otherwise."""
        with self._needed(f"verifying consumer {spec.name} of {spec.stream}"):
            await streams.verify_consumer(self._jetstream, spec)
        return await self.pull_verified(spec, self._settings.batch)

    async def pull_verified(self, spec: ConsumerSpec, most: int) -> "Pull":
        """Bind to a durable consumer that is known to be as it must be.

        Parameters: most, messages in hand at once where that is fewer than the settings allow.
        """
        pull = Pull(self._client, spec.stream, spec.name, min(self._settings.batch, most))
        await pull.start()
        self._pulls.add(pull)
        return pull

    async def in_hand(self, spec: ConsumerSpec) -> list[Raw]:
        """What a durable consumer has delivered and what is not acknowledged yet, in the order of the stream.

        Acknowledged messages that lie between are among them. Raises Retry.
        """
        with _passing(f"asking for {spec.name}"):
            info = await self._jetstream.consumer_info(spec.stream, spec.name)
        if not info.num_ack_pending or info.ack_floor is None or info.delivered is None:
            return []
        after, last = info.ack_floor.stream_seq, info.delivered.stream_seq
        policy = DeliverPolicy.BY_START_SEQUENCE
        found = await self._read(spec.stream, spec.filters, policy, start_sequence=after + 1)
        return [raw for raw in found if raw.sequence <= last]

    async def last_sequence(self, stream: str) -> int:
        """The place of the last message of a stream; raises Retry."""
        with _passing(f"looking at {stream}"):
            return (await self._jetstream.stream_info(stream)).state.last_seq

    async def follow(self, stream: str, subject: str, after: int) -> "Pull":
        """All messages of a subject after a place in a stream, for this instance alone; raises Retry.

        The consumer is the server's for as long as it is read from; where it is gone, `next` raises
        TopologyDrift, and following again goes on.
        """
        name = f"{self.service}-follow-{self._client._nuid.next().decode()}"
        config = ConsumerConfig(
            name=name,
            filter_subject=subject,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=30.0,
            mem_storage=True,
        )
        with _passing(f"following {stream}"):
            await self._jetstream.add_consumer(stream, config, timeout=10.0)
        pull = Pull(self._client, stream, name, self._settings.batch, gone_s=1.0)
        await pull.start()
        self._pulls.add(pull)
        return pull

    async def newest(self, stream: str, filters: Sequence[str]) -> list[Raw]:
        """The last message of each matching subject, in the order of the stream; raises Retry."""
        return await self._read(stream, filters, DeliverPolicy.LAST_PER_SUBJECT)

    async def everything(self, stream: str, filters: Sequence[str]) -> list[Raw]:
        """Every message kept of matching subjects, in the order of the stream; raises Retry."""
        return await self._read(stream, filters, DeliverPolicy.ALL)

    async def since(self, stream: str, filters: Sequence[str], start: datetime) -> list[Raw]:
        """Every message kept of matching subjects that was stored at a time or later; raises Retry."""
        return await self._read(stream, filters, DeliverPolicy.BY_START_TIME, start)

    async def _read(
        self,
        stream: str,
        filters: Sequence[str],
        policy: DeliverPolicy,
        start: datetime | None = None,
        start_sequence: int | None = None,
    ) -> list[Raw]:
        # One consumer for each filter: only then is the filter part of the request's subject, by which the server
        # knows whether this user may read it.
        reads = [
            asyncio.create_task(self._read_one(stream, subject, policy, start, start_sequence))
            for subject in filters
        ]
        try:
            found = [raw for read in reads for raw in await read]
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
        return sorted(found, key=lambda raw: raw.sequence)

    async def _read_one(
        self,
        stream: str,
        subject: str,
        policy: DeliverPolicy,
        start: datetime | None,
        start_sequence: int | None,
    ) -> list[Raw]:
        name = f"{self.service}-read-{self._client._nuid.next().decode()}"
        config = ConsumerConfig(
            name=name,
            filter_subject=subject,
            deliver_policy=policy,
            opt_start_time=start,
            opt_start_seq=start_sequence,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=30.0,
            mem_storage=True,
        )
        with _passing(f"reading {stream}"):
            info = await self._jetstream.add_consumer(stream, config, timeout=10.0)
        expected = info.num_pending or 0
        pull = Pull(self._client, stream, name, self._settings.batch)
        await pull.start()
        found: list[Raw] = []
        try:
            async with asyncio.timeout(30.0):
                while len(found) < expected:
                    found += await pull.next()
        except TimeoutError:
            raise Retry(f"{len(found)} of {expected} messages of {stream} arrived in 30 s") from None
        finally:
            await pull.stop()
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await self._jetstream.delete_consumer(stream, name)
        return found

    async def listen(self, subject: str) -> AsyncIterator[Raw]:
        """Messages of a subject as they are published from now on, stored or not."""
        subscription = await self._client.subscribe(subject, pending_msgs_limit=-1, pending_bytes_limit=-1)
        async for message in subscription.messages:
            yield Raw(message.subject, message.data, message.headers or {}, token=message)

    async def ack(self, raw: Raw) -> None:
        """Say that a message is done with; raises Retry."""
        message: Msg = raw.token
        with _passing("acknowledging"):
            await message.ack()

    async def retry(self, raw: Raw, delay_s: float) -> None:
        """Ask for a message again after a delay; raises Retry."""
        message: Msg = raw.token
        with _passing("asking again"):
            await message.nak(delay=delay_s)

    async def park(self, raw: Raw, subject: str, reason: str, consumer: str) -> Stored:
        """Keep a refused message as it came, with the reason in its headers; raises Denied or Retry.

        Headers that cannot be sent, or beyond 8 KiB, are left out; so is the end of a body that no longer
        fits beside the reason, of which `stoker-bytes` gives the length.
        """
        headers = _sendable(raw.headers) | {
            "stoker-reason": _header(reason),
            "stoker-subject": _header(raw.subject),
            "stoker-stream": raw.stream,
            "stoker-sequence": str(raw.sequence),
            "stoker-consumer": consumer,
            "Nats-Msg-Id": f"{raw.stream}-{raw.sequence}-{consumer}",
        }
        room = self._client.max_payload - sum(len(k) + len(v) + 4 for k, v in headers.items()) - 1024
        if len(raw.data) > room:
            headers["stoker-bytes"] = str(len(raw.data))
        return await self._store(subject, raw.data[:room], headers)

    async def bucket(self, name: str) -> "Bucket":
        """A key-value bucket, of which this service uses the keys under its own name."""
        try:
            with self._needed(f"bucket {name}"):
                held = await self._jetstream.key_value(name)
        except BucketNotFoundError as error:
            raise TopologyDrift(f"bucket {name} does not exist; run `stoker bus apply`") from error

        async def store(subject: str, data: bytes) -> Stored:
            return await self._store(subject, data, None)

        return Bucket(held, name, self.service, self.newest, store)

    async def serve(self, version: str, verbs: Mapping[str, tuple[str, Answer]]) -> None:
        """Answer requests, side by side: name -> (subject, handler of the body).

        The library handles the requests of one subscription one after another, so each gets its own task.
        """
        self._micro = await add_service(self._client, name=f"stoker-{self.service}", version=version)
        for name, (subject, answer) in verbs.items():

            async def handle(request: Request, answer: Answer = answer) -> None:
                task = asyncio.ensure_future(self._answer(request, answer))
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)

            await self._micro.add_endpoint(
                name=name, subject=subject, handler=handle, queue_group=self.service
            )

    @staticmethod
    async def _answer(request: Request, answer: Answer) -> None:
        reply = await answer(request.data)
        # Without a connection, or a place to send the answer to, there is nobody left to tell.
        with contextlib.suppress(nats.errors.Error, ValueError):
            await request.respond(reply)

    async def request(self, subject: str, data: bytes, timeout_s: float = 5.0) -> bytes:
        """Ask a service; raises Retry when nobody answers."""
        try:
            return (await self._client.request(subject, data, timeout=timeout_s)).data
        except (nats.errors.Error, TimeoutError) as error:
            raise Retry(f"no answer on {subject}: {error or type(error).__name__}") from error

    async def apply(self, topology: Topology) -> list[str]:
        """Create or update streams, consumers and buckets; returns what was changed."""
        with self._needed("creating streams and consumers"):
            return await streams.apply(self._jetstream, topology, self._settings)

    async def verify(self, topology: Topology) -> list[str]:
        """What differs between the server and the topic table; nothing when all is well."""
        with self._needed("verifying streams and consumers"):
            return await streams.drift(self._jetstream, topology, self._settings)

    async def drift_of(self, spec: ConsumerSpec) -> list[str]:
        """How one durable consumer differs from the topic table."""
        with self._needed(f"verifying consumer {spec.name} of {spec.stream}"):
            return await streams.consumer_drift(self._jetstream, spec)

    @contextlib.contextmanager
    def _needed(self, what: str) -> Iterator[None]:
        """Turn a failure of what must succeed at start into Fatal, with the server's refusals."""
        try:
            yield
        except BucketNotFoundError:
            raise
        except (nats.errors.Error, TimeoutError) as error:
            why = "; ".join(self.refusals) or str(error) or type(error).__name__
            raise Fatal(f"{what} at {self._settings.url}: {why}") from error

    async def stop_requests(self) -> None:
        """Take no more requests and finish those in hand.

        The library's own stop drops what its subscriptions still hold, so these are drained first.
        """
        if self._micro is not None:
            for endpoint in self._micro._endpoints:
                if endpoint._subscription is not None and self._client.is_connected:
                    await endpoint._subscription.drain()
            self._micro._endpoints = []
            if self._client.is_connected:
                await self._micro.stop()
            self._micro = None
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    async def close(self) -> None:
        """End requests and pulls, send what is pending, disconnect."""
        await self.stop_requests()
        for pull in list(self._pulls):
            await pull.stop()
        if self._client.is_connected:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await self._client.flush(timeout=2)
        await self._client.leave()


@contextlib.contextmanager
def _passing(what: str) -> Iterator[None]:
    """Turn what may go better another time into Retry."""
    try:
        yield
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise Retry(f"{what}: {error or type(error).__name__}") from error


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    sent: dict[str, str] = {}
    left = _HEADER_BYTES
    for name, value in headers.items():
        if _HEADER_NAME.fullmatch(name) and not name.lower().startswith("nats-"):
            left -= len(name) + len(value)
            if left >= 0:
                sent[name] = _header(value)
    return sent


def _header(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)[:2000]
