"""What the target did with a decision."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.base import Contract, Count, Name, UnixSeconds
from schemas.plan import Allocation


class VariantScale(Contract):
    """Replicas asked of one variant of a server, while a move is under way also of the one it leaves."""

    accelerator: Name
    """The accelerator."""
    replicas: Count
    """Replicas asked for."""
    max_batch: Annotated[int, Field(ge=1)] | None = None
    """Batch limit asked for; absent leaves it as it is."""


class ActuationApplied(Contract):
    """A target took a decision."""

    server: Name
    """The server."""
    generation: Count
    """Generation of the decision."""
    target: Name
    """Plug-in that applied it."""
    asked: tuple[Allocation, ...]
    """What the decision asks for."""
    scaled: tuple[VariantScale, ...]
    """What was written, variant by variant."""
    changed: bool
    """Whether anything differed from what was there."""
    resource_version: Name | None = None
    """Version that the target reports."""
    applied_at_s: UnixSeconds
    """When."""


class FailureReason(StrEnum):
    """Why a target did not take a decision."""

    UNREACHABLE = "unreachable"
    CONFLICT = "conflict"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    UNSCHEDULABLE = "unschedulable"
    UNAUTHORIZED = "unauthorized"
    QUOTA = "quota"
    IMAGE = "image"
    NOT_READY = "not_ready"


class ActuationFailed(Contract):
    """A target did not take a decision; the next cycle tries again."""

    server: Name
    """The server."""
    generation: Count
    """Generation of the decision."""
    target: Name
    """Plug-in that failed."""
    asked: tuple[Allocation, ...]
    """What the decision asks for."""
    reason: FailureReason
    """Kind of failure."""
    message: Annotated[str, Field(max_length=4000)]
    """What the target said."""
    failed_at_s: UnixSeconds
    """When."""
