"""Rules about whether the plan may be acted upon at all."""

from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.base import Quality
from schemas.decision import Verdict
from services.actuator.gate import Case, Memory, Ruling, Target

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Day(StrEnum):
    """Days of the week, in their order."""

    MONDAY = "mon"
    TUESDAY = "tue"
    WEDNESDAY = "wed"
    THURSDAY = "thu"
    FRIDAY = "fri"
    SATURDAY = "sat"
    SUNDAY = "sun"


class NoSettings(BaseModel):
    """Nothing to set."""

    model_config = _CONFIG


class Opinion:
    """A plan without allocations has no opinion: hold."""

    name: ClassVar[str] = "opinion"
    Settings: ClassVar[type[BaseModel]] = NoSettings

    def __init__(self, settings: NoSettings) -> None:
        del settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        if case.plan.allocations is not None:
            return None
        reason = (
            f"{case.plan.status.value}: {case.plan.explanation}"
            if case.plan.explanation
            else case.plan.status.value
        )
        return Ruling(case.current, Verdict.HOLD, reason)


class Pause:
    """A server that is paused, by its declaration, an annotation or on request, is only advised."""

    name: ClassVar[str] = "pause"
    Settings: ClassVar[type[BaseModel]] = NoSettings

    def __init__(self, settings: NoSettings) -> None:
        del settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        if not (case.paused or case.server.paused or case.inventory.paused):
            return None
        return Ruling(case.current, Verdict.REJECT, "paused: the plan is advice only", advice_only=True)


class BlackoutHours(BaseModel):
    """Hours in which nothing is changed, in UTC."""

    model_config = _CONFIG

    begins: time
    """When it begins, for example 22:00."""
    ends: time
    """When it ends; at or before its begin it is of the day after."""
    days: Annotated[frozenset[Day], Field(min_length=1)] = frozenset(Day)
    """Days on which it begins."""
    servers: frozenset[str] | None = None
    """Servers that it is for; all when absent."""

    def ends_s(self, now_s: float) -> float | None:
        """When the blackout that `now_s` (Unix seconds) lies in ends; None outside of one."""
        now = datetime.fromtimestamp(now_s, UTC)
        for day in (now.date() - timedelta(days=1), now.date()):
            begins = datetime.combine(day, self.begins, UTC)
            ends = datetime.combine(day + timedelta(days=self.ends <= self.begins), self.ends, UTC)
            if list(Day)[day.weekday()] in self.days and begins <= now < ends:
                return ends.timestamp()
        return None


class BlackoutSettings(BaseModel):
    """Settings of the blackout rule."""

    model_config = _CONFIG

    hours: tuple[BlackoutHours, ...] = ()
    """When nothing is changed."""


