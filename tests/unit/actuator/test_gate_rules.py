"""The rules about trust and moves, branch by branch, and how the gate sends a plan through its rules."""

from dataclasses import replace
from typing import Any

import pytest
from gate_cases import NOW_S, ask, built_in_rules, case, hold, measure, predict, propose
from gate_table import Row, check, table

from schemas.base import Quality
from schemas.decision import Verdict
from schemas.plan import ServerStatus
from schemas.telemetry import InventoryObserved, VariantInventory
from services.actuator.gate import (
    Case,
    Memory,
    Ruling,
    Target,
    pass_gate,
    remember,
    resized,
)
from services.actuator.rules.move import Move, MoveSettings, Rollback, RollbackSettings
from services.actuator.rules.trust import (
    Freshness,
    FreshnessSettings,
    NoSettings,
    Opinion,
    Ownership,
    OwnershipSettings,
    Pause,
)

NO_OPINION = None


@table(
    Row("a plan with a target passes", ask(A=3), ask(A=4), None),
    Row("a target of nothing is an opinion", ask(A=3), (), None),
    Row("a plan without a target holds", ask(A=3), NO_OPINION, ask(A=3)),
)
def test_opinion(row: Row) -> None:
    check(Opinion(NoSettings()), row)


@table(
    Row("an unpaused server passes", ask(A=3), ask(A=4), None),
    Row(
        "a server paused on request is advised only",
        ask(A=3),
        ask(A=4),
        ask(A=3),
        {"paused": True},
        advice_only=True,
    ),
    Row(
        "a server paused by declaration is advised only",
        ask(A=3),
        ask(A=4),
        ask(A=3),
        {"server": {"paused": True}},
        advice_only=True,
    ),
)
def test_pause(row: Row) -> None:
    check(Pause(NoSettings()), row)


def _wrote(settled_s: float = 60.0, intended: dict[str, int] | None = None, **written: int) -> Memory:
    return Memory(
        asked=ask(A=3), written=written, written_at_s=NOW_S - settled_s, intended=intended or dict(written)
    )


@table(
    Row("what nobody wrote is nobody's", ask(A=3), ask(A=4), None, {"inventory": hold(ask(A=5))}),
    Row("what shows as written is ours", ask(A=3), ask(A=4), None, {"memory": _wrote(A=3)}),
    Row(
        "another count is another writer's",
        ask(A=3),
        ask(A=4),
        ask(A=3),
        {"memory": _wrote(A=3), "inventory": hold(ask(A=5))},
        advice_only=True,
    ),
    Row(
        "replicas on an accelerator that was never asked for are another writer's",
        ask(A=3),
        ask(A=4),
        ask(A=3),
        {"memory": _wrote(A=3), "inventory": hold(ask(A=3, B=1))},
        advice_only=True,
    ),
    Row(
        "a variant that is gone is another writer's doing",
        ask(A=3),
        ask(A=4),
        ask(A=3),
        {"memory": _wrote(A=3), "inventory": hold(())},
        advice_only=True,
    ),
    Row(
        "a count that was handed over without an answer is ours",
        ask(A=3),
        ask(A=4),
        None,
        {"memory": _wrote(A=3, intended={"A": 5}), "inventory": hold(ask(A=5))},
    ),
    Row(
        "a step down to what was handed over is ours, for a disruption budget may allow no more",
        ask(A=5),
        ask(A=3),
        None,
        {"memory": _wrote(A=5, intended={"A": 3}), "inventory": hold(ask(A=4))},
    ),
    Row(
        "a step up to what was handed over is another writer's, for nothing bounds ours",
        ask(A=3),
        ask(A=5),
        ask(A=3),
        {"memory": _wrote(A=3, intended={"A": 5}), "inventory": hold(ask(A=4))},
        advice_only=True,
    ),
    Row(
        "an inventory from before the last write says nothing",
        ask(A=3),
        ask(A=4),
        None,
        {"memory": _wrote(settled_s=4.0, A=3), "inventory": hold(ask(A=5))},
    ),
    Row(
        "an inventory that is missing is not another writer",
        ask(A=3),
        ask(A=4),
        None,
        {"memory": _wrote(A=3), "inventory": hold((), quality=Quality.MISSING)},
    ),
    Row(
        "an inventory that lacks a variant is not another writer",
        ask(A=3),
        ask(A=4),
        None,
        {"memory": _wrote(A=3), "inventory": hold((), quality=Quality.PARTIAL)},
    ),
)
def test_ownership(row: Row) -> None:
    check(Ownership(OwnershipSettings()), row)


EXPIRED = {"expires_at_s": NOW_S - 1}


