"""The default target: touches nothing."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from schemas.actuation import VariantScale
from schemas.telemetry import InventoryObserved
from services.actuator.target import Applied


class DryRunSettings(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DryRunTarget:
    """Takes every decision and carries out none; the decision stream says what would have been done."""

    name: ClassVar[str] = "dry-run"
    Settings: ClassVar[type[BaseModel]] = DryRunSettings
    writes: ClassVar[bool] = False

    def __init__(self, settings: DryRunSettings) -> None:
        del settings

    async def apply(
        self, server: str, scales: Sequence[VariantScale], inventory: InventoryObserved
    ) -> Applied:
        return Applied(changed=False)

    async def close(self) -> None:
        return None
