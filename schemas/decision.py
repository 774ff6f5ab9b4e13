"""What is decided for a server after the stability gate: the stream that outside consumers follow."""

from enum import StrEnum

from pydantic import Field

from schemas.base import Contract, Count, Name, Seconds, UnixSeconds
from schemas.plan import Allocation, Explanation


class Verdict(StrEnum):
    """What the gate did with the plan's target."""

    ALLOW = "allow"
    CLAMP = "clamp"
    HOLD = "hold"
    REJECT = "reject"


class DecisionMade(Contract):
    """One decision on one server, refusals included."""

    server: Name
    """The server."""
    generation: Count
    """Generation of the plan that it answers."""
    decided_at_s: UnixSeconds
    """When it was made."""
    current: tuple[Allocation, ...]
    """What the server was asked to have before."""
    raw: tuple[Allocation, ...] | None = None
    """What the plan proposes; absent when it has no opinion."""
    gated: tuple[Allocation, ...]
    """What the server is asked to have now."""
    verdict: Verdict
    """What the gate did."""
    rule: Name
    """The rule that decided."""
    reason: Explanation
    """Why, in words."""
    until_s: UnixSeconds | None = None
    """Until when the rule goes on to hold, if it knows."""
    evidence: dict[Name, float] = Field(default_factory=dict)
    """Figures that the rule looked at, by name with unit."""
    input_age_s: Seconds | None = None
    """Age of the newest telemetry behind the decision."""
    dry_run: bool = False
    """Whether the target only reports what it would do."""
