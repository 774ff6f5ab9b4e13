"""Ten thousand malformed and hostile messages while the loop runs: none is lost, none stops anything."""

import asyncio
import json
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from hostile import Forge, Shot, matches
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas.decision import DecisionMade
from schemas.plan import PlanIssued, PlanProposed
from schemas.request import PauseAnswered, RequestRefused
from schemas.subjects import PARTITIONS
from schemas.telemetry import InventoryObserved, TelemetryObserved
from schemas.topics import TOPIC_BY_NAME, TOPICS, VERBS, Delivery, Stream, Verb
from services.allinone import Options, Running, started
from services.runtime.bus import Bus
from services.runtime.clock import AcceleratedClock, Clock
from services.runtime.envelope import Event, Raw, decode
from services.runtime.errors import Reject
from services.runtime.settings import BusSettings
from services.runtime.topology import partitioned

pytestmark = pytest.mark.timeout(600)

DEMO = Path(__file__).parents[2] / "services" / "simulator" / "demo"
SEED = 20
MESSAGES, REQUESTS, LARGE, FRAMES = 8_700, 1_230, 30, 40
SPEED, CYCLE_S = 60.0, 30.0
SLOW = 5.0
"""Control seconds per wall second while it is looked at whether everything has settled: on a slow machine the loop
never rests between two cycles of half a second."""
AT_ONCE = 25
EVERY_S = 0.04
SLICES = 10
"""Parts of the flood, in each of which the loop must make a new generation, however slow the machine is."""
LAG = 40
"""STATE keeps 64 messages of a subject: beyond that the server drops what nobody has read yet."""
FINAL = ("handled", "duplicate", "superseded", "expired", "parked")


@dataclass
class Recorder:
    """Everything said on the bus, in order; what the loop itself said apart."""

    genuine: list[Event] = field(default_factory=list)
    raw: list[Raw] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)

    async def record(self, messages: AsyncIterator[Raw]) -> None:
        async for message in messages:
            try:
                event = decode(message)
            except Reject:
                continue
            if event.source != "/stoker/stranger" and event.id not in self._ids:
                self._ids.add(event.id)
                self.genuine.append(event)
                self.raw.append(message)

    def of(self, payload: type[Any]) -> list[Any]:
        return [event.payload for event in self.genuine if isinstance(event.payload, payload)]

    def generation(self) -> int:
        return max((manifest.generation for manifest in self.of(PlanIssued)), default=0)

    def decided(self) -> int:
        """The newest generation that every server has a decision on."""
        newest = {d.server: d.generation for d in self.of(DecisionMade)}
        servers = {w.server for w in self.of(TelemetryObserved)}
        return min(newest.values()) if servers and newest.keys() == servers else 0


@dataclass
class Stranger:
    """A plain client that publishes and notes what the server and the services answer."""

    client: Client
    inbox: str
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    dropped: Counter[int] = field(default_factory=Counter)
    replies: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator["Stranger"]:
        client = await nats.connect(url, pending_size=64 << 20)
        stranger = cls(client, client.new_inbox())
        await client.subscribe(f"{stranger.inbox}.*.*", cb=stranger._answered)
        try:
            yield stranger
        finally:
            await client.close()

    async def _answered(self, message: Msg) -> None:
        kind, number = message.subject.split(".")[-2:]
        if kind == "request":
            self.replies[int(number)] = message.data
            return
        ack = json.loads(message.data or b'{"error": "no stream"}')
        if "error" in ack or ack.get("duplicate"):
            self.dropped[int(number)] += 1
        else:
            self.places[int(number)] = (ack["stream"], ack["seq"])

    async def publish(self, number: int, shot: Shot) -> None:
        reply = f"{self.inbox}.stored.{number}"
        if shot.block is None:
            await self.client.publish(shot.subject.decode(), shot.data, reply, shot.headers or None)
            return
        sizes = b"%d %d" % (len(shot.block), len(shot.block) + len(shot.data))
        verb, size = (b"HPUB", sizes) if shot.block else (b"PUB", b"%d" % len(shot.data))
        line = b" ".join((verb, shot.subject, reply.encode(), size))
        await self.client._send_command(line + b"\r\n" + shot.block + shot.data + b"\r\n")
        await self.client._flush_pending()

    async def ask(self, number: int, verb: Verb, data: bytes) -> None:
        await self.client.publish(verb.subject, data, f"{self.inbox}.request.{number}")


