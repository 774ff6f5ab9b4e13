"""The legacy JSON form of a system, read as laxly as its own programs read it, in its own units.

Keys match in any case and unknown ones are ignored; what is absent is zero or empty; of duplicates the later
wins. Each laxity that changes a meaning leaves a warning; what no meaning can be given to is refused with
file, path, value and remedy.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")

SECTIONS = {
    "acceleratordata": "accelerators",
    "modeldata": "models",
    "serviceclassdata": "serviceclasses",
    "serverdata": "servers",
    "optimizerdata": "optimizer",
    "capacitydata": "count",
}
"""The sections of a system by key, and the key of what each holds."""

FREE_CLASS = "Free"
LEAST_PRIORITY = 100
POLICIES = ("None", "PriorityExhaustive", "PriorityRoundRobin", "RoundRobin")


class LegacyRefused(ValueError):
    """A legacy system that cannot be used; a line names file, path, value and what was expected."""


@dataclass(frozen=True)
class LegacyAccelerator:
    """Cost in cents per hour, memory in GB, bandwidth in GB/s; power as (idle, full, mid, mid utilisation)."""

    name: str
    type: str
    multiplicity: int
    cost: float
    memory_gb: float
    bandwidth_gb_per_s: float
    power: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class LegacyProfile:
    """One model on one accelerator; parameters are alpha, beta, gamma in milliseconds."""

    model: str
    accelerator: str
    count: int
    max_batch: int
    at_tokens: int
    parameters: tuple[float, float, float] | None


@dataclass(frozen=True)
class LegacyTarget:
    """Objectives of one model within a class, milliseconds and tokens per second; 0 is none."""

    model: str
    itl_ms: float
    ttft_ms: float
    tps: float


@dataclass(frozen=True)
class LegacyClass:
    """A service class with its targets by model."""

    name: str
    priority: int
    targets: Mapping[str, LegacyTarget]


@dataclass(frozen=True)
class LegacyServer:
    """A server with its load in requests per minute and what it has now; the cost is the file's."""

    name: str
    service_class: str
    model: str
    keep_accelerator: bool
    min_replicas: int
    max_batch: int
    max_queue: int
    accelerator: str
    replicas: int
    cost: float
    rate_per_min: float
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True)
class LegacyOptions:
    """How the reference is asked to solve."""

    unlimited: bool = False
    heterogeneous: bool = False
    milp: bool = False
    delayed_best_effort: bool = False
    saturation_policy: str = "None"


@dataclass(frozen=True)
class LegacySystem:
    """The whole, by name and in the order of the files; profiles by (model, accelerator)."""

    accelerators: Mapping[str, LegacyAccelerator]
    profiles: Mapping[tuple[str, str], LegacyProfile]
    classes: Mapping[str, LegacyClass]
    servers: Mapping[str, LegacyServer]
    capacity: Mapping[str, int]
    options: LegacyOptions
    warnings: tuple[str, ...] = ()


