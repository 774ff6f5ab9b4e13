"""What the streams say of who did what: owners in turn, generations in order, nothing done twice or left out."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.subjects import partition_of
from schemas.topics import ROOT, topic_of_subject
from services.runtime.bus import Bucket, Bus
from services.runtime.envelope import Raw
from services.runtime.topology import consumers_of


@dataclass(frozen=True)
class Fact:
    """One message: its topic, what it is about, who published it, its body and when it was stored."""

    topic: str
    subject: str
    instance: str
    sequence: int
    body: Mapping[str, Any] = field(compare=False)

    @property
    def generation(self) -> int:
        """The generation that a plan, a decision or an actuation belongs to."""
        return int(self.body["generation"])


async def facts(bus: Bus, *streams: str) -> list[Fact]:
    """Everything that the streams still hold, each in its order; raises Retry."""
    found = []
    for stream in streams:
        found += [fact_of(raw) for raw in await bus.everything(stream, [f"{ROOT}.>"])]
    return found


def fact_of(raw: Raw) -> Fact:
    """A message as a fact; raises ValueError for one of no topic."""
    topic = topic_of_subject(raw.subject)
    if topic is None:
        raise ValueError(f"{raw.subject} belongs to no topic")
    instance = raw.headers.get("ce-instance", "")
    return Fact(topic.name, raw.subject, instance, raw.sequence, json.loads(raw.data))


def turns(found: Sequence[Fact], key_of: Callable[[Fact], str]) -> dict[str, list[str]]:
    """By key, the instances that published of it in the order of the stream, repetitions left out."""
    turns: dict[str, list[str]] = {}
    for fact in found:
        instances = turns.setdefault(key_of(fact), [])
        if not instances or instances[-1] != fact.instance:
            instances.append(fact.instance)
    return turns


def shared(turns_of_keys: Mapping[str, Sequence[str]]) -> list[str]:
    """Keys that went back to an instance which another had followed: two published of them side by side."""
    return [key for key, instances in turns_of_keys.items() if len(set(instances)) < len(instances)]


def partition_of_fact(models: Mapping[str, str]) -> Callable[[Fact], str]:
    """The partition of a forecast or of parameters; models: the model of each server."""

    def key_of(fact: Fact) -> str:
        return partition_of(fact.body.get("model") or models[fact.body["server"]])

    return key_of


def out_of_order(found: Sequence[Fact]) -> list[Fact]:
    """Facts of a generation that is older than, or the same as, what their subject was at already."""
    newest: dict[str, int] = {}
    late = []
    for fact in found:
        if fact.generation <= newest.get(fact.subject, 0):
            late.append(fact)
        newest[fact.subject] = max(fact.generation, newest.get(fact.subject, 0))
    return late


def repeated(found: Sequence[Fact]) -> list[tuple[str, int]]:
    """Subject and generation of what was said or done more than once."""
    counts = Counter((fact.subject, fact.generation) for fact in found)
    return [key for key, count in counts.items() if count > 1]


def undecided(found: Sequence[Fact], servers: Sequence[str]) -> dict[str, list[int]]:
    """By server, the generations since its first decision that another server has a decision on and it has not.

    The newest may still be on its way and is left out.
    """
    by_server: dict[str, set[int]] = {server: set() for server in servers}
    for fact in found:
        by_server[fact.body["server"]].add(fact.generation)
    generations = sorted(set().union(*by_server.values()))[:-1]
    lost = {
        server: [g for g in generations if g not in decided and g >= min(decided, default=0)]
        for server, decided in by_server.items()
    }
    return {server: missing for server, missing in lost.items() if missing}


async def holders(leases: Bucket) -> dict[str, str]:
    """By lease of one service, who holds it: `active`, or `parts.` and a partition."""
    records = await leases.all()
    return {key: json.loads(value)["holder"] for key, (value, _) in records.items() if value != b"{}"}


async def outstanding(bus: Bus, service: str) -> int:
    """How many partitions, or streams, of a service have messages that are not acknowledged; raises Retry."""
    found = [await bus.in_hand(spec) for spec in consumers_of(service)]
    return sum(bool(left) for left in found)
