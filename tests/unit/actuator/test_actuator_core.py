"""The actuator's core: generations, memory, alerts, other writers."""

from dataclasses import replace
from typing import Any

import pytest
from gate_cases import NOW_S, ask, built_in_rules, hold, measure, predict, propose, watch

from schemas.actuation import FailureReason
from schemas.alert import AlertKind
from schemas.base import Contract, Quality
from schemas.fleet import Accelerator, FleetDeclared, Model, ModelProfile, Server, ServiceClass
from schemas.plan import PlanIssued, PlanProposed, Shortfall, SolveStatus
from schemas.telemetry import InventoryObserved, StartupTime
from services.actuator.core import (
    FLEET_KEY,
    SERVER,
    Outputs,
    State,
    decide,
    dump,
    load,
    observe,
    pause,
    resume,
    undecided_generation,
    written,
)
from services.actuator.gate import Memory, Target
from services.actuator.settings import ActuatorSettings

SETTINGS = ActuatorSettings()
RULES = built_in_rules()
CYCLE_S = 30.0


def fleet(*names: str, **server: Any) -> FleetDeclared:
    return FleetDeclared(
        declared_at_s=0,
        revision="r",
        accelerators=tuple(Accelerator(name=n, type=f"type-{n}", cost_per_hour=1) for n in "AB"),
        models=(Model(name="m", profiles=tuple(ModelProfile(accelerator=n, startup_s=100) for n in "AB")),),
        service_classes=(ServiceClass(name="c", priority=1),),
        servers=tuple(Server(name=n, model="m", service_class="c", **server) for n in names or ("s",)),
    )


def of(server: str, message: Any) -> Any:
    return message.model_copy(update={"server": server})


def manifest(generation: int, servers: int = 1, *shortfall: Shortfall) -> PlanIssued:
    return PlanIssued(
        generation=generation,
        servers=servers,
        status=SolveStatus.FEASIBLE,
        cost_per_hour=0,
        solver="x",
        performance_model="x",
        solve_s=0,
        shortfall=shortfall,
        issued_at_s=NOW_S,
        expires_at_s=NOW_S + 90,
    )


def take(state: State, *messages: Contract) -> State:
    for message in messages:
        state = observe(state, message)
    return state


class Loop:
    """Cycles of one server: time, generations, and the inventory that it is shown."""

    def __init__(self, held: Target, state: State | None = None, writes: bool = True) -> None:
        self.state = State(fleet=fleet()) if state is None else state
        self.held, self.writes = held, writes
        self.cycle = 0

    @property
    def now_s(self) -> float:
        return NOW_S + CYCLE_S * self.cycle

    def run(
        self, target: Target | PlanProposed, *messages: Contract, answered: bool = True, taken: bool = True
    ) -> Outputs:
        """One cycle. answered: whether the target's answer arrives; taken: whether it did what was written."""
        self.cycle += 1
        figures = {"generation": self.cycle, "expires_at_s": self.now_s + 90}
        plan = (
            target.model_copy(update=figures)
            if isinstance(target, PlanProposed)
            else propose(target, **figures)
        )
        seen = [measure(self.now_s), hold(self.held, self.now_s - 1), plan, manifest(self.cycle)]
        self.state = take(self.state, *seen, *messages)
        self.state, out = decide(self.state, RULES, SETTINGS, self.now_s, self.writes)
        for writing in out.writings:
            if taken:
                self.held = tuple(a for s in writing.scales for a in ask(**{s.accelerator: s.replicas}))
            if answered:
                self.state = written(self.state, writing, self.now_s + 1)
        return out


def test_a_generation_is_decided_once() -> None:
    loop = Loop(ask(A=3))
    out = loop.run(ask(A=4))
    assert [(d.generation, d.gated) for d in out.decisions] == [(1, ask(A=4))]
    state, again = decide(loop.state, RULES, SETTINGS, loop.now_s, True)
    assert state is loop.state and again == Outputs()