@table(
    Row("fresh measurements pass", ask(A=3), ask(A=2), None),
    Row("an expired plan holds, also up", ask(A=3), propose(ask(A=6), **EXPIRED), ask(A=3)),
    Row(
        "without measurements nothing is taken away",
        ask(A=3),
        ask(A=2),
        ask(A=3),
        {"telemetry": None},
    ),
    Row("without measurements more may come", ask(A=3), ask(A=4), None, {"telemetry": None}),
    Row(
        "without measurements a split stays", ask(A=3, B=3), ask(A=5, B=2), ask(A=3, B=3), {"telemetry": None}
    ),
    Row("without measurements nothing moves", ask(A=3), ask(B=9), ask(A=3), {"telemetry": None}),
    Row(
        "missing measurements hold",
        ask(A=3),
        ask(A=2),
        ask(A=3),
        {"telemetry": measure(quality=Quality.MISSING)},
    ),
    Row("stale ones hold", ask(A=3), ask(A=2), ask(A=3), {"telemetry": measure(quality=Quality.STALE)}),
    Row("partial ones pass", ask(A=3), ask(A=2), None, {"telemetry": measure(quality=Quality.PARTIAL)}),
    Row("old ones hold", ask(A=3), ask(A=2), ask(A=3), {"telemetry": measure(NOW_S - 121)}),
    Row("ones of four cycles ago pass", ask(A=3), ask(A=2), None, {"telemetry": measure(NOW_S - 120)}),
    Row(
        "an old inventory writes nothing",
        ask(A=3),
        ask(A=6),
        ask(A=3),
        {"inventory": hold(ask(A=3), NOW_S - 301)},
        advice_only=True,
    ),
    Row(
        "an expired plan over a missing inventory writes nothing",
        ask(A=3),
        propose(ask(A=6), **EXPIRED),
        ask(A=3),
        {"inventory": hold((), quality=Quality.MISSING)},
        advice_only=True,
    ),
    Row(
        "a missing inventory writes nothing",
        ask(A=3),
        ask(A=6),
        ask(A=3),
        {"inventory": hold((), quality=Quality.MISSING)},
        advice_only=True,
    ),
    Row(
        "an inventory that lacks a variant writes nothing",
        ask(A=3),
        ask(A=6),
        ask(A=3),
        {"inventory": hold((), quality=Quality.PARTIAL)},
        advice_only=True,
    ),
)
def test_freshness(row: Row) -> None:
    check(Freshness(FreshnessSettings()), row)


MOVED = {"memory": Memory(moved_at_s=NOW_S - 1799)}
FAILS = {"predicted_current": predict(1.2, objectives_met=False)}


@table(
    Row("a move that pays passes", ask(A=2), ask(B=4), None),
    Row("a move that saves too little holds", ask(A=2), ask(A=1, B=9), ask(A=2)),
    Row("a move that disturbs much for what it saves holds", ask(A=2), ask(B=11), ask(A=2)),
    Row("a move that costs more holds", ask(B=4), ask(A=2), ask(B=4)),
    Row("a move soon after another holds", ask(A=2), ask(B=4), ask(A=2), MOVED, until_s=NOW_S + 1),
    Row(
        "a move after the dwell passes", ask(A=2), ask(B=4), None, {"memory": Memory(moved_at_s=NOW_S - 1800)}
    ),
    Row("a move away from what fails is free", ask(B=4), propose(ask(A=2), **FAILS), None, MOVED),
    Row(
        "a move away from what is not known is free",
        ask(B=4),
        propose(ask(A=2), predicted_current=None),
        None,
    ),
    Row("a first placement is no move", (), ask(A=2), None, MOVED),
    Row("leaving altogether is no move", ask(A=2), (), None, MOVED),
    Row("a batch limit close to that in force is left", ask(64, A=2), ask(60, A=2), ask(64, A=2)),
    Row("replicas change under the batch limit in force", ask(64, A=2), ask(60, A=3), ask(64, A=3)),
    Row("a batch limit far from that in force passes", ask(64, A=2), ask(32, A=2), None),
    Row(
        "a batch limit that changed lately stays, with its replicas",
        ask(64, A=4),
        ask(128, A=2),
        ask(64, A=4),
        MOVED,
        until_s=NOW_S + 1,
    ),
    Row("a batch limit that comes with more replicas passes", ask(64, A=2), ask(32, A=3), None, MOVED),
    Row(
        "a batch limit is free when capacity is lacking",
        ask(64, A=2),
        propose(ask(32, A=1), status=ServerStatus.DEGRADED),
        None,
        MOVED,
    ),
    Row(
        "a batch limit is free when what is there fails",
        ask(64, A=2),
        propose(ask(32, A=2), **FAILS),
        None,
        MOVED,
    ),
)
def test_move(row: Row) -> None:
    check(Move(MoveSettings()), row)


class _Fixed:
    """A rule that always rules the same."""

    name = "fixed"

    def __init__(self, ruling: Ruling | None) -> None:
        self._ruling = ruling

    def judge(self, case: Case, target: Target) -> Ruling | None:
        return self._ruling


def test_a_plan_that_no_rule_objects_to_is_allowed_as_it_is() -> None:
    gated = pass_gate(case(ask(A=3), ask(A=4)), [_Fixed(None)])
    assert (gated.verdict, gated.rule, gated.target) == (Verdict.ALLOW, "plan", ask(A=4))