@dataclass
class _Reader:
    """One JSON object on its way into the system: where it is, and what was noticed."""

    file: str
    path: str
    values: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, file: str, path: str, value: Any, warnings: list[str]) -> "_Reader":
        if not isinstance(value, Mapping):
            raise LegacyRefused(f"{file}: {path} is {shown(value)}: expected an object in braces")
        return cls(file, path, {str(k).lower(): v for k, v in value.items()}, warnings)

    def warn(self, key: str, text: str) -> None:
        self.warnings.append(f"{self.file}: {self._at(key)} {text}")

    def refuse(self, key: str, expected: str) -> LegacyRefused:
        given = self.values.get(key.lower())
        said = "is missing" if given is None else f"is {shown(given)}"
        return LegacyRefused(f"{self.file}: {self._at(key)} {said}: expected {expected}")

    def text(self, key: str, required: bool = True) -> str:
        value = self.values.get(key.lower())
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value):
            raise self.refuse(key, "a text that is not empty" if required else "a text")
        if len(value) > 253 or any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise self.refuse(key, "at most 253 characters, none of them a control character")
        return value

    def number(self, key: str, least: float = -math.inf, most: float = 1e12) -> float:
        value = self.values.get(key.lower())
        if value is None:
            return 0.0
        wanted = "a finite number" if least == -math.inf else f"a finite number from {least:g} to {most:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, f"{wanted}, without quotes")
        # Comparisons come first: an integer may be too large for a float.
        if not -most <= value <= most or not least <= value:
            raise self.refuse(key, wanted)
        return float(value)

    def whole(self, key: str, least: int = 0, most: int = 1_000_000) -> int:
        value = self.number(key, -math.inf)
        if value != math.floor(value) or not least <= value <= most:
            raise self.refuse(key, f"a whole number from {least} to {most}")
        return int(value)

    def flag(self, key: str) -> bool:
        value = self.values.get(key.lower())
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return bool(value)

    def inner(self, key: str) -> "_Reader | None":
        value = self.values.get(key.lower())
        if value is None:
            return None
        return _Reader.of(self.file, self._at(key), value, self.warnings)

    def rows(self, key: str) -> "Iterable[_Reader]":
        value = self.values.get(key.lower())
        if value is None:
            return
        if not isinstance(value, list):
            raise self.refuse(key, "a list in brackets")
        for index, row in enumerate(value):
            yield _Reader.of(self.file, f"{self._at(key)}[{index}]", row, self.warnings)

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def parse_system(sections: Mapping[str, tuple[str, Any]]) -> LegacySystem:
    """The system from its sections, each with the name of the file that it is from.

    sections: by the lower-case keys of `SECTIONS`; one that is absent is empty. Raises LegacyRefused.
    """
    warnings: list[str] = []

    def section(key: str) -> _Reader:
        file, content = sections.get(key, ("", {}))
        if key not in sections:
            where = ", ".join(sorted({file for file, _ in sections.values()}))
            warnings.append(f"{where}: {key} is absent and taken as empty")
        held = _Reader.of(file, key, content, warnings)
        return replace(held, path="")

    def table(key: str, listed: str, read: Callable[[_Reader], tuple[Hashable, T] | None]) -> dict[Any, T]:
        found: dict[Any, T] = {}
        for row in section(key).rows(listed):
            entry = read(row)
            if entry is None:
                continue
            if entry[0] in found:
                row.warn("", f"repeats {entry[0]!r}; the later one counts")
            found[entry[0]] = entry[1]
        return found

    accelerators = table("acceleratordata", "accelerators", _accelerator)
    profiles = table("modeldata", "models", lambda row: _profile(row, accelerators))
    classes = table("serviceclassdata", "serviceClasses", _service_class)
    models = {model for model, _ in profiles}
    servers = table("serverdata", "servers", lambda row: _server(row, models, classes, accelerators))
    capacity = table("capacitydata", "count", lambda row: (row.text("type"), row.whole("count")))
    options = section("optimizerdata").inner("optimizer")
    return LegacySystem(
        accelerators=accelerators,
        profiles=profiles,
        classes=classes,
        servers=servers,
        capacity=capacity,
        options=LegacyOptions() if options is None else _options(options),
        warnings=tuple(warnings),
    )


