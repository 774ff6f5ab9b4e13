"""The workloads that Servers name by `scaleTargetRef`, and the marks by which collector and actuator know them. Pure.

A workload is given only what it does not say itself, and one annotation that lists what it was given, so that just
that is taken away again when no declared Server names it any more.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.cluster.workloads import ACCELERATOR, MARKED, SERVER, AcceleratorNames, Kind, identity_of
from services.operator.resources import Key, Resource


@dataclass(frozen=True, slots=True)
class Candidate:
    """A workload that a Server may name.

    server, accelerator: what it says it is of, apart from what it was given. given: those marks, and their list.
    """

    api: str
    kind: str
    namespace: str
    name: str
    path: str
    resource_version: str
    server: str | None
    accelerator: str | None
    given: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """Annotations of one workload to be written, nothing for one that is to go."""

    path: str
    resource_version: str
    annotations: Mapping[str, str | None]


@dataclass(frozen=True)
class Marking:
    """What is to be written to workloads, and by Server why its target is not as it says."""

    changes: tuple[Change, ...]
    remarks: Mapping[Key, str]


def read_candidate(item: Mapping[str, Any], kind: Kind, names: AcceleratorNames) -> Candidate:
    """A workload from its JSON."""
    meta = item["metadata"]
    annotations: dict[str, str] = meta.get("annotations") or {}
    listed = {MARKED, *annotations[MARKED].split(",")} if MARKED in annotations else set()
    own = {key: value for key, value in annotations.items() if key not in listed}
    server, accelerator = identity_of({**item, "metadata": {**meta, "annotations": own}}, names)
    return Candidate(
        api=kind.api,
        kind=item["kind"],
        namespace=meta["namespace"],
        name=meta["name"],
        path=kind.object_path(meta["namespace"], meta["name"]),
        resource_version=meta["resourceVersion"],
        server=server,
        accelerator=accelerator,
        given={key: annotations[key] for key in sorted(listed & annotations.keys())},
    )


def mark(
    servers: Iterable[Resource],
    accelerators: Collection[str],
    candidates: Collection[Candidate],
    followed: Collection[str],
) -> Marking:
    """The marks that declared servers ask for.

    Parameters: accelerators, the names of those that are declared; followed, the resources that candidates are of.
    Of two servers that name one workload the elder has it; a workload that says otherwise itself is left alone.
    """
    holders: dict[str, Resource] = {}
    wanted: dict[str, dict[str, str]] = {}
    remarks: dict[Key, str] = {}
    found = {(one.kind, one.namespace, one.name): one for one in candidates}
    for server in sorted(servers, key=lambda one: one.age):
        ref = server.spec.get("scaleTargetRef")
        if ref is None:
            continue
        target = found.get((ref["kind"], server.namespace, ref["name"]))
        if target is None or not _same_group(ref.get("apiVersion", target.api), target.api):
            listed = ", ".join(followed) or "nothing"
            asked = f"{ref['kind']} {ref['name']!r}"
            if "apiVersion" in ref:
                asked = f"{ref['apiVersion']} {asked}"
            text = f"there is no {asked} in namespace {server.namespace}; followed are: {listed}"
        elif (holder := holders.setdefault(target.path, server)) is not server:
            text = f"{target.kind} {target.name!r} is the target of {holder.shown} already"
        elif target.server not in (None, server.spec["name"]):
            text = f"{target.kind} {target.name!r} says that it is of server {target.server!r}, which holds"
        else:
            wanted[target.path] = _marks(server, target)
            if target.accelerator in (None, *accelerators):
                continue
            known = ", ".join(sorted(accelerators)) or "none"
            text = (
                f"{target.kind} {target.name!r} is on accelerator {target.accelerator!r}, but there is no usable "
                f"Accelerator of that spec.name; there is: {known}"
            )
        remarks[server.key] = f"spec.scaleTargetRef: {text}"
    changes = [_change(one, wanted.get(one.path, {})) for one in candidates]
    return Marking(tuple(one for one in changes if one.annotations), remarks)


def _marks(server: Resource, target: Candidate) -> dict[str, str]:
    marks = {}
    if target.server is None:
        marks[SERVER] = str(server.spec["name"])
    if target.accelerator is None:
        marks[ACCELERATOR] = str(server.spec["currentAlloc"]["accelerator"])
    return marks | ({MARKED: ",".join(sorted(marks))} if marks else {})


def _change(target: Candidate, marks: Mapping[str, str]) -> Change:
    keys = sorted(target.given.keys() | marks.keys())
    changed = {key: marks.get(key) for key in keys if target.given.get(key) != marks.get(key)}
    return Change(target.path, target.resource_version, changed)


def _same_group(one: str, other: str) -> bool:
    return one.rpartition("/")[0] == other.rpartition("/")[0]
