"""The description of a simulated plant, read from YAML: accelerators, servers, engines and load."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from services.simulator.arrivals import (
    UNIFORM_MOST_CV,
    Arrival,
    Curve,
    Lengths,
    Shape,
    generate,
    read_azure_trace,
    replay,
)

Name = Annotated[str, Field(min_length=1)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Points = Annotated[list[tuple[NonNegativeFloat, NonNegativeFloat]], Field(min_length=1)]


class PlantError(ValueError):
    """A plant that cannot be built; one line per fault: file, path, value and what was expected."""


class Description(BaseModel):
    """Base of every part of the description: unknown keys and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Accelerators(Description):
    """How many units of one accelerator type the plant has."""

    type: Name
    count: Annotated[int, Field(ge=0)]


class StartUp(Description):
    """Cold start of a replica: a lognormal time in seconds by its median and 95th percentile."""

    median: PositiveFloat
    p95: PositiveFloat

    @model_validator(mode="after")
    def _ordered(self) -> "StartUp":
        if self.p95 < self.median:
            raise ValueError(f"expected p95 of at least the median {self.median:g}, not {self.p95:g}")
        return self


class VariantDescription(Description):
    """A server's engine on one accelerator configuration.

    The iteration law's parameters are in seconds; `units` accelerators of the type make one replica;
    `kv_tokens` absent means KV memory never limits. With decode_s, prefill_read_s, prefill_square_s and overhead_s
    it is the seven-parameter law: alpha_s is its a, beta_s its b_p, gamma_s its g, these its b_d, none, its q and h.
    """

    accelerator: Name
    accelerator_type: Name
    units: PositiveInt = 1
    alpha_s: PositiveFloat
    beta_s: NonNegativeFloat
    gamma_s: NonNegativeFloat
    decode_s: NonNegativeFloat | None = None
    prefill_read_s: NonNegativeFloat | None = None
    prefill_square_s: NonNegativeFloat = 0.0
    overhead_s: NonNegativeFloat = 0.0
    max_batch: PositiveInt
    token_budget: PositiveInt = 8192
    kv_tokens: PositiveInt | None = None
    startup_s: StartUp


class InitialReplicas(Description):
    """Replicas of one variant that are ready when the simulation starts."""

    accelerator: Name
    replicas: Annotated[int, Field(ge=0)]


class LengthDescription(Description):
    """Token counts: lognormal by default; `cv` is of the lognormal and, up to 0.577, of the uniform ones."""

    mean: Annotated[float, Field(ge=1.0)]
    cv: PositiveFloat = 1.0
    highest: PositiveInt = 16384
    shape: Shape = Shape.LOGNORMAL

    @model_validator(mode="after")
    def _possible(self) -> "LengthDescription":
        if self.shape is Shape.UNIFORM and self.cv > UNIFORM_MOST_CV:
            raise ValueError(
                f"cv: expected at most {UNIFORM_MOST_CV:.3f} of uniform lengths, not {self.cv:g}"
            )
        return self


class GeneratedArrivals(Description):
    """Seeded arrivals whose rate follows (time_s, rate_rps) points, held after the last or repeated."""

    kind: Literal["generated"]
    rate_rps: Points
    repeat: bool = False
    interarrival_cv: Annotated[float, Field(gt=0.0, le=30.0)] = 1.0
    input_tokens: LengthDescription
    output_tokens: LengthDescription

    @model_validator(mode="after")
    def _usable(self) -> "GeneratedArrivals":
        _check_points("rate_rps", self.rate_rps, self.repeat)
        return self


class TraceArrivals(Description):
    """A replayed request log.

    `rate_scale` is a factor on its rate, or (time_s, factor) points held after the last or repeated;
    `otherwise` is used when the log is in none of the folders searched.
    """

    kind: Literal["trace"]
    trace: Name
    rate_scale: PositiveFloat | Points = 1.0
    repeat: bool = False
    start_offset_s: NonNegativeFloat = 0.0
    otherwise: GeneratedArrivals | None = None

    @model_validator(mode="after")
    def _usable(self) -> "TraceArrivals":
        _check_points("rate_scale", self.scale_points, self.repeat)
        if not self.repeat and self.scale_points[-1][1] == 0.0:
            raise ValueError("rate_scale: expected a last factor above 0")
        return self

    @property
    def scale_points(self) -> list[tuple[float, float]]:
        scale = self.rate_scale
        return scale if isinstance(scale, list) else [(0.0, scale), (1.0, scale)]


