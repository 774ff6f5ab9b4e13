"""Rules about replicas that are asked for and not there: still starting, overdue, or lost."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.decision import Verdict
from services.actuator.gate import (
    Case,
    Ruling,
    Target,
    accelerators,
    needed_replicas,
    resized,
    total,
    with_replicas,
)

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SupplySettings(BaseModel):
    """Nothing to set: how long a replica may take to come is learned, and bounded for the whole gate."""

    model_config = _CONFIG


class Supply:
    """What is starting counts as there: more waits while it covers the demand; what is overdue is released."""

    name: ClassVar[str] = "supply"
    Settings: ClassVar[type[BaseModel]] = SupplySettings

    def __init__(self, settings: SupplySettings) -> None:
        del settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        return self._overdue(case, target) or self._starting(case, target)

    def _overdue(self, case: Case, target: Target) -> Ruling | None:
        ready = {v.accelerator: v.ready for v in case.inventory.variants}
        released = {name: at for name, at in case.memory.released.items() if at > case.now_s}
        kept = tuple(
            with_replicas(a, min(a.replicas, ready.get(a.accelerator, 0))) if a.accelerator in released else a
            for a in target
        )
        if not total(kept) and total(target):
            # With nothing left to serve from, one goes on waiting: it may come, and nothing else would.
            kept = resized(target, 1)
        less = sorted(a.accelerator for a, b in zip(target, kept, strict=True) if b.replicas < a.replicas)
        if not less:
            return None
        until_s = min((released[name] for name in less if name in released), default=None)
        reason = f"replicas on {', '.join(less)} did not come in time: released, and not asked for again yet"
        return Ruling(kept, Verdict.CLAMP, reason, until_s, {"overdue_accelerators": float(len(released))})

    @staticmethod
    def _starting(case: Case, target: Target) -> Ruling | None:
        if total(target) <= total(case.current) or accelerators(target) != accelerators(case.current):
            return None
        needed = needed_replicas(case.plan)
        ready = sum(v.ready for v in case.inventory.variants)
        pending = sum(v.pending for v in case.inventory.variants)
        if needed is None or not pending or needed > ready + pending:
            return None
        if total(target) > total(case.plan.allocations or ()):
            return (
                None  # More than planned was asked for by what is measured, of which the plan knows nothing.
            )
        reason = f"{needed:.2f} replicas are needed; {ready} are ready and {pending} are starting"
        figures = {"ready_replicas": float(ready), "pending_replicas": float(pending)}
        held = resized(target, total(case.current), case.current)
        return Ruling(held, Verdict.HOLD, reason, evidence=figures)


class EmergencySettings(BaseModel):
    """Settings of the emergency rule."""

    model_config = _CONFIG

    settle_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Control seconds after our own write before a replica that is neither ready nor starting counts as lost."""
    passes: frozenset[str] = frozenset({"move", "deadband", "up"})
    """Rules that what makes up for lost capacity passes."""


class Emergency:
    """Capacity was lost: what the plan puts in its place waits for no dwell, saving, deadband or agreement."""

    name: ClassVar[str] = "emergency"
    Settings: ClassVar[type[BaseModel]] = EmergencySettings

    def __init__(self, settings: EmergencySettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        lost = self._lost(case)
        wanted = {a.accelerator: a.replicas for a in target}
        held = {a.accelerator: a.replicas for a in case.current}
        if not lost or not any(n > held.get(name, 0) for name, n in wanted.items()):
            return None
        names = ", ".join(f"{n}×{name}" for name, n in sorted(lost.items()))
        figures = {"lost_replicas": float(sum(lost.values()))}
        excuses = self._settings.passes
        if total(target) > total(case.current) + sum(lost.values()):
            excuses -= {"up"}  # More than was lost is a leap like any other.
        reason = f"{names} of what was asked for is lost: what replaces it is not held back"
        return Ruling(target, Verdict.ALLOW, reason, None, figures, excuses=excuses)

    def _lost(self, case: Case) -> dict[str, int]:
        """Replicas by accelerator that are asked for and neither serve nor start, or are overdue."""
        since_s, memory = case.inventory.observed_at_s - self._settings.settle_s, case.memory
        if memory.written_at_s is not None and memory.written_at_s > since_s:
            return {}
        lost = {
            v.accelerator: v.desired - v.ready - (0 if self._is_released(case, v.accelerator) else v.pending)
            for v in case.inventory.variants
        }
        return {name: n for name, n in lost.items() if n > 0}

    @staticmethod
    def _is_released(case: Case, accelerator: str) -> bool:
        return case.memory.released.get(accelerator, case.now_s) > case.now_s
