"""Rules about how many replicas: deadband, how fast up, declared limits."""

from math import ceil
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.decision import Verdict
from schemas.plan import ServerStatus
from services.actuator.gate import Case, Ruling, Target, accelerators, needed_replicas, resized, total

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
_PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]


class DeadbandSettings(BaseModel):
    """Settings of the deadband."""

    model_config = _CONFIG

    up_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Hold while what is needed is above what is there by no more than this share; small, for it costs service."""
    down_share: Annotated[float, Field(ge=0, lt=1)] = 0.10
    """Hold while what is needed is below what is there by no more than this share."""


class Deadband:
    """What is needed is close to what is there: hold. The bands differ up and down, which is the hysteresis."""

    name: ClassVar[str] = "deadband"
    Settings: ClassVar[type[BaseModel]] = DeadbandSettings

    def __init__(self, settings: DeadbandSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        current, needed = total(case.current), needed_replicas(case.plan)
        if needed is None or not current or accelerators(target) != accelerators(case.current):
            return None
        if case.plan.status is ServerStatus.DEGRADED:
            return None  # It gets less than it needs: what is needed says nothing about what it may keep.
        low, high = current * (1 - self._settings.down_share), current * (1 + self._settings.up_share)
        if not low <= needed <= high or total(target) == current:
            return None
        reason = f"{needed:.2f} replicas are needed and {current} are there: within the deadband"
        return Ruling(resized(target, current, case.current), Verdict.HOLD, reason)


class UpSettings(BaseModel):
    """Settings of the rule for steps up."""

    model_config = _CONFIG

    step_share: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Largest step as a share of what is there; more needs a second recommendation."""
    step_replicas: Annotated[int, Field(ge=1)] = 4
    """Largest step for small servers."""
    most_replicas: Annotated[int, Field(ge=1)] = 8
    """Largest step of all in one cycle."""
    agree_within_s: _PositiveSeconds = 120.0
    """Control seconds within which an earlier recommendation counts as the second one."""


class Up:
    """Up at once, but a leap beyond the step share needs two recommendations, and each cycle has its largest step."""

    name: ClassVar[str] = "up"
    Settings: ClassVar[type[BaseModel]] = UpSettings

    def __init__(self, settings: UpSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        current, wanted = total(case.current), total(target)
        if not current or wanted <= current or accelerators(target) != accelerators(case.current):
            return None
        settings = self._settings
        alone = current + max(1, ceil(current * settings.step_share))
        earlier = [n for at, n in case.memory.recommended if at > case.now_s - settings.agree_within_s]
        agreed = max(alone, min(wanted, earlier[-1])) if earlier else alone
        step = min(max(ceil(current * settings.step_share), settings.step_replicas), settings.most_replicas)
        allowed = min(agreed, current + step)
        if wanted <= allowed:
            return None
        why = "one recommendation alone" if agreed < current + step else "one cycle"
        reason = f"{current} to {wanted} is more than {why} may add; {allowed} now"
        return Ruling(resized(target, allowed, case.current), Verdict.CLAMP, reason)


class LimitsSettings(BaseModel):
    """Nothing to set: a server declares its own limits."""

    model_config = _CONFIG


class Limits:
    """The server's own minimum and maximum."""

    name: ClassVar[str] = "limits"
    Settings: ClassVar[type[BaseModel]] = LimitsSettings

    def __init__(self, settings: LimitsSettings) -> None:
        del settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        wanted, lowest, highest = total(target), case.server.min_replicas, case.server.max_replicas
        allowed = max(wanted, lowest) if highest is None else min(max(wanted, lowest), highest)
        if allowed == wanted:
            return None
        base = (
            target
            if total(target)
            else (case.current if total(case.current) else case.plan.allocations or case.current)
        )
        if not base:
            return None
        word = "fewest" if allowed > wanted else "most"
        reason = f"{allowed} is the {word} replicas allowed, {wanted} were asked for"
        return Ruling(resized(base, allowed), Verdict.CLAMP, reason)
