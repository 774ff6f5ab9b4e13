"""Rules about fewer replicas: how slowly down, and what reversals cost.

A replica that is taken away and wanted again within the time that it takes to start was never worth taking.
So a small fall waits until the whole window recommends it, and a steep one, which saves much for one change,
only until it has been seen for more than a cycle. On recorded recommendations that is fewer changes and fewer
reversals at fewer replica-hours than any plain window: `python -m benchmarks gate`.
"""

from math import ceil
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.decision import Verdict
from schemas.plan import Prediction, ServerStatus
from services.actuator.gate import Case, Ruling, Target, accelerators, resized, total

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
_PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]
_WATCHED_SHARE = 2 / 3
"""Share of a window that must have been watched; cycles do not fall on its first second."""


class DownSettings(BaseModel):
    """Settings of the rule for steps down."""

    model_config = _CONFIG

    window_s: _PositiveSeconds = 180.0
    """Control seconds over which the largest recommendation counts, or the learned start-up time if longer."""
    steep_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Fall, as a share of what is there, that does not wait for the whole window; above 1 in 4, below 1 in 3."""
    steep_window_s: _PositiveSeconds = 40.0
    """Control seconds over which the largest recommendation counts for such a fall; a cycle of 30 s and more."""
    steep_startup_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the learned start-up time that such a fall waits, if that is longer."""
    step_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest step down in one cycle as a share of what is there, at least one replica."""
    margin_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the objectives, or of the rate that just keeps them, that the smaller size must stay within."""


class Down:
    """Down slowly: to the largest recent recommendation, step by step, and only with a margin to the objectives."""

    name: ClassVar[str] = "down"
    Settings: ClassVar[type[BaseModel]] = DownSettings

    def __init__(self, settings: DownSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        current, wanted = total(case.current), total(target)
        if wanted >= current or (wanted and accelerators(target) != accelerators(case.current)):
            return None
        settings = self._settings
        step = current - max(1, int(current * settings.step_share))
        if case.plan.status is ServerStatus.DEGRADED:
            # A more important class needs the capacity now; waiting would not make this server better off.
            reason = f"{current} to {wanted} goes by steps; {step} now"
            return Ruling(self._at(case, step, target), Verdict.CLAMP, reason) if step > wanted else None
        window_s = max(settings.window_s, case.startup_s)
        steep_window_s = max(settings.steep_window_s, settings.steep_startup_share * case.startup_s)
        watched_s = self._watched_s(case, window_s)
        floor = self._largest(case, wanted, window_s, watched_s)
        steep = self._largest(case, wanted, steep_window_s, watched_s)
        if steep < floor and current - steep >= settings.steep_share * current:
            floor, window_s = steep, steep_window_s
        spare = wanted if self._has_margin(case, case.plan.predicted) else wanted + 1
        lowest = max(floor, spare, step)
        if lowest <= wanted:
            return None
        if lowest < current:
            reason = (
                f"{current} to {wanted} goes by steps and not below the last {window_s:.0f} s; {lowest} now"
            )
            return Ruling(self._at(case, lowest, target), Verdict.CLAMP, reason)
        if floor < current:
            reason = f"{wanted} replicas would leave less than the margin to the objectives"
            return Ruling(self._at(case, current), Verdict.HOLD, reason)
        high = [at for at, n in case.memory.recommended if at > case.now_s - window_s and n >= current]
        if high:
            reason = f"{current} replicas or more were recommended within the last {window_s:.0f} s"
            return Ruling(self._at(case, current), Verdict.HOLD, reason, high[-1] + window_s)
        reason = f"recommendations are watched for {watched_s:.0f} of {window_s:.0f} s"
        until_s = case.now_s - watched_s + _WATCHED_SHARE * window_s
        return Ruling(self._at(case, current), Verdict.HOLD, reason, until_s)

    @staticmethod
    def _at(case: Case, replicas: int, target: Target | None = None) -> Target:
        return resized(target if target is not None and total(target) else case.current, replicas)

    @staticmethod
    def _largest(case: Case, wanted: int, window_s: float, watched_s: float) -> int:
        """The largest recommendation of a window; what is there while too little of the window was watched."""
        if watched_s < _WATCHED_SHARE * window_s:
            return total(case.current)
        return max([wanted, *(n for at, n in case.memory.recommended if at > case.now_s - window_s)])

    @staticmethod
    def _watched_s(case: Case, window_s: float) -> float:
        """How long recommendations have come without a gap as long as the window."""
        since_s = case.now_s
        for at, _ in reversed(case.memory.recommended):
            if since_s - at > window_s:
                break
            since_s = at
        return case.now_s - since_s

    def _has_margin(self, case: Case, predicted: Prediction | None) -> bool:
        """Whether latencies, or the load where latencies have a high floor, leave the margin."""
        if predicted is None:
            return case.plan.inputs.rate_rps == 0
        if not predicted.objectives_met:
            return False
        margin, objective = self._settings.margin_share, case.objective
        latencies = [(predicted.ttft_s, objective.ttft_s), (predicted.itl_s, objective.itl_s)]
        within = all(value <= margin * limit for value, limit in latencies if limit is not None)
        return within or predicted.utilization_share <= margin


class FlapSettings(BaseModel):
    """Settings of the reversal budget."""

    model_config = _CONFIG

    reversals: Annotated[int, Field(ge=1)] = 2
    """Times within the period that replicas may be taken away and wanted again."""
    period_s: _PositiveSeconds = 3600.0
    """Control seconds over which reversals count, and for which down is then frozen."""
    steep_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Fall, as a share of what is there, that is free all the same: after a peak an hour at its size is waste."""


class Flap:
    """Too many reversals: small falls are frozen; up stays free, and so do steep falls, moves and a lack of cards."""

    name: ClassVar[str] = "flap"
    Settings: ClassVar[type[BaseModel]] = FlapSettings

    def __init__(self, settings: FlapSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        current, wanted = total(case.current), total(target)
        if wanted >= current or case.plan.status is ServerStatus.DEGRADED:
            return None
        if wanted and accelerators(target) != accelerators(case.current):
            return None
        budget, period_s = self._settings.reversals, self._settings.period_s
        turned = case.memory.reversals
        used_up = [
            last
            for first, last in zip(turned, turned[budget - 1 :], strict=False)
            if last - first <= period_s and case.now_s < last + period_s
        ]
        if not used_up or current - wanted >= ceil(self._settings.steep_share * current):
            return None
        until_s = used_up[-1] + period_s
        reason = f"{budget} reversals within {period_s:.0f} s: small falls are frozen"
        return Ruling(case.current, Verdict.HOLD, reason, until_s, {"reversals": float(len(turned))})
