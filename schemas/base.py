"""What every contract is made of: the frozen base model and the types that carry units.

Within a major version contracts only grow by fields with defaults, so unknown fields are ignored:
an old consumer reads a new producer. One kind of unknown field is refused: a known field under another
unit (``ttft_ms`` for ``ttft_s``), because ignoring it would lose a measurement without a word.
"""

import ast
import inspect
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

UNITS = (
    "_s",
    "_ms",
    "_us",
    "_ns",
    "_min",
    "_h",
    "_rps",
    "_rpm",
    "_per_s",
    "_per_min",
    "_per_hour",
    "_cents_per_hour",
    "_tokens",
    "_gib",
    "_gb",
    "_w",
    "_kw",
    "_share",
    "_percent",
    "_pct",
)
_UNITS_LONGEST_FIRST = sorted(UNITS, key=len, reverse=True)


def unit_stem(field: str) -> str:
    """The name of a field without its unit, for example ``ttft`` for ``ttft_s``."""
    for unit in _UNITS_LONGEST_FIRST:
        if field.endswith(unit) and len(field) > len(unit):
            return field[: -len(unit)]
    return field


def _explained(schema: dict[str, Any], contract: type[BaseModel]) -> None:
    """To those who read the schema, fields say what they are, and unknown ones are what they are to us: nothing.

    Pydantic would read the source of every contract whenever it is imported, for nobody to see.
    """
    schema.pop("additionalProperties", None)
    for base in reversed(contract.__mro__):
        if issubclass(base, Contract) and base is not Contract:
            for name, text in _docstrings(base):
                schema["properties"][name]["description"] = text


def _docstrings(contract: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The fields that a class declares, each with the string below it."""
    declaration = ast.parse(dedent(inspect.getsource(contract))).body[0]
    assert isinstance(declaration, ast.ClassDef)
    for field, below in pairwise(declaration.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, inspect.cleandoc(text)


class Contract(BaseModel):
    """A message, or a part of one: immutable, without NaN or infinity, tolerant of newer fields.

    Raises pydantic's ValidationError for anything else, naming the field and what was expected.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        allow_inf_nan=False,
        use_enum_values=False,
        validate_default=False,
        ser_json_inf_nan="constants",
        json_schema_extra=_explained,
    )

    def model_post_init(self, _: Any) -> None:
        """Refuse a known field in another unit; drop what else is unknown.

        Looking at the input instead, before validation, triples the time to read a message.
        """
        if not self.__pydantic_extra__:
            return
        stems = _stems(type(self))
        for name in self.__pydantic_extra__:
            expected = stems.get(unit_stem(name))
            if expected is not None:
                raise ValueError(f"field {name!r} is in another unit: {expected!r} is expected")
        self.__pydantic_extra__.clear()


@cache
def _stems(contract: type[BaseModel]) -> dict[str, str]:
    return {unit_stem(name): name for name in contract.model_fields if unit_stem(name) != name}


Name = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[^\x00-\x1f\x7f]+$")]
UnixSeconds = Annotated[float, Field(ge=0, le=1e11)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
LatencySeconds = Annotated[float, Field(ge=0, le=86_400)]
Rate = Annotated[float, Field(ge=0, le=1e7)]
Tokens = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
CostPerHour = Annotated[float, Field(ge=0, le=1e12)]

LawParametersValues = Annotated[
    dict[Name, Annotated[float, Field(ge=0)]],
    Field(min_length=1),
]


class Quality(StrEnum):
    """How far a measurement can be trusted. Missing is not zero; missing and stale never scale down."""

    OK = "ok"
    PARTIAL = "partial"
    STALE = "stale"
    MISSING = "missing"


class Statistic(StrEnum):
    """Which value of a distribution an objective speaks of."""

    MEAN = "mean"
    P50 = "p50"
    P90 = "p90"
    P95 = "p95"
    P99 = "p99"
