"""Legacy systems from files, and as a fleet with the messages that say the same as their load and allocations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.base import Contract, Quality
from schemas.fleet import (
    Accelerator,
    DeclaredCapacity,
    FleetDeclared,
    LawParameters,
    Model,
    ModelProfile,
    Objective,
    OptimizerOptions,
    Power,
    SaturationPolicy,
    Server,
    ServiceClass,
)
from schemas.telemetry import InventoryObserved, OfferedFrom, TelemetryObserved, VariantInventory
from services.legacy.form import (
    LEAST_PRIORITY,
    SECTIONS,
    LegacyClass,
    LegacyRefused,
    LegacyServer,
    LegacySystem,
    parse_system,
    shown,
)
from services.runtime.overrides import overridden

SYSTEM_FILE = "system-data.json"
FILES = {
    "accelerator-data.json": "acceleratordata",
    "model-data.json": "modeldata",
    "serviceclass-data.json": "serviceclassdata",
    "server-data.json": "serverdata",
    "optimizer-data.json": "optimizerdata",
    "capacity-data.json": "capacitydata",
}
"""The files of a folder and the section that each holds."""

CENTS = 100.0
MS_PER_S = 1000.0
GIB_PER_GB = 1e9 / 2**30
WINDOW_S = 30.0
# Keys that a what-if may add where the file leaves them out.
OPTIONAL = frozenset(
    {
        "multiplicity",
        "memsize",
        "membw",
        "acccount",
        "attokens",
        "maxbatchsize",
        "slo-itl",
        "slo-ttft",
        "slo-tps",
        "priority",
        "class",
        "keepaccelerator",
        "minnumreplicas",
        "maxqueuesize",
        "accelerator",
        "numreplicas",
        "cost",
        "arrivalrate",
        "avgintokens",
        "avgouttokens",
        "unlimited",
        "heterogeneous",
        "milpsolver",
        "delayedbesteffort",
        "saturationpolicy",
    }
)


@dataclass(frozen=True)
class LegacyFleet:
    """A legacy system in the terms of the contracts.

    messages: the load of every server as a window that ends now, and what it has as an inventory.
    """

    fleet: FleetDeclared
    messages: tuple[Contract, ...]


def is_legacy(path: Path) -> bool:
    """Whether a file or folder is of the legacy form; anything else is left to the form of our own."""
    if path.is_dir():
        return any((path / name).is_file() for name in (SYSTEM_FILE, *FILES))
    if path.suffix != ".json":
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool({str(k).lower() for k in content} & {"system", *SECTIONS})


def read_system(path: Path, assignments: Sequence[str] = ()) -> LegacySystem:
    """A legacy system from one file, or a folder with one file or one for each section.

    assignments: what-if overrides of the sections, as `overrides.overridden` describes.
    Raises LegacyRefused and OverrideRefused.
    """
    sections: dict[str, tuple[str, Any]] = {}
    if path.is_dir() and not (path / SYSTEM_FILE).is_file():
        for name, section in FILES.items():
            if (path / name).is_file():
                sections[section] = (name, _content(path / name))
    else:
        whole = path / SYSTEM_FILE if path.is_dir() else path
        content = _lowered(whole.name, "", _content(whole))
        inner = _lowered(whole.name, "system", content.get("system", content))
        sections = {key: (whole.name, inner[key]) for key in SECTIONS if key in inner}
        if not sections:
            raise LegacyRefused(f"{whole.name}: system holds none of {', '.join(SECTIONS)}: expected all six")
    return parse_system(_overridden(sections, assignments) if assignments else sections)


def fleet_of(system: LegacySystem, now_s: float) -> LegacyFleet:
    """The system as a fleet, in SI units and cost in units of 100 cents, and the messages that go with it.

    A model without a usable entry gets a profile without parameters, so that its servers are answered for.
    Raises LegacyRefused where a value does not fit into the contracts.
    """
    try:
        fleet = _fleet(system, now_s)
        messages = tuple(m for s in system.servers.values() for m in _messages(s, now_s))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LegacyRefused(f"{error.title}: {where} is {shown(first['input'])}: {first['msg']}") from None
    revision = sha256(fleet.model_dump_json(exclude={"declared_at_s"}).encode()).hexdigest()[:16]
    return LegacyFleet(fleet.model_copy(update={"revision": revision}), messages)


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LegacyRefused(f"{path}: cannot be read: {error.strerror}: expected a JSON file") from None
    except ValueError as error:
        raise LegacyRefused(f"{path}: is not JSON: {error}: correct it there") from None


def _lowered(file: str, path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LegacyRefused(f"{file}: {path or 'the file'} is {shown(value)}: expected an object in braces")
    return {str(k).lower(): v for k, v in value.items()}


def _overridden(
    sections: Mapping[str, tuple[str, Any]], assignments: Sequence[str]
) -> dict[str, tuple[str, Any]]:
    """Overrides made in what the sections hold, under the name of each: accelerators, models and so on."""
    inner = {key: _lowered(file, key, content) for key, (file, content) in sections.items()}
    names = {key: "capacity" if SECTIONS[key] == "count" else SECTIONS[key] for key in sections}
    document = {names[key]: inner[key].get(SECTIONS[key], {}) for key in sections}
    changed = overridden(document, assignments, OPTIONAL)
    return {key: (file, {SECTIONS[key]: changed[names[key]]}) for key, (file, _) in sections.items()}


def _fleet(system: LegacySystem, now_s: float) -> FleetDeclared:
    options = system.options
    profiles: dict[str, list[ModelProfile]] = {s.model: [] for s in system.servers.values()}
    for one in system.profiles.values():
        profiles.setdefault(one.model, []).append(
            ModelProfile(
                accelerator=one.accelerator,
                accelerator_count=one.count,
                max_batch=max(1, one.max_batch),
                at_tokens=one.at_tokens or None,
                parameters=None
                if one.parameters is None
                else LawParameters(
                    values=dict(
                        zip(
                            ("alpha_s", "beta_s", "gamma_s"),
                            (value / MS_PER_S for value in one.parameters),
                            strict=True,
                        )
                    )
                ),
            )
        )
    for unknown in (model for model, listed in profiles.items() if not listed):
        profiles[unknown] = [ModelProfile(accelerator=name) for name in system.accelerators]
    used = {s.service_class for s in system.servers.values()} - set(system.classes)
    classes = [*system.classes.values(), *(LegacyClass(name, LEAST_PRIORITY, {}) for name in sorted(used))]
    return FleetDeclared(
        declared_at_s=now_s,
        revision="unknown",
        accelerators=tuple(
            Accelerator(
                name=a.name,
                type=a.type,
                multiplicity=a.multiplicity,
                cost_per_hour=a.cost / CENTS,
                memory_gib=a.memory_gb * GIB_PER_GB or None,
                memory_bandwidth_gib_per_s=a.bandwidth_gb_per_s * GIB_PER_GB or None,
                power=a.power
                and Power(
                    idle_w=a.power[0], full_w=a.power[1], mid_w=a.power[2], mid_utilisation_share=a.power[3]
                ),
            )
            for a in system.accelerators.values()
        ),
        models=tuple(Model(name=name, profiles=tuple(listed)) for name, listed in profiles.items()),
        service_classes=tuple(_service_class(c, profiles) for c in classes),
        servers=tuple(
            Server(
                name=s.name,
                model=s.model,
                service_class=s.service_class,
                min_replicas=max(0, s.min_replicas),
                max_batch=s.max_batch or None,
                max_queue=s.max_queue,
                keep_accelerator=s.keep_accelerator,
            )
            for s in system.servers.values()
        ),
        capacity=tuple(DeclaredCapacity(type=name, count=n) for name, n in system.capacity.items()),
        optimizer=OptimizerOptions(
            solver="milp" if options.milp else OptimizerOptions().solver,
            heterogeneous=options.heterogeneous,
            unlimited=options.unlimited,
            saturation_policy=SaturationPolicy(options.saturation_policy),
            delayed_best_effort=options.delayed_best_effort,
        ),
    )


def _service_class(one: LegacyClass, models: Mapping[str, object]) -> ServiceClass:
    return ServiceClass(
        name=one.name,
        priority=one.priority,
        objectives=tuple(
            Objective(
                model=t.model,
                ttft_s=t.ttft_ms / MS_PER_S or None,
                itl_s=t.itl_ms / MS_PER_S or None,
                tokens_per_s=t.tps or None,
            )
            for t in one.targets.values()
            if t.model in models
        ),
    )


def _messages(server: LegacyServer, now_s: float) -> list[Contract]:
    known = server.rate_per_min >= 0
    rate = server.rate_per_min / 60.0 if known else None
    found: list[Contract] = [
        TelemetryObserved(
            server=server.name,
            model=server.model,
            window_start_s=now_s - WINDOW_S,
            window_end_s=now_s,
            quality=Quality.OK if known else Quality.MISSING,
            offered_rate_rps=rate,
            offered_from=OfferedFrom.COUNTERS if known else None,
            completed_rate_rps=rate,
            input_tokens=server.input_tokens,
            output_tokens=server.output_tokens,
        )
    ]
    if server.accelerator and server.replicas:
        held = VariantInventory(
            accelerator=server.accelerator, desired=server.replicas, ready=server.replicas, pending=0
        )
        found.append(
            InventoryObserved(
                server=server.name,
                model=server.model,
                observed_at_s=now_s,
                quality=Quality.OK,
                variants=(held,),
            )
        )
    return found