class Blackout:
    """Within a blackout a server is only advised."""

    name: ClassVar[str] = "blackout"
    Settings: ClassVar[type[BaseModel]] = BlackoutSettings

    def __init__(self, settings: BlackoutSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        ends = [
            end_s
            for one in self._settings.hours
            if (one.servers is None or case.server.name in one.servers)
            and (end_s := one.ends_s(case.now_s)) is not None
        ]
        if not ends:
            return None
        reason = "blackout: the plan is advice only"
        return Ruling(case.current, Verdict.REJECT, reason, max(ends), advice_only=True)


class OwnershipSettings(BaseModel):
    """Settings of the ownership rule."""

    model_config = _CONFIG

    settle_s: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """Control seconds after our own write before an inventory that differs from it speaks of another writer."""
    autoscaled: bool = False
    """Whether autoscalers are meant to set the replicas, from what the target tells them; else they are others."""


class Ownership:
    """Another writer changed the target (an autoscaler, a person): leave it alone until resumed."""

    name: ClassVar[str] = "ownership"
    Settings: ClassVar[type[BaseModel]] = OwnershipSettings

    def __init__(self, settings: OwnershipSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        scaled = [f"{v.autoscaler} on {v.accelerator}" for v in case.inventory.variants if v.autoscaler]
        if scaled and not self._settings.autoscaled:
            reason = f"its replicas are set by {', '.join(scaled)}; advice only while it is there"
            return Ruling(case.current, Verdict.REJECT, reason, advice_only=True)
        foreign = foreign_replicas(case, self._settings.settle_s)
        if foreign is None:
            return None
        found = ", ".join(f"{n}×{a}" for a, n in sorted(foreign.items()) if n) or "none"
        ours = ", ".join(f"{n}×{a}" for a, n in sorted(case.memory.written.items()) if n) or "none"
        reason = f"another writer set {found} where {ours} was written; advice only until `actuator.resume`"
        return Ruling(case.current, Verdict.REJECT, reason, advice_only=True)


def foreign_replicas(case: Case, settle_s: float) -> dict[str, int] | None:
    """Replicas by accelerator as another writer set them, or nothing when they are our own."""
    memory = case.memory
    if memory.written_at_s is None or case.inventory.observed_at_s < memory.written_at_s + settle_s:
        return None
    if case.inventory.quality is not Quality.OK:
        return None
    desired = {v.accelerator: v.desired for v in case.inventory.variants}
    names = desired.keys() | memory.written.keys() | memory.intended.keys()
    ours = all(
        desired.get(name, 0) in (memory.written.get(name, 0), memory.intended.get(name, 0))
        or was_handed_over(memory, name, desired.get(name, 0))
        for name in names
    )
    return None if ours else desired


def was_handed_over(memory: Memory, accelerator: str, replicas: int) -> bool:
    """Whether a count is what the target was last given, or a step down to it, as disruption budgets allow."""
    intended = memory.intended.get(accelerator)
    if intended is None:
        return False
    return intended <= replicas <= max(intended, memory.written.get(accelerator, 0))


class FreshnessSettings(BaseModel):
    """Settings of the freshness rule."""

    model_config = _CONFIG

    telemetry_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """Control seconds after which a window no longer allows less capacity; four cycles of 30 s."""
    reporting_share: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the replicas that must have reported before anything is taken away: the rest may be the busy ones."""
    inventory_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Control seconds after which an inventory says nothing about what the server has."""


class Freshness:
    """On doubt never less: missing or stale measurements hold what would take replicas away or move them.

    Without a good inventory nothing is written at all, for nobody knows what a count would replace.
    """

    name: ClassVar[str] = "freshness"
    Settings: ClassVar[type[BaseModel]] = FreshnessSettings

    def __init__(self, settings: FreshnessSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        inventory_age_s = case.now_s - case.inventory.observed_at_s
        quality = case.inventory.quality
        if quality is not Quality.OK or inventory_age_s > self._settings.inventory_s:
            reason = f"the inventory is {quality.value} and {inventory_age_s:.0f} s old"
            return Ruling(case.current, Verdict.HOLD, reason, advice_only=True)
        if case.plan.expires_at_s < case.now_s:
            late_s = case.now_s - case.plan.expires_at_s
            return Ruling(case.current, Verdict.HOLD, f"the plan expired {late_s:.0f} s ago")
        doubt = self._doubt(case)
        counts = {a.accelerator: a.replicas for a in target}
        less = any(counts.get(a.accelerator, 0) < a.replicas for a in case.current)
        if doubt is None or not less:
            return None
        return Ruling(case.current, Verdict.HOLD, f"{doubt}: nothing is taken away")

    def _doubt(self, case: Case) -> str | None:
        window = case.telemetry
        if window is None:
            return "nothing was measured yet"
        if window.quality in (Quality.MISSING, Quality.STALE):
            return f"telemetry is {window.quality.value}"
        age_s = case.now_s - window.window_end_s
        if age_s > self._settings.telemetry_s:
            return f"telemetry is {age_s:.0f} s old"
        if window.reporting_share < self._settings.reporting_share:
            return f"only {window.reporting_share:.0%} of the replicas reported"
        return None