def test_a_generation_is_decided_only_when_all_of_it_is_there() -> None:
    state = State(fleet=fleet("s", "t"))
    parts = [hold(ask(A=3)), of("t", hold(ask(A=3))), propose(ask(A=4)), manifest(1, 2)]
    state = take(state, *parts)
    assert undecided_generation(state) is None
    assert undecided_generation(take(state, of("t", propose(ask(A=4), generation=2)))) is None
    assert undecided_generation(take(state, of("t", propose(ask(A=4))))) == 1


def test_without_a_fleet_nothing_is_decided() -> None:
    assert undecided_generation(take(State(), propose(ask(A=4)), manifest(1))) is None


def test_older_generations_and_older_messages_change_nothing() -> None:
    loop = Loop(ask(A=3))
    for _ in range(3):
        loop.run(ask(A=4))
    late = [
        propose(ask(A=9), generation=2),
        manifest(2),
        hold(ask(A=9), NOW_S),
        measure(NOW_S, Quality.MISSING),
    ]
    assert take(loop.state, *late) == loop.state
    fenced = replace(loop.state, plans={}, manifest=None)
    assert undecided_generation(take(fenced, propose(ask(A=9), generation=2), manifest(2))) is None


def test_a_restart_does_not_decide_again_and_goes_on_as_if_it_had_not_happened() -> None:
    loop = Loop(ask(A=6))
    for target in (ask(A=6), ask(A=9), ask(A=7), ask(A=9)):
        loop.run(target)
    loop.state = pause(loop.state, "other")
    kept = {key: dump(loop.state, key) for key in (FLEET_KEY, SERVER + "s")}
    restored = State(fleet=fleet())
    for key, raw in kept.items():
        restored = load(restored, key, raw)
    messages = (loop.state.plans["s"], manifest(loop.cycle), hold(loop.held, loop.now_s), measure(loop.now_s))
    restored = take(restored, *messages)
    assert undecided_generation(restored) is None
    assert (restored.memory, restored.paused) == (loop.state.memory, loop.state.paused)

    other = Loop(loop.held, restored)
    other.cycle = loop.cycle
    for target in (ask(A=12), ask(A=5), ask(B=7)):
        assert loop.run(target) == other.run(target)
    assert loop.state == other.state


@pytest.mark.parametrize("key", [FLEET_KEY, SERVER + "s"])
@pytest.mark.parametrize("raw", [b"", b"\xff", b"null", b"[]", b"{}", b'{"paused": 1}'])
def test_a_snapshot_that_cannot_be_read_is_refused_with_its_key(key: str, raw: bytes) -> None:
    with pytest.raises(ValueError, match=key):
        load(State(), key, raw)


@pytest.mark.parametrize("field", ["moved_at_s", "written_at_s", "intended_at_s", "asked", "written"])
def test_a_snapshot_with_a_figure_of_the_wrong_kind_is_refused(field: str) -> None:
    raw = dump(State(memory={"s": Memory(written_at_s=1.0)}), SERVER + "s")
    old = (
        b'"written": {}'
        if field == "written"
        else f'"{field}": {"1.0" if field == "written_at_s" else "null"}'.encode()
    )
    assert old in raw
    with pytest.raises(ValueError, match="server/s"):
        load(State(), SERVER + "s", raw.replace(old, f'"{field}": "soon"'.encode()))


def _kinds(out: Outputs) -> list[tuple[AlertKind, bool]]:
    return [(alert.kind, alert.resolved) for alert in out.alerts]


def test_a_lack_of_capacity_alerts_once_and_is_resolved() -> None:
    loop = Loop(ask(A=3))
    lacks = Shortfall(server="s", missing_replicas=2, accelerator="A")
    first = loop.run(ask(A=3), manifest(1, 1, lacks))
    second = loop.run(ask(A=3), manifest(2, 1, lacks))
    third, fourth = loop.run(ask(A=3)), loop.run(ask(A=3))
    assert _kinds(first) == [(AlertKind.CAPACITY_SHORTFALL, False)]
    assert "2 replicas on A" in first.alerts[0].message
    assert _kinds(second) == _kinds(fourth) == []
    assert _kinds(third) == [(AlertKind.CAPACITY_SHORTFALL, True)]


