"""The fleet: conservation, capacity, scaling, faults."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator.faults import FAULTS
from services.simulator.fleet import Conflict, Fleet, Refused, UnknownName
from services.simulator.inventory import take_inventory
from services.simulator.plant import Plant
from services.simulator.server import PodState

ORIGIN_S = 1_700_000_000.0


def plant(seed: int = 0, rate_rps: float = 4.0, replicas: int = 2, **engine: Any) -> Plant:
    """Two servers that share 6 H100 and have an L40S variant each; start-up about 40 s."""
    law = {"alpha_s": 0.01, "beta_s": 2e-5, "gamma_s": 5e-7, "max_batch": 16, **engine}
    startup_s = {"median": 40.0, "p95": 60.0}

    def server(name: str, initial: int) -> dict[str, Any]:
        return {
            "name": name,
            "model": f"maker/{name}-model",
            "variants": [
                {"accelerator": "H100", "accelerator_type": "H100", "startup_s": startup_s, **law},
                {
                    "accelerator": "2xL40S",
                    "accelerator_type": "L40S",
                    "units": 2,
                    "startup_s": startup_s,
                    **law,
                },
            ],
            "initial": [{"accelerator": "H100", "replicas": initial}],
            "arrivals": {
                "kind": "generated",
                "rate_rps": [[0.0, rate_rps]],
                "interarrival_cv": 1.5,
                "input_tokens": {"mean": 400},
                "output_tokens": {"mean": 120},
            },
        }

    return Plant.model_validate(
        {
            "seed": seed,
            "accelerators": [{"type": "H100", "count": 6}, {"type": "L40S", "count": 4}],
            "servers": [server("alpha", replicas), server("beta", 1)],
        }
    )


def new_fleet(**changes: Any) -> Fleet:
    return Fleet(plant(**changes), origin_s=ORIGIN_S)


def check_invariants(fleet: Fleet) -> None:
    for server in fleet.servers.values():
        accounted = server.finished_total + server.outstanding() + server.rejected_total
        assert accounted == server.requests_total
        for variant in server.variants.values():
            assert sum(pod.state is not PodState.TERMINATING for pod in variant.pods) == variant.desired
        if any(pod.state is PodState.READY for pod in server.pods()):
            assert not server.queue
        for pod in server.pods():
            if pod.state in (PodState.PENDING, PodState.STARTING):
                assert pod.engine.outstanding == 0
    for kind, total in fleet.capacity.items():
        held = sum(
            pod.variant.description.units
            for pod in fleet.pods.values()
            if pod.variant.description.accelerator_type == kind and pod.state is not PodState.PENDING
        )
        assert 0 <= held <= total
        assert fleet.free[kind] == total - held


def counters(fleet: Fleet) -> dict[str, tuple[int, ...]]:
    return {
        name: (e.requests_total, e.prompt_tokens_total, e.generation_tokens_total, e.itl.count, e.ttft.count)
        for name, e in ((name, pod.engine) for name, pod in fleet.pods.items())
    }


actions = st.one_of(
    st.tuples(
        st.just("scale"),
        st.sampled_from(["alpha", "beta"]),
        st.sampled_from(["H100", "2xL40S"]),
        st.integers(min_value=0, max_value=7),
        st.sampled_from([None, 4, 32]),
    ),
    st.tuples(st.just("crash"), st.integers(min_value=0, max_value=20)),
    st.tuples(st.just("slow"), st.integers(min_value=0, max_value=20), st.sampled_from([0.5, 1.0, 4.0])),
    st.tuples(st.just("capacity"), st.sampled_from(["H100", "L40S"]), st.integers(min_value=0, max_value=8)),
)


def act(fleet: Fleet, action: tuple[Any, ...]) -> str | None:
    """Carry an action out; the name of the replica whose counters it may have reset."""
    names = list(fleet.pods)
    if action[0] == "scale":
        fleet.scale(*action[1:])
    elif action[0] == "capacity":
        _, kind, count = action
        fleet.inject(
            FAULTS.validate_python({"kind": "capacity-change", "accelerator_type": kind, "count": count})
        )
    elif names:
        name = names[action[1] % len(names)]
        fault = {"kind": "replica-crash", "pod": name}
        if action[0] == "slow":
            fault = {"kind": "slow-replica", "pod": name, "factor": action[2]}
        elif fleet.pods[name].state is PodState.PENDING:
            return None
        fleet.inject(FAULTS.validate_python(fault))
        return name
    return None


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(min_value=0.0, max_value=60.0), actions), max_size=12),
    kv_tokens=st.sampled_from([None, 3000]),
)
def test_nothing_is_lost_and_no_accelerator_is_used_twice_whatever_is_done(
    steps: list[tuple[float, tuple[Any, ...]]], kv_tokens: int | None
) -> None:
    fleet = new_fleet(kv_tokens=kv_tokens)
    now_s = ORIGIN_S
    for wait_s, action in steps:
        before = counters(fleet)
        now_s += wait_s
        assert fleet.advance(now_s)
        check_invariants(fleet)
        reset = act(fleet, action)
        fleet.advance(now_s)
        check_invariants(fleet)
        for name, values in counters(fleet).items():
            if name in before and name != reset:
                assert all(new >= old for new, old in zip(values, before[name], strict=True))
    if kv_tokens is None:
        assert all(server.rejected_total == 0 for server in fleet.servers.values())


def test_counters_and_the_log_of_completed_requests_agree() -> None:
    fleet = new_fleet()
    fleet.advance(ORIGIN_S + 300.0)
    for server in fleet.servers.values():
        records = fleet.finished_since(0.0, server.name)
        assert len(records) == server.finished_total == sum(p.engine.requests_total for p in server.pods())
        for pod in server.pods():
            own = [record for record in records if record.pod == pod.name]
            assert pod.engine.e2e_latency.count == len(own)
            # The log is in Unix seconds: a quarter of a microsecond of rounding at each end.
            total_s = sum(record.finish_s - record.submitted_s for record in own)
            assert pod.engine.e2e_latency.sum == pytest.approx(total_s, abs=1e-6 * len(own))
    assert len(fleet.finished_since(0.0)) > 1000
    assert fleet.finished_since(fleet.now_s) == []


def test_the_same_seed_and_actions_give_the_same_answer_in_any_slices() -> None:
    def outcome(seed: int, slice_s: float, max_events: int | None) -> list[tuple[Any, ...]]:
        fleet = Fleet(plant(seed))
        for until_s in (100.0, 200.0):
            target_s = fleet.now_s
            while target_s < until_s:
                target_s = min(until_s, target_s + slice_s)
                while not fleet.advance(target_s, max_events):
                    pass
            fleet.scale("alpha", "H100", 4)
        # Slicing a closed form moves times by rounding only: compared at 1e-7 s.
        return [(r.pod, round(r.arrival_s, 7), round(r.finish_s, 7)) for r in fleet.finished_since(0.0)]

    assert outcome(3, 200.0, None) == outcome(3, 200.0, None) == outcome(3, 0.7, 5)
    assert outcome(3, 200.0, None) != outcome(4, 200.0, None)


def test_a_replica_removed_under_load_finishes_what_it_has_and_frees_its_accelerator() -> None:
    fleet = new_fleet(rate_rps=8.0)
    fleet.advance(ORIGIN_S + 60.0)
    server = fleet.servers["alpha"]
    busy = sum(pod.engine.outstanding for pod in server.pods())
    assert busy > 2
    fleet.scale("alpha", "H100", 0)
    assert [pod.state for pod in server.pods()] == [PodState.TERMINATING] * 2
    arrived = server.requests_total
    finished = server.finished_total
    fleet.advance(ORIGIN_S + 120.0)
    assert server.pods() == []
    assert server.finished_total == finished + busy
    assert len(server.queue) == server.requests_total - arrived > 0
    assert fleet.free["H100"] == 5
    check_invariants(fleet)


def test_requests_without_a_ready_replica_wait_at_the_gateway_and_go_to_the_first_that_is() -> None:
    fleet = new_fleet(replicas=0)
    fleet.advance(ORIGIN_S + 10.0)
    server = fleet.servers["alpha"]
    assert len(server.queue) == server.requests_total > 0
    fleet.scale("alpha", "H100", 1)
    fleet.advance(ORIGIN_S + 400.0)
    assert not server.queue
    (pod,) = server.pods()
    assert pod.ready_at_s is not None
    first = fleet.finished_since(0.0, "alpha")[0]
    assert first.submitted_s >= ORIGIN_S + pod.ready_at_s > first.arrival_s


def test_replicas_that_do_not_fit_stay_pending_with_a_reason_until_there_is_room() -> None:
    fleet = new_fleet()
    fleet.scale("alpha", "2xL40S", 3)
    fleet.advance(ORIGIN_S + 300.0)
    variant = fleet.variant("alpha", "2xL40S")
    assert (variant.count(PodState.READY), variant.count(PodState.PENDING)) == (2, 1)
    pending = [replica for replica in take_inventory(fleet).servers[0].replicas if replica.state == "pending"]
    assert "2 L40S needed, 0 free" in pending[0].reason
    assert pending[0].ready_at_s is None
    fleet.inject(FAULTS.validate_python({"kind": "capacity-change", "accelerator_type": "L40S", "count": 6}))
    fleet.advance(ORIGIN_S + 600.0)
    assert variant.count(PodState.READY) == 3


def test_replicas_that_serve_nobody_are_removed_first() -> None:
    fleet = new_fleet()
    fleet.scale("alpha", "H100", 9)
    fleet.advance(ORIGIN_S + 1.0)
    variant = fleet.variant("alpha", "H100")
    assert (variant.count(PodState.READY), variant.count(PodState.STARTING)) == (2, 3)
    assert variant.count(PodState.PENDING) == 4
    fleet.scale("alpha", "H100", 4)
    assert (variant.count(PodState.STARTING), variant.count(PodState.PENDING)) == (2, 0)
    fleet.scale("alpha", "H100", 2)
    assert [pod.state for pod in variant.pods] == [PodState.READY] * 2


def test_scaling_is_declarative_and_guards_its_resource_version() -> None:
    fleet = new_fleet()
    first = fleet.scale("alpha", "H100", 3, 32).resource_version
    assert fleet.scale("alpha", "H100", 3, 32).resource_version == first
    assert fleet.scale("alpha", "H100", 3).resource_version == first
    assert fleet.scale("alpha", "H100", 4, resource_version=first).resource_version == first + 1
    with pytest.raises(Conflict):
        fleet.scale("alpha", "H100", 5, resource_version=first)
    assert fleet.variant("alpha", "H100").desired == 4
    with pytest.raises(UnknownName, match="alpha"):
        fleet.scale("gamma", "H100", 1)
    with pytest.raises(UnknownName, match="2xL40S"):
        fleet.scale("alpha", "TPU", 1)
    with pytest.raises(Refused, match="max_batch"):
        fleet.scale("alpha", "H100", 1, 0)


def test_cold_starts_have_the_described_median() -> None:
    variant = new_fleet().variant("alpha", "H100")
    draws = sorted(variant.draw_startup_s() for _ in range(4001))
    assert draws[2000] == pytest.approx(40.0, rel=0.03)
    assert draws[3800] == pytest.approx(60.0, rel=0.03)


def test_a_crash_resets_counters_and_sends_its_requests_again() -> None:
    fleet = new_fleet(replicas=1, rate_rps=6.0)
    fleet.advance(ORIGIN_S + 30.0)
    server = fleet.servers["alpha"]
    (pod,) = server.pods()
    lost = pod.engine.outstanding
    assert lost > 0
    fleet.inject(FAULTS.validate_python({"kind": "replica-crash", "pod": pod.name}))
    assert pod.state is PodState.STARTING
    assert pod.engine.requests_total == 0
    assert len(server.queue) == lost
    fleet.advance(ORIGIN_S + 300.0)
    assert pod.state is PodState.READY
    check_invariants(fleet)
    waited = [r for r in fleet.finished_since(0.0, "alpha") if r.arrival_s < ORIGIN_S + 30.0 < r.submitted_s]
    assert len(waited) == lost


def test_a_lost_accelerator_type_evicts_its_replicas_and_leaves_them_wanted() -> None:
    fleet = new_fleet()
    fleet.advance(ORIGIN_S + 30.0)
    fleet.inject(FAULTS.validate_python({"kind": "capacity-change", "accelerator_type": "H100", "count": 0}))
    check_invariants(fleet)
    assert all(pod.state is PodState.PENDING for pod in fleet.pods.values())
    assert len(fleet.pods) == 3
    fleet.inject(FAULTS.validate_python({"kind": "capacity-change", "accelerator_type": "H100", "count": 6}))
    fleet.advance(ORIGIN_S + 200.0)
    assert all(pod.state is PodState.READY for pod in fleet.pods.values())
    check_invariants(fleet)


def test_a_slow_replica_takes_as_many_times_longer() -> None:
    def mean_itl_s(factor: float) -> float:
        fleet = new_fleet(replicas=1, rate_rps=0.02)
        pod = fleet.servers["alpha"].pods()[0]
        fleet.inject(FAULTS.validate_python({"kind": "slow-replica", "pod": pod.name, "factor": factor}))
        fleet.advance(ORIGIN_S + 1000.0)
        return pod.engine.itl.sum / pod.engine.itl.count

    # At this load requests hardly meet, so that only the factor differs.
    assert mean_itl_s(3.0) == pytest.approx(3.0 * mean_itl_s(1.0), rel=0.02)


def test_a_request_no_variant_can_hold_is_rejected_and_counted() -> None:
    fleet = new_fleet(kv_tokens=1000)
    fleet.advance(ORIGIN_S + 200.0)
    server = fleet.servers["alpha"]
    assert 0 < server.rejected_total < server.requests_total
    assert all(r.input_tokens + r.output_tokens <= 1000 for r in fleet.finished_since(0.0))
    check_invariants(fleet)


def test_a_full_log_forgets_its_oldest_and_says_until_when() -> None:
    fleet = Fleet(plant(), origin_s=ORIGIN_S, log_size=50)
    fleet.advance(ORIGIN_S + 100.0)
    kept = fleet.finished_since(0.0)
    assert len(kept) == 50
    assert fleet.forgotten_until_s > ORIGIN_S


def test_load_is_spread_over_equal_replicas() -> None:
    fleet = new_fleet(replicas=4)
    fleet.advance(ORIGIN_S + 300.0)
    served = [pod.engine.requests_total for pod in fleet.servers["alpha"].pods()]
    assert min(served) > 0.8 * max(served)


def test_a_speed_change_holds_for_every_replica_of_its_kind_and_for_those_to_come() -> None:
    fleet = new_fleet(replicas=2)
    change = {"kind": "speed-change", "server": "alpha", "accelerator": "H100", "factor": 2.0}
    fleet.inject(FAULTS.validate_python(change))
    fleet.scale("alpha", "H100", 3)
    fleet.advance(ORIGIN_S + 200.0)
    factors = [pod.engine.slow_factor for pod in fleet.servers["alpha"].pods()]
    assert factors == [2.0, 2.0, 2.0]
    assert all(pod.engine.slow_factor == 1.0 for pod in fleet.servers["beta"].pods())
    one = fleet.servers["alpha"].pods()[0]
    fleet.inject(FAULTS.validate_python({"kind": "slow-replica", "pod": one.name, "factor": 3.0}))
    assert one.engine.slow_factor == 6.0
    fleet.inject(FAULTS.validate_python({"kind": "replica-crash", "pod": one.name}))
    assert one.engine.slow_factor == 2.0


def test_a_drift_comes_to_its_factor_gradually() -> None:
    fleet = new_fleet(replicas=1)
    drift = {
        "kind": "speed-change",
        "server": "alpha",
        "accelerator": "H100",
        "factor": 4.0,
        "over_s": 100.0,
    }
    fleet.inject(FAULTS.validate_python(drift))
    (pod,) = fleet.servers["alpha"].pods()
    fleet.advance(ORIGIN_S + 50.5)
    assert pod.engine.slow_factor == pytest.approx(2.0, rel=1e-9)
    fleet.advance(ORIGIN_S + 101.0)
    assert pod.engine.slow_factor == pytest.approx(4.0, rel=1e-9)
