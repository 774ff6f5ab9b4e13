"""How the optimizer plans: the settings of its core, apart from those of a process."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from schemas.base import Name

PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]


class OptimizerSettings(BaseModel):
    """How the optimizer plans."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    solver: Name | None = None
    """Name of the solver plug-in; by default the one that the fleet's options name."""
    performance_model: Name = "interference"
    """Name of the queueing model that sizes candidates; the default knows percentiles, long prompts and KV memory."""
    debounce_s: Annotated[float, Field(ge=0, le=60)] = 0.05
    """Quiet time on the wall clock, in seconds, after an input before planning; one burst makes one plan."""
    max_wait_s: Annotated[float, Field(ge=0, le=600)] = 0.5
    """Longest time on the wall clock, in seconds, that inputs which keep coming put off a plan."""
    plan_lifetime_s: PositiveSeconds = 90.0
    """Seconds until a plan must no longer be acted upon; three control cycles of 30 s, so two may fail."""
    telemetry_stale_after_s: PositiveSeconds = 120.0
    """Seconds after its end that a window still tells the load; four windows of 30 s."""
    forecast_stale_after_s: PositiveSeconds = 300.0
    """Seconds after its issue that a forecast still tells the load; about the shortest lead time."""
    capacity_stale_after_s: PositiveSeconds = 300.0
    """Seconds that observed capacity goes before declared capacity; nodes change more slowly than load."""