def test_another_writer_alerts_once_is_left_alone_and_taken_over_on_resume() -> None:
    loop = Loop(ask(A=3))
    loop.run(ask(A=4))
    loop.held = ask(A=7)
    first, second = loop.run(ask(A=5)), loop.run(ask(A=5))
    assert _kinds(first) == [(AlertKind.FOREIGN_WRITER, False)]
    assert _kinds(second) == []
    assert (first.writings, second.writings) == ((), ())
    assert first.decisions[0].gated == ask(A=4)

    loop.state = resume(loop.state, "s")
    third = loop.run(ask(A=8))
    assert _kinds(third) == [(AlertKind.FOREIGN_WRITER, True)]
    assert [(a.accelerator, a.replicas) for a in third.decisions[0].current] == [("A", 7)]
    assert [s.replicas for w in third.writings for s in w.scales] == [8]


def test_an_inventory_that_fails_is_neither_another_writer_nor_the_end_of_one() -> None:
    loop = Loop(ask(A=3))
    loop.run(ask(A=4))
    lost = InventoryObserved(server="s", model="m", observed_at_s=NOW_S + 60, quality=Quality.MISSING)
    out = loop.run(ask(A=5), lost)
    assert (_kinds(out), out.writings) == ([], ())
    assert out.decisions[0].rule == "freshness"

    loop.held = ask(A=7)
    assert _kinds(loop.run(ask(A=5))) == [(AlertKind.FOREIGN_WRITER, False)]
    loop.cycle += 1
    loop.state = take(loop.state, manifest(loop.cycle, 0))
    loop.state, out = decide(loop.state, RULES, SETTINGS, loop.now_s, True)
    assert out.undecided == {"s": "it has no plan in this generation"}
    assert _kinds(out) == _kinds(loop.run(ask(A=5))) == []


def test_a_write_whose_answer_was_lost_is_not_another_writers() -> None:
    loop = Loop(ask(A=3))
    loop.run(ask(A=4))
    loop.run(ask(A=6), answered=False)
    assert loop.held == ask(A=6)
    out = loop.run(ask(A=6))
    assert (_kinds(out), out.writings) == ([], ())
    # The next write fails altogether, so that what shows is still the one without an answer.
    loop.run(ask(A=8), answered=False, taken=False)
    out = loop.run(ask(A=8))
    assert _kinds(out) == []
    assert [s.replicas for w in out.writings for s in w.scales] == [8]


def test_a_step_down_whose_answer_was_lost_is_gone_on_from() -> None:
    loop = Loop(ask(A=8))
    loop.run(ask(A=9))
    for _ in range(12):
        out = loop.run(ask(A=4), answered=False, taken=False)
    assert [s.replicas for w in out.writings for s in w.scales] == [4]
    # A disruption budget let one of the five go.
    loop.held = ask(A=8)
    out = loop.run(ask(A=4), answered=False, taken=False)
    assert _kinds(out) == []
    assert [s.replicas for w in out.writings for s in w.scales] == [4]
    # It shows still when more is wanted again and that write fails altogether.
    loop.run(ask(A=10), answered=False, taken=False)
    out = loop.run(ask(A=10))
    assert _kinds(out) == []
    assert [s.replicas for w in out.writings for s in w.scales] == [10]


def test_a_write_that_failed_is_written_again() -> None:
    loop = Loop(ask(A=3))
    for _ in range(2):
        out = loop.run(ask(A=4), answered=False, taken=False)
        assert [s.replicas for w in out.writings for s in w.scales] == [4]