def shown(value: Any) -> str:
    """A value as an error shows it, within a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _accelerator(row: _Reader) -> tuple[str, LegacyAccelerator]:
    power = row.inner("power")
    if row.values.get("multiplicity") is not None and row.whole("multiplicity", -1_000_000) < 1:
        raise row.refuse("multiplicity", "the cards in one unit, at least 1; leave it out for 1")
    draw = None
    if power is not None:
        draw = (
            power.number("idle", 0.0),
            power.number("full", 0.0),
            power.number("midPower", 0.0),
            power.number("midUtil", 0.0, 1.0),
        )
    name = row.text("name")
    return name, LegacyAccelerator(
        name=name,
        type=row.text("type"),
        multiplicity=row.whole("multiplicity") or 1,
        cost=row.number("cost", 0.0),
        memory_gb=row.number("memSize", 0.0),
        bandwidth_gb_per_s=row.number("memBW", 0.0),
        power=draw,
    )


def _profile(
    row: _Reader, accelerators: Mapping[str, LegacyAccelerator]
) -> tuple[tuple[str, str], LegacyProfile] | None:
    model, accelerator = row.text("name"), row.text("acc")
    if accelerator not in accelerators:
        row.warn("acc", f"is {accelerator!r}, which is no accelerator of the system; the entry is ignored")
        return None
    count = row.whole("accCount")
    if count == 0:
        if row.values.get("acccount") is not None:
            row.warn("accCount", "is 0; it is taken as 1")
        count = 1
    given, parameters = row.inner("perfParms"), None
    if given is None:
        row.warn("perfParms", "is missing; the pair is not usable")
    else:
        alpha, beta, gamma = (given.number(key, 0.0, 1e9) for key in ("alpha", "beta", "gamma"))
        parameters = (alpha, beta, gamma)
    return (model, accelerator), LegacyProfile(
        model=model,
        accelerator=accelerator,
        count=count,
        max_batch=row.whole("maxBatchSize"),
        at_tokens=row.whole("atTokens"),
        parameters=parameters,
    )


def _service_class(row: _Reader) -> tuple[str, LegacyClass]:
    name, priority = row.text("name"), row.whole("priority", -1_000_000)
    if not 1 <= priority <= LEAST_PRIORITY:
        row.warn("priority", f"is {priority}, outside 1 to {LEAST_PRIORITY}; it is taken as {LEAST_PRIORITY}")
        priority = LEAST_PRIORITY
    targets = {}
    for target in row.rows("modelTargets"):
        model = target.text("model")
        if model in targets:
            target.warn("model", f"repeats {model!r}; the later one counts")
        targets[model] = LegacyTarget(
            model,
            target.number("slo-itl", 0.0, 8.64e7),
            target.number("slo-ttft", 0.0, 8.64e7),
            target.number("slo-tps", 0.0, 1e9),
        )
    return name, LegacyClass(name, priority, targets)


def _server(
    row: _Reader,
    models: Iterable[str],
    classes: Mapping[str, LegacyClass],
    accelerators: Mapping[str, LegacyAccelerator],
) -> tuple[str, LegacyServer]:
    nothing = _Reader.of(row.file, f"{row.path}.currentAlloc", {}, row.warnings)
    now = row.inner("currentAlloc") or nothing
    load = now.inner("load")
    if load is None:
        now.warn("load", "is missing; the server is taken to have none")
        load = nothing
    name, model = row.text("name"), row.text("model")
    service_class = row.text("class", required=False) or FREE_CLASS
    if model not in models:
        row.warn("model", f"is {model!r}, which no entry of models describes; the server cannot be sized")
    if service_class not in classes:
        row.warn("class", f"is {service_class!r}, which is no service class; it has no objectives")
    elif model not in classes[service_class].targets:
        row.warn("class", f"is {service_class!r}, which has no target for {model!r}; it has no objectives")
    if (fewest := row.whole("minNumReplicas", -1_000_000)) < 0:
        row.warn("minNumReplicas", f"is {fewest}; it is taken as 0")
    if (rate := load.number("arrivalRate", most=6e8)) < 0:
        load.warn("arrivalRate", f"is {rate:g}, which is no rate; the server keeps what it has")
    accelerator = now.text("accelerator", required=False)
    if accelerator and accelerator not in accelerators:
        now.warn("accelerator", f"is {accelerator!r}, which is no accelerator of the system")
    return name, LegacyServer(
        name=name,
        service_class=service_class,
        model=model,
        keep_accelerator=row.flag("keepAccelerator"),
        min_replicas=fewest,
        max_batch=row.whole("maxBatchSize"),
        max_queue=row.whole("maxQueueSize"),
        accelerator=accelerator,
        replicas=now.whole("numReplicas"),
        cost=now.number("cost"),
        rate_per_min=rate,
        input_tokens=load.number("avgInTokens", 0.0, 1e9),
        output_tokens=load.number("avgOutTokens", 0.0, 1e9),
    )


def _options(row: _Reader) -> LegacyOptions:
    policy = row.text("saturationPolicy", required=False) or "None"
    if policy not in POLICIES:
        row.warn("saturationPolicy", f"is {policy!r}, none of {', '.join(POLICIES)}; it is taken as None")
        policy = "None"
    return LegacyOptions(
        unlimited=row.flag("unlimited"),
        heterogeneous=row.flag("heterogeneous"),
        milp=row.flag("milpSolver"),
        delayed_best_effort=row.flag("delayedBestEffort"),
        saturation_policy=policy,
    )
