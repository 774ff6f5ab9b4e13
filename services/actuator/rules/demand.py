"""Rules about demand as it is measured: more than the plan knows of, none at all, and the first after none."""

from math import ceil
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.base import Quality
from schemas.decision import Verdict
from schemas.plan import Allocation
from services.actuator.gate import Case, Ruling, Target, needed_replicas, resized, total

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PanicSettings(BaseModel):
    """Settings of the panic rule."""

    model_config = _CONFIG

    demand_ratio: Annotated[float, Field(gt=1, le=100)] = 2.0
    """Measured over planned rate from which the plan is overtaken."""
    measured_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Control seconds that a window may have ended ago to speak of demand now."""
    most_replicas: Annotated[int, Field(ge=1)] = 8
    """Largest step up in one cycle."""
    hold_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Control seconds without less after a panic, or the learned start-up time if longer."""


class Panic:
    """Demand has overtaken the plan: up at once to what it takes, and nothing taken away for a while."""

    name: ClassVar[str] = "panic"
    Settings: ClassVar[type[BaseModel]] = PanicSettings

    def __init__(self, settings: PanicSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        settings, current = self._settings, total(case.current)
        planned, measured = case.plan.inputs.rate_rps, self._measured_rps(case)
        needed = needed_replicas(case.plan)
        if planned and measured and needed and measured >= settings.demand_ratio * planned:
            figures = {"measured_rate_rps": measured}
            wanted = min(ceil(needed * measured / planned), max(current, 1) + settings.most_replicas)
            reason = f"{measured:.3g} requests/s arrive and {planned:.3g} were planned for: up at once"
            enough = max(wanted, total(target), current)
            base = target if total(target) else case.current
            return Ruling(resized(base, enough), Verdict.CLAMP, reason, None, figures, panics=True)
        if case.memory.panicked_at_s is None:
            return None
        until_s = case.memory.panicked_at_s + max(settings.hold_s, case.startup_s)
        if case.now_s >= until_s or total(target) >= current:
            return None
        return Ruling(case.current, Verdict.HOLD, "demand overtook the plan lately: nothing goes", until_s)

    def _measured_rps(self, case: Case) -> float | None:
        window = case.telemetry
        if window is None or window.quality in (Quality.MISSING, Quality.STALE):
            return None
        return (
            window.offered_rate_rps if case.now_s - window.window_end_s <= self._settings.measured_s else None
        )


class ZeroSettings(BaseModel):
    """Settings of the rule about zero replicas."""

    model_config = _CONFIG

    allowed: bool = False
    """Whether a server whose minimum is 0 may go to zero replicas."""
    idle_s: Annotated[float, Field(ge=0, le=604_800)] = 300.0
    """Control seconds without a request before the last replica goes."""


class Zero:
    """The last replica goes only where that is allowed twice and nothing was asked for long; arrivals wake it."""

    name: ClassVar[str] = "zero"
    Settings: ClassVar[type[BaseModel]] = ZeroSettings

    def __init__(self, settings: ZeroSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        if total(target):
            return None
        return self._keep(case) if total(case.current) else self._wake(case, target)

    def _keep(self, case: Case) -> Ruling | None:
        last = resized(case.current, 1)
        if not self._settings.allowed or case.server.min_replicas:
            return Ruling(last, Verdict.CLAMP, "zero replicas are not allowed here; the last one stays")
        if pending := sum(v.pending for v in case.inventory.variants):
            return Ruling(last, Verdict.CLAMP, f"{pending} replicas are loading; the last one stays")
        since_s = case.memory.idle_since_s
        if since_s is None:
            return Ruling(last, Verdict.CLAMP, "nobody knows it to be idle; the last one stays")
        until_s = since_s + self._settings.idle_s
        if case.now_s >= until_s:
            return None
        reason = f"idle for {case.now_s - since_s:.0f} of {self._settings.idle_s:.0f} s; the last one stays"
        return Ruling(last, Verdict.CLAMP, reason, until_s)

    @staticmethod
    def _wake(case: Case, target: Target) -> Ruling | None:
        window = case.telemetry
        if window is None or not (window.offered_rate_rps or window.waiting):
            return None
        # Where neither plan nor target names an accelerator, the one that served it last is still a variant.
        known = target or tuple(
            Allocation(accelerator=v.accelerator, replicas=0, max_batch=v.max_batch)
            for v in case.inventory.variants
            if v.max_batch is not None
        )
        if not known:
            return None
        return Ruling(resized(known[:1], 1), Verdict.CLAMP, "requests arrive and nothing serves them: woken")