def test_an_inventory_from_before_the_last_write_is_not_written_over() -> None:
    loop = Loop(ask(A=3))
    loop.run(ask(A=4))
    state = take(loop.state, propose(ask(A=5), generation=2, expires_at_s=NOW_S + 200), manifest(2))
    _, out = decide(state, RULES, SETTINGS, loop.now_s + CYCLE_S, True)
    assert out.decisions[0].gated == ask(A=5)
    assert out.writings == ()


def test_servers_without_an_inventory_or_a_plan_are_named() -> None:
    names = ("s", "no-inventory", "no-plan", "lost")
    state = State(fleet=fleet(*names))
    lost = InventoryObserved(server="lost", model="m", observed_at_s=NOW_S, quality=Quality.MISSING)
    plans = [of(name, propose(ask(A=4))) for name in names if name != "no-plan"]
    state = take(state, hold(ask(A=3)), of("no-plan", hold(ask(A=3))), lost, *plans, manifest(1, 3))
    state, out = decide(state, RULES, SETTINGS, NOW_S, True)
    assert [d.server for d in out.decisions] == ["s"]
    assert out.undecided.keys() == {"no-inventory", "no-plan", "lost"}
    assert all(out.undecided.values())
    assert [w.server for w in out.writings] == ["s"]


def test_a_replica_that_is_pending_too_long_makes_its_type_unavailable_for_a_while() -> None:
    loop = Loop(ask(A=3))

    def pending(since_s: float) -> InventoryObserved:
        seen = hold(ask(A=3), loop.now_s + CYCLE_S, A=2)
        variants = tuple(v.model_copy(update={"pending_since_s": since_s}) for v in seen.variants)
        return seen.model_copy(update={"variants": variants})

    assert loop.run(ask(A=3), pending(NOW_S - 100)).unavailable == ()
    out = loop.run(ask(A=3), pending(NOW_S - 200))
    (found,) = out.unavailable
    assert (found.type, found.since_s, found.until_s) == ("type-A", NOW_S - 200, loop.now_s + 600)
    (decision,) = out.decisions
    assert (decision.rule, decision.gated, decision.until_s) == ("supply", ask(A=2), loop.now_s + 600)
    assert [(w.scales[0].accelerator, w.scales[0].replicas) for w in out.writings] == [("A", 2)]
    assert loop.run(ask(A=3), hold(ask(A=2), loop.now_s + CYCLE_S)).decisions[0].gated == ask(A=2)
    assert loop.run(ask(A=3), pending(NOW_S - 200)).unavailable == ()
    loop.cycle += 20
    assert len(loop.run(ask(A=3), pending(NOW_S - 200)).unavailable) == 1


@pytest.mark.parametrize(
    ("learned_s", "samples", "limit_s"),
    [(10.0, 1, 200), (10.0, 4, 200), (150.0, 1, 300), (10.0, 5, 20), (150.0, 64, 300), (5000.0, 64, 1800)],
)
def test_a_replica_is_given_up_after_twice_the_start_time_of_which_little_is_not_enough(
    learned_s: float, samples: int, limit_s: float
) -> None:
    startup = (StartupTime(accelerator="A", p50_s=0, p95_s=learned_s, samples=samples),)

    def given_up(pending_s: float) -> bool:
        seen = hold(ask(A=3), A=2)
        variants = tuple(v.model_copy(update={"pending_since_s": NOW_S - pending_s}) for v in seen.variants)
        state = take(
            State(fleet=fleet()),
            seen.model_copy(update={"variants": variants, "startup": startup}),
            measure(),
            propose(ask(A=3)),
            manifest(1),
        )
        _, out = decide(state, RULES, SETTINGS, NOW_S, True)
        return out.decisions[0].rule == "supply" and len(out.unavailable) == 1

    assert not given_up(limit_s)
    assert given_up(limit_s + 1)


