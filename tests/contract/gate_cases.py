"""Cases for the stability gate: small ones to name by hand, and a Hypothesis strategy for all kinds of them."""

from typing import Any

from hypothesis import strategies as st

from schemas.base import Quality
from schemas.fleet import Objective, Server
from schemas.plan import Allocation, Inputs, PlanProposed, Prediction, ServerStatus
from schemas.telemetry import InventoryObserved, TelemetryObserved, VariantInventory
from services.actuator.gate import Case, Memory, Rule, Target, total
from services.actuator.rules.demand import Panic, Zero
from services.actuator.rules.down import Down, Flap
from services.actuator.rules.move import Move, Rollback
from services.actuator.rules.size import Deadband, Limits, Up
from services.actuator.rules.supply import Emergency, Supply
from services.actuator.rules.trust import Blackout, Freshness, Opinion, Ownership, Pause

NOW_S = 1_000_000.0
COST_PER_HOUR = {"A": 10.0, "B": 1.0}
BUILT_IN = (
    Opinion,
    Pause,
    Blackout,
    Ownership,
    Freshness,
    Emergency,
    Move,
    Deadband,
    Down,
    Up,
    Flap,
    Panic,
    Supply,
    Rollback,
    Zero,
    Limits,
)


def built_in_rules() -> list[Rule]:
    """The rules of the default order with their default settings."""
    return [rule(rule.Settings()) for rule in BUILT_IN]


def ask(max_batch: int = 64, **replicas: int) -> Target:
    """A target by accelerator."""
    return tuple(
        Allocation(accelerator=a, replicas=n, max_batch=max_batch, cost_per_hour=n * COST_PER_HOUR[a])
        for a, n in replicas.items()
    )


def predict(utilization_share: float = 0.5, objectives_met: bool = True, ttft_s: float = 0.1) -> Prediction:
    return Prediction(
        ttft_s=ttft_s,
        itl_s=0.01,
        wait_s=0,
        utilization_share=utilization_share,
        objectives_met=objectives_met,
    )


def propose(target: Target | None, **changes: Any) -> PlanProposed:
    """A plan for a target, or one without an opinion; what it does not say is as comfortable as can be."""
    said: dict[str, Any] = {
        "server": "s",
        "generation": 1,
        "status": ServerStatus.INFEASIBLE if target is None else ServerStatus.PLANNED,
        "allocations": target,
        "predicted": None if target is None else predict(),
        "predicted_current": predict(),
        "inputs": Inputs(fleet_revision="r", rate_rps=1.0),
        "issued_at_s": NOW_S,
        "expires_at_s": NOW_S + 90,
    }
    return PlanProposed(**said | changes)


def hold(
    target: Target, observed_at_s: float = NOW_S, quality: Quality = Quality.OK, **ready: int
) -> InventoryObserved:
    """An inventory of a target, all of it ready unless said otherwise."""
    variants = [
        VariantInventory(
            accelerator=a.accelerator,
            desired=a.replicas,
            ready=ready.get(a.accelerator, a.replicas),
            pending=max(0, a.replicas - ready.get(a.accelerator, a.replicas)),
            max_batch=a.max_batch,
        )
        for a in target
    ]
    return InventoryObserved(
        server="s", model="m", observed_at_s=observed_at_s, quality=quality, variants=tuple(variants)
    )


def measure(
    window_end_s: float = NOW_S, quality: Quality = Quality.OK, rate_rps: float | None = None
) -> TelemetryObserved:
    return TelemetryObserved(
        server="s",
        model="m",
        window_start_s=window_end_s - 30,
        window_end_s=window_end_s,
        quality=quality,
        offered_rate_rps=rate_rps,
        completed_rate_rps=rate_rps,
    )


