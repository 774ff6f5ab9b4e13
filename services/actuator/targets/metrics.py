"""Decisions as metrics, for a horizontal pod autoscaler or KEDA to obey."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from schemas.actuation import FailureReason, VariantScale
from schemas.telemetry import InventoryObserved
from services.actuator.desired import DesiredReplicas
from services.actuator.target import Applied, Failed


def _template(text: str) -> str:
    try:
        text.format(server="s", accelerator="a")
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{text!r}: expected a text with {{server}} and {{accelerator}}") from error
    return text


class MetricsSettings(BaseModel):
    """Under which names and labels decisions are shown on the actuator's own /metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    aliases: tuple[str, ...] = ("wva_desired_replicas", "inferno_desired_replicas")
    """Metric names beside stoker_desired_replicas, which existing autoscalers' manifests look for."""
    variant_name: Annotated[str, AfterValidator(_template)] = "{server}"
    """The label variant_name of those, which such manifests set to the name of what is scaled."""
    namespace: str = ""
    """Their label namespace."""


class MetricsTarget:
    """Shows what every server is asked to have; an autoscaler carries it out in its own time.

    So what it writes there is nobody's interference, and is not watched for.
    """

    name: ClassVar[str] = "metrics"
    Settings: ClassVar[type[BaseModel]] = MetricsSettings
    writes: ClassVar[bool] = True

    def __init__(self, settings: MetricsSettings) -> None:
        self.desired = DesiredReplicas(settings.aliases, settings.variant_name, settings.namespace)

    async def apply(
        self, server: str, scales: Sequence[VariantScale], inventory: InventoryObserved
    ) -> Applied | Failed:
        if not self.desired.knows(server):
            return Failed(FailureReason.NOT_FOUND, f"server {server!r} is not declared")
        return Applied(self.desired.show(server, scales), owned=False)

    async def close(self) -> None:
        return None
