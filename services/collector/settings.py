"""Settings of the collector."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from services.runtime.settings import RuntimeSettings


class CollectorSettings(BaseModel):
    """What to read, how often, and how long a reading is good for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cycle_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Control seconds from poll to poll; twice the scrape interval or more: a window needs a new sample."""
    sources: Annotated[tuple[str, ...], Field(min_length=1)] = ("prometheus",)
    """Sources by name; where two yield the same replica, inventory or accelerator type the first counts."""
    source_settings: dict[str, dict[str, Any]] = {}
    """Settings of each source by its name; each source says what it takes."""
    fleet: Path | None = None
    """File or directory that declares the fleet; nothing when another authority does it, as the operator may."""
    stale_after_s: Annotated[float, Field(gt=0, le=86_400)] = 90.0
    """Control seconds after which a sample is too old to act upon: three cycles, so that one may be lost."""
    forget_after_s: Annotated[float, Field(gt=0, le=604_800)] = 3600.0
    """Control seconds that a silent replica's counters are kept, to go on from when it is seen again."""
    startup_samples: Annotated[int, Field(ge=1, le=1000)] = 64
    """Newest start-ups kept of each model and accelerator: enough for a percentile, few enough to forget."""


class Settings(RuntimeSettings):
    """Settings of the collector's process."""

    collector: CollectorSettings = CollectorSettings()
    """What to read, how often, and how long a reading is good for."""