async def until(condition: Callable[[], Awaitable[object]], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.05)


async def flood(
    stranger: Stranger,
    shots: list[Shot],
    asked: list[tuple[Verb, bytes]],
    bus: Bus,
    generation: Callable[[], int],
) -> None:
    """Publish everything in turn, at most AT_ONCE in EVERY_S and never far ahead of the readers or the loop."""
    requests = iter(enumerate(asked))
    began, messages_a_slice = generation(), len(shots) // SLICES

    async def going_on(generations: int) -> bool:
        return generation() >= began + generations

    for first in range(0, len(shots), AT_ONCE):
        due = partial(going_on, first // messages_a_slice)
        await until(due, 120, "a generation in every slice of the flood")
        for number in range(first, min(first + AT_ONCE, len(shots))):
            await stranger.publish(number, shots[number])
        for _ in range(AT_ONCE * len(asked) // len(shots) + 1):
            if (request := next(requests, None)) is not None:
                await stranger.ask(request[0], *request[1])
        await asyncio.sleep(EVERY_S)
        if first % (8 * AT_ONCE) == 0:
            await until(lambda: keeping_up(bus), 120, "the readers keep up")
    for number, request in requests:
        await stranger.ask(number, *request)
    await until(partial(going_on, SLICES), 120, "a generation in every slice of the flood")


async def keeping_up(bus: Bus) -> bool:
    return all(info.num_pending <= LAG for _, info in await consumers(bus))


LOOP = {"collector", "tuner", "predictor", "optimizer", "actuator"}
"""The services of one process; the operator needs a cluster."""


async def consumers(bus: Bus) -> list[tuple[tuple[str, str], Any]]:
    """Every consumer of the loop's services, durable or followed, by service and stream."""
    listed = [info for stream in Stream for info in await bus._jetstream.consumers_info(stream.value)]
    own = [
        ((info.name.split("-")[0], info.stream_name), info) for info in listed if "-read-" not in info.name
    ]
    return [(key, info) for key, info in own if key[0] in LOOP]


def outcomes(running: Running) -> dict[tuple[str, str], Counter[str]]:
    """Messages by (service, topic) and outcome, as the metrics count them."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for metric in running.chassis[0].metrics.messages.collect():
        for sample in metric.samples:
            if sample.name == "stoker_messages_total":
                labels = sample.labels
                found[labels["service"], labels["topic"]][labels["outcome"]] += int(sample.value)
    return found


def published(running: Running) -> Counter[str]:
    """Messages that the loop itself has put into streams, by topic."""
    found: Counter[str] = Counter()
    for metric in running.chassis[0].metrics.published.collect():
        for sample in metric.samples:
            if sample.name == "stoker_published_total" and sample.labels["outcome"] == "new":
                found[sample.labels["topic"]] += int(sample.value)
    return found


def settled(
    counts: dict[tuple[str, str], Counter[str]], infos: Iterable[tuple[tuple[str, str], Any]]
) -> bool:
    """Whether every message of every consumer was delivered, acknowledged and counted, each once."""
    delivered: Counter[tuple[str, str]] = Counter()
    for key, info in infos:
        delivered[key] += info.delivered.consumer_seq
        acknowledged = "-follow-" in info.name or info.delivered.consumer_seq == info.ack_floor.consumer_seq
        if not acknowledged or info.num_pending or info.num_ack_pending or info.num_redelivered:
            return False
    for (service, stream), sequence in delivered.items():
        ended: Counter[str] = Counter()
        for (name, topic), by_outcome in counts.items():
            if name == service and TOPIC_BY_NAME[topic].stream == stream:
                ended += by_outcome
        if sequence != sum(ended[outcome] for outcome in FINAL) + ended["retried"]:
            return False
    return True


@dataclass
class Settled:
    """What everything had come to at one quiet moment."""

    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    published: Counter[str] = field(default_factory=Counter)

    async def reached(self, running: Running, bus: Bus) -> bool:
        """Between two control cycles: nothing moves while the consumers are looked at."""
        before, own = outcomes(running), published(running)
        infos = await consumers(bus)
        if before != outcomes(running) or own != published(running) or not settled(before, infos):
            return False
        self.counts, self.published = before, own
        return True


def pace(clock: Clock, speed: float) -> None:
    """Let control time go on from now at another speed; everything of one process shares the clock."""
    assert isinstance(clock, AcceleratedClock)
    wall_s = time.time()
    clock.anchor_s = (wall_s * speed - clock.to_clock_s(wall_s)) / (speed - 1.0)
    clock.speed = speed


def table(shots: list[Shot], stranger: Stranger, parked: Counter[int], refused_requests: int) -> str:
    """Category by outcome; a delivery is one message for one service that reads its topic."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for number, shot in enumerate(shots):
        row = rows[shot.category]
        row["sent"] += 1
        row["dropped"] += stranger.dropped[number]
        if number in stranger.places:
            row["stored"] += 1
            row["delivered"] += len(readers(shot))
            row["parked"] += parked[number]
            row["accepted"] += len(readers(shot)) - parked[number]
    columns = ("sent", "dropped", "stored", "delivered", "parked", "accepted")
    rows["all"] = sum(rows.values(), Counter())
    lines = ["".join((f"{'category':<28}", *(f"{c:>11}" for c in columns)))]
    lines += ["".join((f"{n:<28}", *(f"{row[c]:>11}" for c in columns))) for n, row in rows.items()]
    lines.append(f"{'requests':<28}{len(stranger.replies):>11} answered, {refused_requests} refused")
    return "\n".join(lines)


def readers(shot: Shot) -> list[str]:
    name = b".".join(shot.subject.split(b".")[2:4]).decode(errors="replace")
    if name not in TOPIC_BY_NAME:
        return []
    topic = TOPIC_BY_NAME[name]
    reading = LOOP & topic.consumers.keys()
    return sorted(service for service in reading if not partitioned(service) or covered(service, shot))


def covered(service: str, shot: Shot) -> bool:
    """Whether a message is in any of the partitions, or on a subject that every instance follows.

    What comes under a partition that does not exist is refused by the readers that take all of them.
    """
    tokens = shot.subject.decode(errors="replace").split(".")
    topic = TOPIC_BY_NAME[".".join(tokens[2:4])]
    return topic.consumers[service] is Delivery.NEWEST or tokens[4] in map(str, range(PARTITIONS))


async def test_ten_thousand_hostile_messages_stop_nothing_and_lose_nothing() -> None:
    began = time.monotonic()
    options = Options(
        fleet=DEMO / "fleet.yaml", plant=DEMO / "plant.yaml", speed=SPEED, cycle_s=CYCLE_S, prometheus=False
    )
    recorder, quiet = Recorder(), Settled()
    async with started(options) as running, Stranger.at(running.bus_url) as stranger:
        bus = await Bus.connect(BusSettings(url=running.bus_url), "test")
        recording = asyncio.create_task(recorder.record(running.messages))

        async def decided(generation: int) -> bool:
            assert not recording.done(), recording
            return recorder.decided() > generation

        await until(lambda: decided(2), 120, "decisions before the flood")
        captured = [raw for raw in recorder.raw if decode(raw).topic.consumers]
        forge = Forge(SEED, running.clock.now_s(), captured)
        shots = [*forge.shots(MESSAGES), *map(forge.large, range(LARGE))]
        shots += map(forge.broken_frame, range(FRAMES))
        forge.rng.shuffle(shots)
        verbs = [verb for verb in VERBS if verb.service in LOOP]
        asked = [(verbs[i % len(verbs)], forge.asked()) for i in range(REQUESTS)]
        before = recorder.generation()
        flooding_s = time.monotonic()
        await flood(stranger, shots, asked, bus, recorder.generation)
        flooding_s = time.monotonic() - flooding_s
        during = recorder.generation() - before

        pace(running.clock, SLOW)
        await until(lambda: quiet.reached(running, bus), 120, "every message settled")
        pace(running.clock, SPEED)
        settled = recorder.generation()
        await until(lambda: decided(settled + 1), 120, "decisions after the flood")
        dlq = await bus.everything("DLQ", ["stoker.v1.dlq.>"])
        paused = PauseAnswered.model_validate_json(await bus.request("stoker.v1.svc.actuator.resume", b"{}"))
        reasons = {chassis.service.name: chassis.reasons() for chassis in running.chassis}
        active = [chassis.service.name for chassis in running.chassis if chassis.active]
        await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{running.health_port}/readyz")
        await bus.close()
        recording.cancel()

    # Parked: every refused message once for each reader, as it came, with the reason.
    numbers = {place: number for number, place in stranger.places.items()}
    parked: Counter[int] = Counter()
    by_reader: Counter[tuple[int, str]] = Counter()
    for raw in dlq:
        headers = raw.headers
        number = numbers[headers["stoker-stream"], int(headers["stoker-sequence"])]
        shot = shots[number]
        parked[number] += 1
        by_reader[number, headers["stoker-consumer"]] += 1
        assert raw.data == shot.data, shot.category
        assert shot.reason and matches(headers["stoker-reason"], shot.reason), (shot, headers)
    refused_requests = sum(b'"error"' in reply for reply in stranger.replies.values())
    print(f"\n{table(shots, stranger, parked, refused_requests)}")
    by_service: dict[str, Counter[str]] = defaultdict(Counter)
    for (service, _), by_outcome in quiet.counts.items():
        by_service[service] += by_outcome
    for service, by_outcome in by_service.items():
        print(f"{service:<28}{dict(by_outcome)}")
    print(f"flood {flooding_s:.1f} s, {during} generations in it; all {time.monotonic() - began:.1f} s")

    assert len(shots) + len(asked) == 10_000
    assert {topic.name for topic in TOPICS if any(topic.prefix.encode() in s.subject for s in shots)} == {
        topic.name for topic in TOPICS
    }
    assert {n for n, shot in enumerate(shots) if shot.stored} == set(stranger.places)
    expected = {
        (number, reader): 1
        for number in stranger.places
        for reader in readers(shots[number])
        if shots[number].reason
    }
    assert by_reader == expected

    # Accounted for: what the loop published and the stranger stored is what every reader ended.
    stored: Counter[tuple[str, str]] = Counter()
    for number in stranger.places:
        name = ".".join(shots[number].subject.decode(errors="replace").split(".")[2:4])
        stored.update((name, reader) for reader in readers(shots[number]))
    for topic in TOPICS:
        for service, delivery in topic.consumers.items():
            if service not in LOOP:
                continue
            counts = quiet.counts[service, topic.name]
            assert set(counts) <= {*FINAL, "retried"}
            sent = quiet.published[topic.name] + stored[topic.name, service]
            # What a busy machine made late may have been tried again before that.
            assert sum(counts[outcome] for outcome in FINAL) == sent, (service, topic.name, counts)
            if delivery is Delivery.EVERY:
                assert counts["superseded"] == 0

    # Every window of every cycle was handled by those who need every one of them.
    windows = [s for n, s in enumerate(shots) if n in stranger.places and b"telemetry.observed" in s.subject]
    repeated = sum(s.category.startswith("replay") for s in windows)
    expired = sum(s.category == "expired" for s in windows)
    accepted = sum(not s.reason for s in windows) - repeated - expired
    for service in ("tuner", "predictor"):
        counts = quiet.counts[service, "telemetry.observed"]
        assert counts["handled"] == quiet.published["telemetry.observed"] + accepted
        assert (counts["duplicate"], counts["expired"]) == (repeated, expired)

    # Requests.
    assert stranger.replies.keys() == set(range(REQUESTS))
    for number, (verb, data) in enumerate(asked):
        assert_answered(verb, data, stranger.replies[number])

    # The loop went on, and nobody lost what serves.
    assert not any(reasons.values()) and len(active) == 5
    assert paused.servers_paused == () and not paused.fleet_paused
    assert during >= SLICES
    plans = {(p.server, p.generation): p for p in recorder.of(PlanProposed)}
    for decision in recorder.of(DecisionMade):
        assert decision.raw == plans[decision.server, decision.generation].allocations
        assert sum(allocation.replicas for allocation in decision.gated) > 0, decision
    for inventory in recorder.of(InventoryObserved):
        assert sum(variant.desired for variant in inventory.variants) > 0, inventory


def assert_answered(verb: Verb, data: bytes, reply: bytes) -> None:
    try:
        verb.request.model_validate_json(data or b"{}")
    except ValueError:
        assert RequestRefused.model_validate_json(reply).error, (verb.subject, data[:80])
        return
    if b'"error"' in reply:
        assert RequestRefused.model_validate_json(reply).error, (verb.subject, data[:80])
    else:
        verb.reply.model_validate_json(reply)
