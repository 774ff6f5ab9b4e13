"""Loud facts that an operator should see."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.base import Contract, Name, UnixSeconds


class AlertKind(StrEnum):
    """What the alert is about; also the last token of its subject."""

    NO_SERIES = "no_series"
    UNKNOWN_SERVER = "unknown_server"
    STALE_DATA = "stale_data"
    PARTIAL_DATA = "partial_data"
    CAPACITY_SHORTFALL = "capacity_shortfall"
    OBJECTIVES_BURNING = "objectives_burning"
    FOREIGN_WRITER = "foreign_writer"
    PARAMETERS_SUSPECT = "parameters_suspect"
    FLEET_REFUSED = "fleet_refused"
    SOURCE_FAILED = "source_failed"
    VARIANT_CLAIMED_TWICE = "variant_claimed_twice"


class AlertRaised(Contract):
    """One alert, raised once when the fact begins and once more, resolved, when it ends."""

    kind: AlertKind
    """What it is about."""
    subject: Name
    """Whom it concerns: a server, an accelerator type, a source, or fleet."""
    resolved: bool = False
    """Whether the fact has ended."""
    message: Annotated[str, Field(max_length=4000)]
    """What happened and what would help."""
    raised_at_s: UnixSeconds
    """When."""
