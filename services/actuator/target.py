"""What a target is: the place where decisions are carried out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import BaseModel

from schemas.actuation import FailureReason, VariantScale
from schemas.telemetry import InventoryObserved


@dataclass(frozen=True)
class Applied:
    """A target took what was asked; `changed` when anything was different before.

    `scaled` is what is in force now where that is only a step towards what was asked. `owned` is False where
    something else carries it out, so that no other writer can be told from it.
    """

    changed: bool
    resource_version: str | None = None
    owned: bool = True
    scaled: tuple[VariantScale, ...] | None = None


@dataclass(frozen=True)
class Failed:
    """A target did not take what was asked; the next cycle asks again."""

    reason: FailureReason
    message: str


class Target(Protocol):
    """A plug-in: constructed as `Plugin(settings)`.

    `writes` is False for a target that only reports what it would do.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]
    writes: ClassVar[bool]

    async def apply(
        self, server: str, scales: Sequence[VariantScale], inventory: InventoryObserved
    ) -> Applied | Failed:
        """Write the scales of one server; every failure is a value, so that one cannot stop the next."""

    async def close(self) -> None:
        """Release connections; closing twice is harmless."""
