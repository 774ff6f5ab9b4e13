"""Rules about how many replicas: deadband, how fast up, how slowly down, reversals, declared limits."""

from math import ceil
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.decision import Verdict
from schemas.plan import Prediction, ServerStatus
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


class DownSettings(BaseModel):
    """Settings of the rule for steps down."""

    model_config = _CONFIG

    window_s: _PositiveSeconds = 300.0
    """Control seconds over which the largest recommendation counts, or the learned start-up time if longer."""
    step_share: Annotated[float, Field(gt=0, le=1)] = 0.25
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
        since_s = case.now_s - window_s
        recent = [(at, n) for at, n in case.memory.recommended if at > since_s]
        floor = max((n for _, n in recent), default=wanted)
        # Before a whole window was seen nobody knows what the largest recommendation would have been.
        watched_since_s = self._watched_since_s(case, window_s)
        if watched_since_s > since_s + window_s * 0.1:
            until_s = watched_since_s + window_s
            reason = f"recommendations are watched for {case.now_s - watched_since_s:.0f} of {window_s:.0f} s"
            return Ruling(self._at(case, current), Verdict.HOLD, reason, until_s)
        spare = wanted if self._has_margin(case, case.plan.predicted) else wanted + 1
        lowest = max(floor, spare, step)
        if lowest <= wanted:
            return None
        if lowest >= current:
            high = [at for at, n in recent if n >= current]
            if high:
                until_s = high[-1] + window_s
                reason = f"{floor} replicas were recommended within the last {window_s:.0f} s"
                return Ruling(self._at(case, current), Verdict.HOLD, reason, until_s)
            reason = f"{wanted} replicas would leave less than the margin to the objectives"
            return Ruling(self._at(case, current), Verdict.HOLD, reason)
        reason = f"{current} to {wanted} goes by steps and not below the last {window_s:.0f} s; {lowest} now"
        return Ruling(self._at(case, lowest, target), Verdict.CLAMP, reason)

    @staticmethod
    def _at(case: Case, replicas: int, target: Target | None = None) -> Target:
        return resized(target if target is not None and total(target) else case.current, replicas)

    @staticmethod
    def _watched_since_s(case: Case, window_s: float) -> float:
        """Since when recommendations have come without a gap as long as the window."""
        since_s = case.now_s
        for at, _ in reversed(case.memory.recommended):
            if since_s - at > window_s:
                break
            since_s = at
        return since_s

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
    """Reversals of direction allowed within the period."""
    period_s: _PositiveSeconds = 3600.0
    """Control seconds over which reversals count, and for which down is then frozen."""


class Flap:
    """Too many reversals: down is frozen, up stays free, and so do moves and what a lack of capacity takes."""

    name: ClassVar[str] = "flap"
    Settings: ClassVar[type[BaseModel]] = FlapSettings

    def __init__(self, settings: FlapSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        if total(target) >= total(case.current) or case.plan.status is ServerStatus.DEGRADED:
            return None
        if total(target) and accelerators(target) != accelerators(case.current):
            return None
        budget, period_s = self._settings.reversals, self._settings.period_s
        turned = case.memory.reversals
        used_up = [
            last
            for first, last in zip(turned, turned[budget - 1 :], strict=False)
            if last - first <= period_s and case.now_s < last + period_s
        ]
        if not used_up:
            return None
        until_s = used_up[-1] + period_s
        reason = f"{budget} reversals within {period_s:.0f} s: down is frozen"
        return Ruling(case.current, Verdict.HOLD, reason, until_s, {"reversals": float(len(turned))})


class LimitsSettings(BaseModel):
    """Settings of the declared limits."""

    model_config = _CONFIG

    zero: bool = False
    """Whether a server whose minimum is 0 may go to zero replicas."""


class Limits:
    """The server's own minimum and maximum; zero replicas only where that is allowed twice."""

    name: ClassVar[str] = "limits"
    Settings: ClassVar[type[BaseModel]] = LimitsSettings

    def __init__(self, settings: LimitsSettings) -> None:
        self._settings = settings

    def judge(self, case: Case, target: Target) -> Ruling | None:
        wanted = total(target)
        lowest = case.server.min_replicas
        if lowest == 0 and not self._settings.zero and total(case.current):
            lowest = 1
        highest = case.server.max_replicas
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
