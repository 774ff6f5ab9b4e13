"""A problem for a performance model as it is written: in our form, or in that of the reference system."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator

from services.perfmodel.law import DEFAULT_TOKEN_BUDGET
from services.perfmodel.queueing import DEFAULT_MAX_BLOCKED_SHARE, Statistic

DEFAULT_LAW = "three-parameter"
DEFAULT_MODEL = "birth-death"
MS = 1e-3
# Problems found in one problem that its refusal names.
MOST_NAMED = 3


def _number(value: object) -> object:
    """Whole numbers may be written 8 or 8.0, but neither "8" nor true is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("Input should be a whole number")
    return value


Number = Annotated[float, Strict()]
NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Whole = Annotated[int, BeforeValidator(_number)]
Batch = Annotated[Whole, Field(ge=1, le=1_000_000)]
Queue = Annotated[Whole, Field(ge=0, le=1_000_000_000)]
PromptTokens = Annotated[Number, Field(ge=0, le=1e9)]
OutputTokens = Annotated[Number, Field(ge=1, le=1e9)]
Rate = Annotated[Number, Field(ge=0, le=1e7)]
Label = Annotated[str, Field(max_length=253)]


class Form(StrEnum):
    """Whose keys and units a problem has, and its answer will have."""

    OWN = "own"
    REFERENCE = "reference"


class ProblemRefused(ValueError):
    """A problem that cannot be read; the text names the field, its value and what was expected."""


class Given(BaseModel):
    """What both forms have in common: an unknown key, NaN and infinity are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class TargetsGiven(Given):
    """What must be kept; see `queueing.Targets`."""

    ttft_s: Positive | None = None
    """Largest time to first token, seconds, of the statistic."""
    itl_s: Positive | None = None
    """Largest inter-token latency, seconds, of the statistic."""
    tps: Positive | None = None
    """Generated tokens per second that a replica must sustain."""
    max_blocked_share: Annotated[Number, Field(gt=0, le=1)] = DEFAULT_MAX_BLOCKED_SHARE
    """Share of the requests that may find the queue full."""
    statistic: Statistic = Statistic.MEAN
    """Which number of the latencies' distributions the targets bound."""


class Problem(Given):
    """One server and a question's figures, in SI units; the lengths' moments are those of `law.Workload`."""

    name: Label | None = None
    """Repeated in the answer."""
    law: str = DEFAULT_LAW
    """Iteration law that the parameters are of."""
    model: str = DEFAULT_MODEL
    """Queueing model that answers."""
    parameters: Annotated[dict[str, NotNegative], Field(min_length=1)]
    """The law's parameters by name, in SI units."""
    input_tokens: PromptTokens
    """Mean prompt length."""
    output_tokens: OutputTokens
    """Mean output length."""
    input_tokens_sq: NotNegative | None = None
    """Second moment of the prompt length; by default every prompt has the mean length."""
    output_tokens_sq: NotNegative | None = None
    """Second moment of the output length; by default every output has the mean length."""
    input_output_tokens: NotNegative | None = None
    """Mean product of prompt and output length; by default they are uncorrelated."""
    cached_share: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the prompt tokens that a prefix cache holds."""
    arrival_scv: NotNegative = 1.0
    """Squared coefficient of variation of the times between arrivals; 1 is a Poisson process."""
    max_batch: Batch
    """Requests served at once; for a batch limit, the largest that is considered."""
    max_queue: Queue = 0
    """Requests that may wait."""
    token_budget: Annotated[Whole, Field(ge=1, le=1_000_000_000)] = DEFAULT_TOKEN_BUDGET
    """Tokens computed per iteration."""
    kv_tokens: Annotated[Number, Field(ge=1)] | None = None
    """Tokens the KV cache holds; unlimited when unknown."""
    rate_rps: Rate | None = None
    """Requests per second; `analyze` needs it, the other questions do not look at it."""
    targets: TargetsGiven = TargetsGiven()
    """What must be kept; `analyze` does not look at it."""
    tolerance: Annotated[Number, Field(ge=0, lt=1)] = 0.01
    """Share of the best rate that a smaller batch limit may cost."""

    @model_validator(mode="after")
    def _moments_belong_to_a_distribution(self) -> Self:
        for field in ("input_tokens", "output_tokens"):
            mean, square = getattr(self, field), getattr(self, f"{field}_sq")
            if square is not None and square < mean**2 * (1 - 1e-9):
                raise ValueError(f"{field}_sq should be at least {field}², {mean**2:g}, is {square:g}")
        return self


class ReferenceProblem(Given):
    """A problem with the reference's keys; milliseconds and requests per second, zero is not given."""

    label: Label | None = None
    rate_rps: Rate | None = Field(default=None, alias="RPS")
    max_batch: Batch = Field(alias="maxBatchSize")
    max_queue: Queue = Field(default=0, alias="maxQueueSize")
    token_budget: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(default=0, alias="maxNumTokens")
    input_tokens: PromptTokens = Field(alias="avgInputTokens")
    output_tokens: OutputTokens = Field(alias="avgOutputTokens")
    alpha_ms: NotNegative = Field(alias="alpha")
    beta_ms: NotNegative = Field(alias="beta")
    gamma_ms: NotNegative = Field(default=0.0, alias="gamma")
    ttft_ms: NotNegative = Field(default=0.0, alias="targetTTFT")
    itl_ms: NotNegative = Field(default=0.0, alias="targetITL")
    tps: NotNegative = Field(default=0.0, alias="targetTPS")

    def in_si(self, model: str | None) -> Problem:
        """The same problem in our form."""
        return Problem(
            name=self.label,
            model=model or DEFAULT_MODEL,
            parameters={
                "alpha_s": MS * self.alpha_ms,
                "beta_s": MS * self.beta_ms,
                "gamma_s": MS * self.gamma_ms,
            },
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            max_batch=self.max_batch,
            max_queue=self.max_queue,
            token_budget=self.token_budget or DEFAULT_TOKEN_BUDGET,
            rate_rps=self.rate_rps,
            targets=TargetsGiven(
                ttft_s=MS * self.ttft_ms or None, itl_s=MS * self.itl_ms or None, tps=self.tps or None
            ),
        )


