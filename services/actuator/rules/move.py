"""The rule about moves: another accelerator, another batch limit, another split."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.decision import Verdict
from schemas.plan import ServerStatus
from services.actuator.gate import Case, Ruling, Target, accelerators, total

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MoveSettings(BaseModel):
    """Settings of the move rule."""

    model_config = _CONFIG

    saving_share: Annotated[float, Field(ge=0, lt=1)] = 0.10
    """Least saving of cost, as a share, that is worth a move."""
    saved_over_disturbed: Annotated[float, Field(ge=0)] = 0.5
    """Least share of cost saved over share of replicas disturbed."""
    dwell_s: Annotated[float, Field(ge=0, le=604_800)] = 1800.0
    """Control seconds that a server stays where it was moved to."""
    batch_share: Annotated[float, Field(ge=0)] = 0.10
    """Change of a batch limit, as a share, up to which the limit in force is kept."""


class Move:
    """A move must pay and may not follow soon upon another; when what is there fails, it is free."""

    name: ClassVar[str] = "move"
    Settings: ClassVar[type[BaseModel]] = MoveSettings

    def __init__(self, settings: MoveSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        if not total(case.current) or not total(target):
            return None
        fails = case.plan.predicted_current is None or not case.plan.predicted_current.objectives_met
        if accelerators(target) == accelerators(case.current):
            return self._batch(case, target, fails)
        if fails:
            return None
        reason, until_s = self._objection(case, target)
        if reason is None:
            return None
        return Ruling(case.current, Verdict.HOLD, reason, until_s)

    def _objection(self, case: Case, target: Target) -> tuple[str | None, float | None]:
        settings = self._settings
        if (until_s := self._dwells_until_s(case)) is not None:
            return f"it moved lately and stays {settings.dwell_s:.0f} s", until_s
        before = sum(a.cost_per_hour for a in case.current)
        after = sum(a.cost_per_hour for a in target)
        saving = (before - after) / before if before > 0 else 0.0
        kept = {a.accelerator: a.replicas for a in target}
        disturbed = sum(max(0, a.replicas - kept.get(a.accelerator, 0)) for a in case.current)
        share = disturbed / total(case.current)
        if saving < settings.saving_share or (share and saving / share < settings.saved_over_disturbed):
            to = "+".join(sorted(accelerators(target)))
            return f"moving {share:.0%} of the replicas to {to} would save only {saving:.0%}", None
        return None, None

    def _dwells_until_s(self, case: Case) -> float | None:
        """Until when it stays what it was changed to, or nothing when that is over."""
        if case.memory.moved_at_s is None:
            return None
        until_s = case.memory.moved_at_s + self._settings.dwell_s
        return until_s if case.now_s < until_s else None

    def _batch(self, case: Case, target: Target, fails: bool) -> Ruling | None:
        """Keep the batch limit in force when the new one is close to it, or was changed lately."""
        held = {a.accelerator: a.max_batch for a in case.current if a.replicas}
        kept = tuple(
            a.model_copy(update={"max_batch": held[a.accelerator]})
            if a.replicas and self._is_close(held[a.accelerator], a.max_batch)
            else a
            for a in target
        )
        changes = any(a.replicas and a.max_batch != held[a.accelerator] for a in kept)
        until_s = self._dwells_until_s(case)
        free = fails or case.plan.status is ServerStatus.DEGRADED or total(target) > total(case.current)
        # The size planned is for the batch limit planned: it must not be taken with another one.
        if changes and until_s is not None and not free:
            reason = f"it changed lately and keeps its batch limit for {self._settings.dwell_s:.0f} s"
            return Ruling(case.current, Verdict.HOLD, reason, until_s)
        if kept == target:
            return None
        return Ruling(kept, Verdict.CLAMP, "the batch limit in force is close enough")

    def _is_close(self, held: int, wanted: int) -> bool:
        return held != wanted and abs(wanted - held) <= self._settings.batch_share * held


class RollbackSettings(BaseModel):
    """Nothing to set: how long a replica may take to come is learned, and bounded for the whole gate."""

    model_config = _CONFIG


class Rollback:
    """A move whose new replicas do not come in time is taken back: what serves still is kept instead."""

    name: ClassVar[str] = "rollback"
    Settings: ClassVar[type[BaseModel]] = RollbackSettings

    def __init__(self, settings: RollbackSettings) -> None:
        del settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        late = accelerators(target) & case.overdue
        ready = {v.accelerator: v.ready for v in case.inventory.variants}
        left = tuple(
            a for a in case.held if a.accelerator not in accelerators(target) and ready[a.accelerator]
        )
        if not late or not left:
            return None
        came = tuple(a for a in target if a.accelerator not in late)
        reason = f"replicas on {', '.join(sorted(late))} did not come in time: the move is taken back"
        return Ruling((*came, *left), Verdict.CLAMP, reason)