class ServerDescription(Description):
    """An inference server: a model, its possible variants, its replicas at the start and its load."""

    name: Name
    model: Name
    variants: Annotated[list[VariantDescription], Field(min_length=1)]
    initial: list[InitialReplicas] = []
    arrivals: Annotated[GeneratedArrivals | TraceArrivals, Field(discriminator="kind")]

    @property
    def longest_request_tokens(self) -> int | None:
        """The largest input plus output that every variant can hold; None if nothing limits it."""
        return min((v.kv_tokens for v in self.variants if v.kv_tokens is not None), default=None)


class Plant(Description):
    """The whole plant; the seed decides cold starts and arrivals."""

    seed: int = 0
    accelerators: list[Accelerators]
    servers: Annotated[list[ServerDescription], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> "Plant":
        counts = {accelerator.type: accelerator.count for accelerator in self.accelerators}
        _check_unique("accelerators", [accelerator.type for accelerator in self.accelerators])
        _check_unique("servers", [server.name for server in self.servers])
        pods = [pod_prefix(server.name, v.accelerator) for server in self.servers for v in server.variants]
        _check_unique("servers (as replica names)", pods)
        used: Counter[str] = Counter()
        for server in self.servers:
            variants = {variant.accelerator: variant for variant in server.variants}
            for variant in server.variants:
                if variant.accelerator_type not in counts:
                    raise ValueError(
                        f"servers.{server.name}.variants.{variant.accelerator}.accelerator_type: "
                        f"expected one of {sorted(counts)}, not {variant.accelerator_type!r}"
                    )
            for initial in server.initial:
                if initial.accelerator not in variants:
                    raise ValueError(
                        f"servers.{server.name}.initial.accelerator: "
                        f"expected one of {sorted(variants)}, not {initial.accelerator!r}"
                    )
                variant = variants[initial.accelerator]
                used[variant.accelerator_type] += variant.units * initial.replicas
        for kind, units in used.items():
            if units > counts[kind]:
                raise ValueError(f"servers.initial: expected at most {counts[kind]} {kind}, not {units}")
        return self


def pod_prefix(server: str, accelerator: str) -> str:
    """The stem of a variant's replica names: letters, digits, dots and dashes only."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{server}-{accelerator}".lower()).strip("-")


def load_plant(path: Path) -> Plant:
    """Read a plant from a YAML file; raises PlantError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlantError(f"{path}: {error.strerror}: expected a readable YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlantError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    try:
        return Plant.model_validate(content)
    except ValidationError as error:
        raise PlantError("\n".join(f"{path}: {fault}" for fault in faults_of(error))) from None


def faults_of(error: ValidationError) -> list[str]:
    """One line per fault: where it is, what was expected, and the value that was there if it is short."""
    lines = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"]) or "(whole)"
        given: Any = fault["input"]
        value = f", not {given!r}" if isinstance(given, str | int | float | bool | None) else ""
        lines.append(f"{where}: {fault['msg']}{value}")
    return lines


def open_arrivals(
    description: GeneratedArrivals | TraceArrivals, trace_folders: Sequence[Path], seed: str
) -> tuple[Iterator[Arrival], str]:
    """Open a request source; also says in words which one it is.

    Raises PlantError if a trace is in none of the folders and nothing else is described, and TraceError if
    it is malformed.
    """
    rng = Random(seed)
    if isinstance(description, GeneratedArrivals):
        source = generate(
            Curve(description.rate_rps, description.repeat),
            description.interarrival_cv,
            Lengths(**description.input_tokens.model_dump()),
            Lengths(**description.output_tokens.model_dump()),
            rng,
        )
        return source, "generated"
    for folder in trace_folders:
        path = folder / description.trace
        if path.is_file():
            scale = Curve(description.scale_points, description.repeat)
            return replay(read_azure_trace(path), scale, description.start_offset_s, rng), f"trace {path}"
    searched = ", ".join(str(folder) for folder in trace_folders) or "no folder"
    missing = f"trace {description.trace} not found in {searched}"
    if description.otherwise is None:
        raise PlantError(f"{missing}: expected the file, or `otherwise` with generated arrivals")
    source, _ = open_arrivals(description.otherwise, trace_folders, seed)
    return source, f"generated ({missing})"


def _check_unique(where: str, names: list[str]) -> None:
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise ValueError(f"{where}: expected different names, not twice {', '.join(repeated)}")


def _check_points(where: str, points: list[tuple[float, float]], repeat: bool) -> None:
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        raise ValueError(f"{where}: expected times that increase")
    if repeat and (points[0][0] != 0.0 or points[-1][0] == 0.0 or not any(value for _, value in points)):
        raise ValueError(f"{where}: expected, to repeat, points from 0 to a period and a value above 0")
