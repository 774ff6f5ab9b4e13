"""Custom resources as the fleet that they declare, and what is wrong with each of them. Pure.

An object that cannot be used is left out with a problem that says why, and so is what refers to it; the others are
declared all the same. Fields are read through the legacy form, whose units and keys they share.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import ValidationError

from schemas.fleet import FleetDeclared, Server
from services.legacy.form import SECTIONS, LegacyRefused, LegacySystem, parse_system, shown
from services.legacy.reader import fleet_of
from services.operator.resources import Key, Resource

SECTION_OF = {
    "Accelerator": "acceleratordata",
    "Model": "modeldata",
    "ServiceClass": "serviceclassdata",
    "Server": "serverdata",
    "Capacity": "capacitydata",
    "Optimizer": "optimizerdata",
}
"""The section of the legacy form that holds what each kind says."""
NAMED = ("Accelerator", "Model", "ServiceClass", "Server")
"""Kinds whose `spec.name` others refer to, and must be one of its kind."""


@dataclass(frozen=True)
class Problem:
    """Why an object is not in the fleet: one word for machines and a sentence for people."""

    reason: str
    message: str


@dataclass(frozen=True)
class Declaration:
    """What some custom resources come to.

    problems: of those that are left out. remarks: of those that are taken, what of them is not honoured.
    servers: the object of each declared server. optimizer: the one in force, if any.
    """

    fleet: FleetDeclared
    problems: Mapping[Key, Problem]
    remarks: Mapping[Key, tuple[str, ...]]
    servers: Mapping[str, Key]
    optimizer: Resource | None


def wants_once(optimizer: Resource | None) -> bool:
    """Whether an Optimizer asks for one plan and has not had it for its present spec."""
    if optimizer is None or not optimizer.spec.get("optimize") or period_s(optimizer) is not None:
        return False
    done = optimizer.status.get("done") and optimizer.status.get("observedGeneration") == optimizer.generation
    return not done


def period_s(optimizer: Resource | None) -> float | None:
    """The period of an Optimizer that keeps on, else nothing."""
    if optimizer is None or not optimizer.spec.get("optimize"):
        return None
    period = optimizer.spec.get("periodSeconds")
    return None if period is None else float(period)


def declare(resources: Iterable[Resource], now_s: float) -> Declaration:
    """The fleet of some objects; now_s, Unix seconds, becomes `declared_at_s`.

    Objects that are being deleted are no part of it. Servers are paused unless an Optimizer with a period is in
    force: a single plan is advice, and nobody acts on it.
    """
    found = sorted((r for r in resources if not r.deleting), key=lambda r: r.age)
    problems: dict[Key, Problem] = {}
    remarks: dict[Key, list[str]] = {}

    def note(resource: Resource, text: str) -> None:
        remarks.setdefault(resource.key, []).append(text)

    usable = _one_of_each_name([r for r in found if _readable(r, now_s, problems)], problems)
    optimizer = _in_force(usable["Optimizer"], problems)
    accelerators = {str(r.spec["name"]) for r in usable["Accelerator"]}
    models = []
    for model in usable["Model"]:
        if _model_is_usable(model, accelerators, problems, note):
            models.append(model)
    usable["Model"] = models
    known = {str(r.spec["name"]) for r in models}
    for service_class in usable["ServiceClass"]:
        for index, row in enumerate(service_class.spec.get("data") or ()):
            if row["model"] not in known:
                note(service_class, f"{_missing(f'spec.data[{index}].model', 'Model', row['model'], known)}")
    classes = {
        str(r.spec["name"]): {row["model"] for row in r.spec.get("data") or ()}
        for r in usable["ServiceClass"]
    }
    usable["Server"] = [
        server
        for server in usable["Server"]
        if _server_is_usable(server, known, classes, accelerators, problems, note)
    ]
    usable["Capacity"] = _capacities(usable["Capacity"], note)
    usable["Optimizer"] = [] if optimizer is None else [optimizer]
    sections = {
        section: (kind, {SECTIONS[section]: _rows(kind, usable[kind])})
        for kind, section in SECTION_OF.items()
    }
    fleet = _completed(parse_system(sections), usable["Server"], period_s(optimizer) is None, now_s)
    return Declaration(
        fleet=fleet,
        problems=problems,
        remarks={key: tuple(texts) for key, texts in remarks.items()},
        servers={str(r.spec["name"]): r.key for r in usable["Server"]},
        optimizer=optimizer,
    )


def _readable(resource: Resource, now_s: float, problems: dict[Key, Problem]) -> bool:
    """Whether an object makes a fleet on its own; the API server refuses most that do not."""
    servers = [resource] if resource.kind == "Server" else []
    fewest, most = resource.spec.get("minReplicas", 1), resource.spec.get("maxReplicas")
    try:
        if servers and most is not None and most < fewest:
            raise LegacyRefused(
                f"spec.maxReplicas is {most}: expected at least spec.minReplicas, which is {fewest}"
            )
        _completed(parse_system(_alone(resource)), servers, True, now_s)
    except LegacyRefused as error:
        problems[resource.key] = Problem("Invalid", str(error))
        return False
    return True


def _alone(resource: Resource) -> dict[str, tuple[str, Any]]:
    """The legacy form of one object, with what it refers to: whether that is there, is asked later."""
    rows = _rows(resource.kind, [resource])
    section = SECTION_OF[resource.kind]
    accelerators, models = [], []
    if resource.kind == "Model":
        accelerators = [row["acc"] for row in rows]
    elif resource.kind == "Server":
        accelerators, models = ["any"], [{"name": resource.spec["model"], "acc": "any"}]
    referred = {
        "acceleratordata": {"accelerators": [{"name": name, "type": name} for name in accelerators]},
        "modeldata": {"models": models},
    }
    return {
        key: (resource.shown, held) for key, held in (referred | {section: {SECTIONS[section]: rows}}).items()
    }


def _one_of_each_name(
    resources: Iterable[Resource], problems: dict[Key, Problem]
) -> dict[str, list[Resource]]:
    """Objects by kind; of those with one name the eldest."""
    usable: dict[str, list[Resource]] = {kind: [] for kind in SECTION_OF}
    holders: dict[tuple[str, str], Resource] = {}
    for resource in resources:
        if resource.kind in NAMED:
            holder = holders.setdefault((resource.kind, str(resource.spec["name"])), resource)
            if holder is not resource:
                text = f"spec.name is {resource.spec['name']!r}, which {holder.shown} has already"
                problems[resource.key] = Problem("NameTaken", text)
                continue
        usable[resource.kind].append(resource)
    return usable


def _in_force(optimizers: list[Resource], problems: dict[Key, Problem]) -> Resource | None:
    """One that has something to do, the eldest of them; else the eldest."""
    ranked = sorted(optimizers, key=lambda r: (period_s(r) is None and not wants_once(r), r.age))
    for other in ranked[1:]:
        problems[other.key] = Problem("Superseded", f"{ranked[0].shown} is in force; there is one at a time")
    return ranked[0] if ranked else None


def _model_is_usable(
    model: Resource, accelerators: set[str], problems: dict[Key, Problem], note: Any
) -> bool:
    rows = model.spec.get("data") or ()
    missing = [
        _missing(f"spec.data[{index}].acc", "Accelerator", row["acc"], accelerators)
        for index, row in enumerate(rows)
        if row["acc"] not in accelerators
    ]
    if len(missing) < len(rows):
        for text in missing:
            note(model, text)
        return True
    text = "; ".join(missing) or "spec.data is empty: expected the accelerators that the model runs on"
    problems[model.key] = Problem("ReferenceMissing" if missing else "Invalid", text)
    return False


def _server_is_usable(
    server: Resource,
    models: set[str],
    classes: Mapping[str, set[str]],
    accelerators: set[str],
    problems: dict[Key, Problem],
    note: Any,
) -> bool:
    spec, missing = server.spec, []
    if spec["model"] not in models:
        missing.append(_missing("spec.model", "Model", spec["model"], models))
    if spec["class"] not in classes:
        missing.append(_missing("spec.class", "ServiceClass", spec["class"], classes))
    if missing:
        problems[server.key] = Problem("ReferenceMissing", "; ".join(missing))
        return False
    if spec["model"] not in classes[spec["class"]]:
        note(server, f"ServiceClass {spec['class']!r} has no objectives for Model {spec['model']!r}")
    held = (spec.get("currentAlloc") or {}).get("accelerator")
    if held and held not in accelerators:
        note(server, _missing("spec.currentAlloc.accelerator", "Accelerator", held, accelerators))
    return True


def _capacities(capacities: list[Resource], note: Any) -> list[Resource]:
    """All of them; a type that an elder one counts is not counted again by a later one."""
    counted: dict[str, Resource] = {}
    for capacity in capacities:
        for row in capacity.spec["count"]:
            holder = counted.setdefault(row["type"], capacity)
            if holder is not capacity:
                note(capacity, f"type {row['type']!r} is counted by {holder.shown} already, which holds")
    return list(reversed(capacities))  # In the legacy form the later of duplicates counts.


def _missing(where: str, kind: str, name: str, known: Iterable[str]) -> str:
    listed = ", ".join(sorted(known)) or "none"
    return f"{where} is {name!r}, but there is no usable {kind} of that spec.name; there is: {listed}"


def _rows(kind: str, resources: Iterable[Resource]) -> Any:
    """What objects of one kind say, in today's legacy spelling."""
    specs = [r.spec for r in resources]
    match kind:
        case "Model":
            return [_profile(spec["name"], row) for spec in specs for row in spec.get("data") or ()]
        case "ServiceClass":
            return [
                {**spec, "modelTargets": [_target(row) for row in spec.get("data") or ()]} for spec in specs
            ]
        case "Server":
            return [_server(spec) for spec in specs]
        case "Capacity":
            return [row for spec in specs for row in spec["count"]]
        case "Optimizer":
            return (specs[0].get("data") or {}).get("optimizer") or {} if specs else {}
        case _:
            return list(specs)