def watch(replicas: int, for_s: float = 400.0, until_s: float = NOW_S) -> tuple[tuple[float, int], ...]:
    """The same recommendation every 30 s."""
    cycles = int(for_s // 30)
    return tuple((until_s - 30.0 * k, replicas) for k in range(cycles, 0, -1))


def case(
    current: Target, plan: PlanProposed | Target | None, server: dict[str, Any] | None = None, **changes: Any
) -> Case:
    """A case in which nothing stands against a plan, unless said otherwise."""
    said: dict[str, Any] = {
        "server": Server(name="s", model="m", service_class="c", **(server or {})),
        "objective": Objective(model="m", ttft_s=1.0),
        "plan": plan if isinstance(plan, PlanProposed) else propose(plan),
        "current": current,
        "inventory": hold(current),
        "telemetry": measure(),
        "memory": Memory(),
        "paused": False,
        "startup_s": 120.0,
        "now_s": NOW_S,
    }
    return Case(**said | changes)


_AGES_S = st.sampled_from((0.0, 10.0, 60.0, 121.0, 301.0, 2000.0))
_BATCHES = st.sampled_from((32, 60, 64))


def plan_for(needed: float, target: Target | None, **changes: Any) -> PlanProposed:
    """A plan whose figures follow from the replicas needed, before they are rounded up to its target."""
    if target is None:
        return propose(None, **changes)
    size = total(target)
    share = needed / size if size else None
    predicted = predict(share, share <= 1) if share is not None else None
    rate = Inputs(fleet_revision="r", rate_rps=needed)
    return propose(target, **{"predicted": predicted, "needed_share": share, "inputs": rate} | changes)


@st.composite
def targets(draw: st.DrawFn, names: str = "AB", most: int = 20) -> Target:
    """Nothing, replicas on one accelerator, or a mix."""
    chosen = draw(st.sets(st.sampled_from(names)))
    batch = draw(_BATCHES)
    return ask(batch, **{name: draw(st.integers(0, most)) for name in sorted(chosen)})


@st.composite
def memories(draw: st.DrawFn, current: Target) -> Memory:
    ages = draw(st.lists(st.integers(1, 7000), max_size=20))
    turns = draw(st.lists(st.integers(1, 7000), max_size=4))
    written_by = draw(st.sampled_from(("nobody", "us", "another")))
    counts = {a.accelerator: a.replicas for a in current}
    moved = draw(st.none() | _AGES_S)
    return Memory(
        recommended=tuple((NOW_S - age, draw(st.integers(0, 20))) for age in sorted(ages, reverse=True)),
        direction=draw(st.sampled_from((-1, 0, 1))),
        reversals=tuple(NOW_S - age for age in sorted(turns, reverse=True)),
        moved_at_s=None if moved is None else NOW_S - moved,
        asked=current,
        written={} if written_by == "nobody" else counts if written_by == "us" else counts | {"C": 1},
        written_at_s=None if written_by == "nobody" else NOW_S - 60,
        released=dict.fromkeys(draw(st.sets(st.sampled_from("AB"), max_size=1)), NOW_S + 300),
        panicked_at_s=draw(st.none() | st.sampled_from((NOW_S - 30, NOW_S - 90))),
        idle_since_s=draw(st.none() | st.just(NOW_S - 400)),
    )


@st.composite
def cases(draw: st.DrawFn, names: str = "AB") -> Case:
    """Any case at all: fresh and stale, paused and not, with and without an opinion, with any memory."""
    current, least = draw(targets(names)), draw(st.integers(0, 4))
    needed = draw(st.floats(0, 20))
    status = draw(st.sampled_from((ServerStatus.PLANNED, ServerStatus.DEGRADED, ServerStatus.NO_LOAD)))
    target = None if status is ServerStatus.NO_LOAD else draw(targets(names))
    plan = plan_for(
        needed,
        target,
        status=status,
        predicted_current=draw(st.sampled_from((None, predict(), predict(1.5, objectives_met=False)))),
        expires_at_s=NOW_S + draw(st.sampled_from((-1.0, 90.0))),
    )
    rates = st.sampled_from((None, 0.0, needed, 3 * needed))
    ends = _AGES_S.map(lambda s: NOW_S - s)
    window = draw(st.none() | st.builds(measure, ends, st.sampled_from(Quality), rates))
    seen = st.sampled_from((Quality.OK, Quality.OK, Quality.PARTIAL, Quality.MISSING))
    limits = {"min_replicas": least, "max_replicas": draw(st.none() | st.integers(max(1, least), 20))}
    return case(
        current,
        plan,
        limits | {"paused": draw(st.booleans()) and draw(st.booleans())},
        inventory=hold(
            current,
            NOW_S - draw(_AGES_S),
            draw(seen),
            **{a.accelerator: draw(st.integers(0, a.replicas)) for a in current if draw(st.booleans())},
        ),
        telemetry=window,
        memory=draw(memories(current)),
        paused=draw(st.booleans()) and draw(st.booleans()),
        startup_s=draw(st.sampled_from((0.0, 120.0, 900.0))),
    )