REFERENCE_KEYS = {
    (field.alias or name).casefold(): field.alias or name
    for name, field in ReferenceProblem.model_fields.items()
}


@dataclass(frozen=True)
class Posed:
    """A problem that was read, and the form it is to be answered in."""

    problem: Problem
    form: Form


def read(raw: object, law: str | None = None, model: str | None = None) -> Posed:
    """Read one problem; its keys tell the form, and those of the reference may be in any case.

    law, model: used instead of what the problem names.

    Raises ProblemRefused.
    """
    if not isinstance(raw, Mapping):
        raise ProblemRefused(f"problem: expected an object with a server's figures, got {short(raw)}")
    try:
        if any(str(key).casefold() in REFERENCE_KEYS for key in raw):
            return Posed(_reference(raw, law).in_si(model), Form.REFERENCE)
        chosen = {name: value for name, value in (("law", law), ("model", model)) if value is not None}
        return Posed(Problem.model_validate({**raw, **chosen}), Form.OWN)
    except ValidationError as error:
        raise ProblemRefused(_said(error)) from None


def _reference(raw: Mapping[Any, Any], law: str | None) -> ReferenceProblem:
    if law not in (None, DEFAULT_LAW):
        raise ProblemRefused(f"law: alpha, beta and gamma are parameters of {DEFAULT_LAW}, got {short(law)}")
    figures: dict[str, Any] = {}
    for key, value in raw.items():
        name = REFERENCE_KEYS.get(str(key).casefold(), str(key))
        if name in figures:
            raise ProblemRefused(f"{name}: expected once, got {short(key)} too")
        figures[name] = value
    return ReferenceProblem.model_validate(figures)


def plain(name: str) -> str:
    """A name as it may stand in a line of text: foreign ones are quoted and cut."""
    return name if name.isidentifier() and len(name) <= 80 else short(name)


def short(value: object) -> str:
    """A value as it may stand in a line of text."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _said(error: ValidationError) -> str:
    found = [
        ".".join(plain(str(part)) for part in one["loc"])
        + ": " * bool(one["loc"])
        + _complaint(one["type"], one["msg"], one["input"])
        for one in error.errors(include_url=False, include_context=False)
    ]
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more


def _complaint(kind: str, message: str, value: object) -> str:
    if kind == "missing":
        return "is required and missing"
    if kind == "extra_forbidden":
        return f"is no field of a problem, got {short(value)}"
    said = message.removeprefix("Value error, ")
    return said if isinstance(value, Mapping) else f"{said}, got {short(value)}"