def _profile(model: str, row: Mapping[str, Any]) -> dict[str, Any]:
    older = {key: row[key] for key in ("alpha", "beta", "gamma") if key in row}
    return {**row, "name": model, "perfParms": row.get("perfParms", older)}


def _target(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "slo-ttft": row.get("slo-ttft", row.get("slo-ttw", 0))}


def _server(spec: Mapping[str, Any]) -> dict[str, Any]:
    now = dict(spec.get("currentAlloc") or {})
    load = dict(now.get("load") or {})
    # The older form knows one length, that of the answer.
    load.setdefault("avgOutTokens", load.get("avgLength", 0))
    return {
        **spec,
        "minNumReplicas": spec.get("minReplicas", 1),
        "currentAlloc": {**now, "load": load},
    }


def _completed(system: LegacySystem, servers: list[Resource], paused: bool, now_s: float) -> FleetDeclared:
    """The fleet with what the legacy form has no place for; raises LegacyRefused."""
    specs = {str(r.spec["name"]): r.spec for r in servers}
    fleet = fleet_of(system, now_s).fleet

    def completed(server: Server) -> Server:
        spec, load = specs[server.name], system.servers[server.name]
        given = "load" in spec["currentAlloc"] and load.rate_per_min >= 0
        return server.model_copy(
            update={
                "max_replicas": spec.get("maxReplicas"),
                "paused": paused,
                "nominal_rate_rps": load.rate_per_min / 60.0 if given else None,
                "nominal_input_tokens": load.input_tokens if given else None,
                "nominal_output_tokens": load.output_tokens if given and load.output_tokens else None,
            }
        )

    whole = fleet.model_copy(update={"servers": tuple(completed(server) for server in fleet.servers)})
    content = whole.model_dump(mode="json", exclude={"declared_at_s", "revision"})
    try:
        return FleetDeclared.model_validate({**content, "declared_at_s": now_s, "revision": _digest(content)})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"])[:-1]
        said = f"{where} is {shown(first['input'])}: {first['msg']}" if where else first["msg"]
        raise LegacyRefused(f"the fleet of the custom resources: {said}") from None


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