def test_the_last_rule_that_changed_the_target_is_named() -> None:
    rules = [
        _Fixed(Ruling(ask(A=5), Verdict.CLAMP, "first")),
        _Fixed(Ruling(ask(A=5), Verdict.CLAMP, "again")),
    ]
    gated = pass_gate(case(ask(A=3), ask(A=9)), rules)
    assert (gated.verdict, gated.reason) == (Verdict.CLAMP, "first")


def test_a_target_that_ends_as_what_is_held_is_a_hold() -> None:
    gated = pass_gate(case(ask(A=3), ask(A=9)), [_Fixed(Ruling(ask(A=3), Verdict.CLAMP, "all clamped"))])
    assert gated.verdict is Verdict.HOLD


def test_no_rule_is_asked_after_one_that_leaves_only_advice() -> None:
    paused = case(ask(A=1), ask(A=4), {"min_replicas": 2, "paused": True})
    gated = pass_gate(paused, built_in_rules())
    assert (gated.advice_only, gated.rule, gated.target) == (True, "pause", ask(A=1))


def test_a_mix_keeps_its_proportions_and_its_price() -> None:
    smaller = resized(ask(A=2, B=6), 4)
    assert smaller == ask(A=1, B=3)
    assert resized(ask(A=1, B=8), 4, held=ask(A=1, B=1)) == ask(A=1, B=3)
    assert resized(ask(A=0, B=0), 3) == tuple(
        a.model_copy(update={"cost_per_hour": 0.0}) for a in ask(A=2, B=1)
    )


def _memory_after(current: Target, gated: Target, **memory: Any) -> Memory:
    looked_at = case(current, gated, memory=Memory(**memory))
    return remember(looked_at, pass_gate(looked_at, []), keep_s=7200)


def test_what_was_taken_away_and_is_wanted_again_is_remembered_as_a_reversal() -> None:
    assert _memory_after(ask(A=4), ask(A=5), direction=-1).reversals == (NOW_S,)
    assert _memory_after(ask(A=4), ask(A=3), direction=1).reversals == ()
    assert _memory_after(ask(A=4), ask(A=5), direction=1).reversals == ()
    assert _memory_after(ask(A=4), ask(A=4), direction=1).direction == 1


@pytest.mark.parametrize("moved_to", [ask(B=2), ask(32, A=2)], ids=["accelerator", "batch_limit"])
def test_a_move_is_remembered_and_is_no_turn_of_direction(moved_to: Target) -> None:
    memory = _memory_after(ask(A=4), moved_to, direction=1)
    assert (memory.moved_at_s, memory.direction, memory.reversals) == (NOW_S, 1, ())


def test_a_first_placement_and_a_departure_are_no_moves() -> None:
    assert _memory_after((), ask(A=2)).moved_at_s is None
    assert _memory_after(ask(A=2), ()).moved_at_s is None


def test_recommendations_and_reversals_are_forgotten_in_time() -> None:
    old, young = NOW_S - 7200, NOW_S - 7199
    memory = _memory_after(ask(A=2), ask(A=2), recommended=((old, 1), (young, 1)), reversals=(old, young))
    assert (memory.recommended, memory.reversals) == (((young, 1), (NOW_S, 2)), (young,))


MOVING = InventoryObserved(
    server="s",
    model="m",
    observed_at_s=NOW_S,
    quality="ok",
    variants=(
        VariantInventory(accelerator="A", desired=4, ready=4, pending=0, max_batch=64),
        VariantInventory(accelerator="B", desired=2, ready=0, pending=2, max_batch=64),
    ),
)


@table(
    Row("a move that may still become ready passes", ask(B=2), ask(B=2), None),
    Row("a move that does not is taken back", ask(B=2), ask(B=2), ask(A=4), {"overdue": frozenset("B")}),
    Row(
        "what was lost on the accelerator that is left is no reason",
        ask(B=2),
        ask(B=2),
        None,
        {"overdue": frozenset("A")},
    ),
    Row(
        "replicas of the same accelerator are no move",
        ask(A=4),
        ask(A=6),
        None,
        {"overdue": frozenset("A")},
    ),
)
def test_rollback(row: Row) -> None:
    changed = replace(row, changes={"inventory": MOVING, "held": ask(A=4, B=2)} | row.changes)
    check(Rollback(RollbackSettings()), changed)


def test_an_autoscaler_is_another_writer_unless_it_is_meant_to_be() -> None:
    scaled = hold(ask(A=3)).variants[0].model_copy(update={"autoscaler": "HorizontalPodAutoscaler x"})
    looked_at = case(ask(A=3), ask(A=4), inventory=hold(ask(A=3)).model_copy(update={"variants": (scaled,)}))
    ruling = Ownership(OwnershipSettings()).judge(looked_at, ask(A=4))
    assert ruling is not None and ruling.advice_only and ruling.target == ask(A=3)
    assert "HorizontalPodAutoscaler x on A" in ruling.reason
    assert Ownership(OwnershipSettings(autoscaled=True)).judge(looked_at, ask(A=4)) is None