def test_a_pause_writes_nothing_until_it_is_resumed() -> None:
    for server in ("s", None):
        loop = Loop(ask(A=3))
        loop.state = pause(loop.state, server)
        out = loop.run(ask(A=4))
        assert (out.decisions[0].rule, out.writings) == ("pause", ())
        loop.state = resume(loop.state, server)
        assert len(loop.run(ask(A=4)).writings) == 1


def test_resuming_one_server_leaves_the_fleet_paused() -> None:
    state = resume(pause(pause(State(), None), "s"), "s")
    assert state.fleet_paused and not state.paused


def test_a_dry_run_never_assumes_that_it_wrote() -> None:
    loop = Loop(ask(A=3), writes=False)
    for _ in range(3):
        out = loop.run(ask(A=4), taken=False, answered=False)
        assert out.decisions[0].dry_run
        assert [(a.accelerator, a.replicas) for a in out.decisions[0].current] == [("A", 3)]
    memory = loop.state.memory["s"]
    assert memory == Memory(recommended=memory.recommended)

    loop = Loop(ask(A=3), writes=False)
    cheaper = propose(ask(B=3), predicted_current=predict())
    rules = [loop.run(cheaper, taken=False, answered=False).decisions[0].rule for _ in range(3)]
    assert len(set(rules)) == 1


def test_a_move_runs_to_its_end_and_is_then_left_alone() -> None:
    memory = {"s": Memory(recommended=watch(12))}
    loop = Loop(ask(A=2), State(fleet=fleet(), memory=memory))
    fails = propose(ask(B=12), predicted_current=predict(1.5, objectives_met=False))
    seen = [{s.accelerator: s.replicas for w in loop.run(fails).writings for s in w.scales} for _ in range(3)]
    assert seen == [{"A": 2, "B": 12}, {"A": 0, "B": 12}, {}]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Unschedulable: 0/3 nodes are available", FailureReason.UNSCHEDULABLE),
        ('FailedCreate: pods "x" is forbidden: exceeded quota: cards', FailureReason.QUOTA),
        ("ImagePullBackOff: Back-off pulling image", FailureReason.IMAGE),
        ("CrashLoopBackOff: back-off 40s", FailureReason.NOT_READY),
        (None, FailureReason.NOT_READY),
    ],
)
def test_replicas_that_do_not_become_ready_are_a_failure_once_for_each_spell(
    said: str | None, reason: FailureReason
) -> None:
    loop = Loop(ask(A=3))
    loop.run(ask(A=4))

    def pending(since_s: float) -> InventoryObserved:
        seen = hold(ask(A=4), loop.now_s + CYCLE_S, A=3)
        late = seen.variants[0].model_copy(update={"pending_since_s": since_s, "pending_reason": said})
        return seen.model_copy(update={"variants": (late,)})

    assert loop.run(ask(A=4), pending(loop.now_s)).failures == ()
    (failure,) = loop.run(ask(A=4), pending(loop.now_s - 500)).failures
    assert (failure.server, failure.reason, failure.target) == ("s", reason, SETTINGS.target)
    assert (said or "no reason") in failure.message
    assert loop.run(ask(A=4), pending(loop.now_s - 500)).failures == ()
    assert loop.run(ask(A=4)).failures == ()
    assert [f.reason for f in loop.run(ask(A=4), pending(loop.now_s - 500)).failures] == [reason]


def test_what_was_never_written_is_no_failure_of_ours() -> None:
    loop = Loop(ask(A=4))
    seen = hold(ask(A=4), NOW_S + CYCLE_S, A=3)
    late = seen.variants[0].model_copy(update={"pending_since_s": NOW_S - 500})
    assert loop.run(ask(A=4), seen.model_copy(update={"variants": (late,)})).failures == ()


def test_what_a_sweep_measured_is_nobodys_load() -> None:
    state, measured = State(fleet=fleet()), measure(NOW_S)
    assert observe(state, measured.model_copy(update={"calibration": True})) == state
    assert observe(state, measured) != state
