"""The whole tuner beside a simulated fleet whose engine, lengths and troubles it does not know.

The engine is token by token, the tuner has windows of a minute, a wrong prior and one law. Published parameters must
never make a server infeasible that is feasible, and predictions must be right again within ten cycles of a change.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
from estimator_suite import LAW, START_S, synthetic_cycle
from estimator_suite import TRUTH as SYNTHETIC_TRUTH
from simulated_telemetry import SEVEN, TRUTH, WRONG, Loop, feasible, fleet

from schemas.parameters import Health
from services.simulator.faults import FAULTS
from services.tuner.estimators.moving_horizon import MovingHorizon, MovingHorizonSettings

# Up and down between a light and a busy load of three replicas; a cycle is a minute.
BUSY = [(600.0 * k, 3.0 if k % 2 == 0 else 15.0) for k in range(20)]


def speed_change(factor: float, over_s: float = 0.0) -> object:
    return FAULTS.validate_python(
        {
            "kind": "speed-change",
            "server": "s",
            "accelerator": "H100",
            "factor": factor,
            "over_s": over_s,
        }
    )


def never_infeasible(loop: Loop) -> bool:
    return all(feasible(p.values) for p in loop.published if p is not None)


def ahead(loop: Loop, cycles: slice) -> tuple[float, float]:
    """The largest recent errors of ITL and TTFT one step ahead over some cycles."""
    evidence = [p.evidence for p in loop.published[cycles] if p is not None]
    return max(e.itl_error_share or 0.0 for e in evidence), max(e.ttft_error_share or 0.0 for e in evidence)


@pytest.mark.parametrize(
    ("engine", "shape", "cv", "itl_error", "ttft_error"),
    [
        (TRUTH, "fixed", 1.0, 0.03, 0.05),
        (TRUTH, "uniform", 0.5, 0.03, 0.05),
        (TRUTH, "exponential", 1.0, 0.04, 0.05),
        (SEVEN, "lognormal", 0.4, 0.03, 0.06),
    ],
    ids=["its own law", "uniform lengths", "exponential lengths", "another law"],
)
def test_an_engine_that_it_does_not_know_is_predicted(
    engine: dict[str, float], shape: str, cv: float, itl_error: float, ttft_error: float
) -> None:
    loop = Loop(fleet(BUSY, engine=engine, shape=shape, cv=cv)).run(28)
    assert feasible(WRONG) and never_infeasible(loop)
    itl, ttft = ahead(loop, slice(-4, None))
    assert itl < itl_error and ttft < ttft_error
    assert loop.published[-1] is not None and loop.published[-1].health is Health.IDENTIFIED


def test_its_own_law_is_found_within_a_few_per_cent() -> None:
    loop = Loop(fleet(BUSY, shape="fixed")).run(20)
    assert loop.published[-1] is not None
    assert loop.published[-1].values == pytest.approx(TRUTH, rel=0.06)


def test_without_a_prior_nothing_is_published_until_it_can_be_and_then_it_is_feasible() -> None:
    loop = Loop(fleet(BUSY), prior=None).run(20)
    assert never_infeasible(loop)
    assert loop.published[-1] is not None
    assert loop.published[-1].values["alpha_s"] == pytest.approx(TRUTH["alpha_s"], rel=0.06)


@pytest.mark.parametrize("factor", [1.5, 0.7])
def test_a_step_of_the_hardware_speed_is_found_and_learned_within_ten_cycles(factor: float) -> None:
    loop = Loop(fleet(BUSY)).run(18)
    loop.scraper.fleet.inject(speed_change(factor))
    loop.run(10)
    assert never_infeasible(loop)
    assert loop.pair.since_change < loop.pair.seen
    assert loop.published[-1] is not None
    alpha = loop.published[-1].values["alpha_s"] / TRUTH["alpha_s"]
    assert alpha == pytest.approx(factor, rel=0.06)
    loop.run(6)
    itl, ttft = ahead(loop, slice(-1, None))
    assert itl < 0.05 and ttft < 0.05


def test_a_slow_drift_is_followed() -> None:
    simulated = fleet([(600.0 * k, 3.0 if k % 2 == 0 else 11.0) for k in range(20)])
    simulated.inject(speed_change(1.5, over_s=2700.0))
    loop = Loop(simulated).run(66)
    assert never_infeasible(loop)
    # The drift is nearly one per cent per cycle, for 45 cycles; its end is learned in the 20 after it.
    itl, ttft = ahead(loop, slice(16, None))
    assert itl < 0.10 and ttft < 0.10
    assert loop.published[-1] is not None
    assert loop.published[-1].values["alpha_s"] / TRUTH["alpha_s"] == pytest.approx(1.5, rel=0.06)


def test_one_bad_replica_of_four_does_not_speak_for_the_others() -> None:
    simulated = fleet([(600.0 * k, 4.0 if k % 2 == 0 else 15.0) for k in range(20)], replicas=4)
    bad = next(iter(simulated.pods))
    simulated.inject(FAULTS.validate_python({"kind": "slow-replica", "pod": bad, "factor": 2.5}))
    loop = Loop(simulated).run(30)
    assert never_infeasible(loop)
    assert loop.published[-1] is not None
    assert loop.published[-1].values == pytest.approx(TRUTH, rel=0.08)


def test_bursts_to_overload_teach_nothing_wrong() -> None:
    rates = [(0, 6), (600, 6), (660, 60), (780, 60), (840, 6), (1500, 6), (1560, 60), (1700, 60), (1760, 6)]
    loop = Loop(fleet([(float(t), float(r)) for t, r in rates], burstiness=2.0)).run(36)
    assert any((w.replicas[0].waiting or 0) > 100 for w in loop.windows)
    assert never_infeasible(loop)
    for published in loop.published[12:]:
        assert published is not None
        assert published.values["alpha_s"] == pytest.approx(TRUTH["alpha_s"], rel=0.08)


def test_flat_load_for_hours_moves_nothing_and_forgets_nothing() -> None:
    loop = Loop(fleet([*BUSY[:4], (2000.0, 6.0)])).run(70)
    assert never_infeasible(loop)
    after = [p.values for p in loop.published[40:] if p is not None]
    for name, true in TRUTH.items():
        values = np.array([value[name] for value in after])
        assert abs(values / true - 1.0).max() < 0.10, name


def test_replicas_that_come_and_go_do_not_disturb_it() -> None:
    loop = Loop(fleet([(0.0, 9.0)])).run(12)
    for replicas in (5, 2, 4, 3):
        loop.scraper.fleet.scale("s", "H100", replicas)
        loop.run(4)
    assert never_infeasible(loop)
    assert loop.pair.since_change == loop.pair.seen
    itl, _ = ahead(loop, slice(10, None))
    assert itl < 0.08


def test_the_covariance_is_consistent_where_the_model_is_right() -> None:
    """The mean NIS of two figures is two; of 150 windows it is within 1.68 … 2.32 in 95 of 100 cases."""
    means = []
    for seed in (31, 32, 33):
        estimator = MovingHorizon(MovingHorizonSettings(memory=1.0))
        state, squares, chance = estimator.start(SYNTHETIC_TRUTH, LAW), [], random.Random(seed)
        for cycle in range(70):
            # The batch is measured, and each latency has noise of its own.
            seen = [
                replace(
                    one,
                    decoding_measured=True,
                    itl_s=one.itl_s * chance.lognormvariate(0, 0.02),
                    ttft_s=(one.ttft_s or 0.0) * chance.lognormvariate(0, 0.02),
                )
                for one in synthetic_cycle(chance, cycle, noise=0.0)
            ]
            state, _ = estimator.update(state, seen, START_S + cycle)
            squares.append(state.nis)
        means.append(float(np.mean([square for square in squares[20:] if square is not None])))
    assert 1.68 < float(np.median(means)) < 2.32, means
