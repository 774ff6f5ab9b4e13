"""What every queueing model promises, and what the exact and the fluid model promise beyond it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import (
    Binding,
    Distribution,
    Metrics,
    QueueingModel,
    Saturation,
    ServerModel,
    Statistic,
    Targets,
)
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel
from services.perfmodel.queueing_models.fluid import FluidModel

MODELS: list[QueueingModel] = [BirthDeathModel(), FluidModel(), BirthDeathCompatModel()]
PHYSICAL: list[QueueingModel] = [BirthDeathModel(), FluidModel()]
EVERY = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
NON_COMPAT = pytest.mark.parametrize("model", PHYSICAL, ids=lambda model: model.name)
PARAMETERS = np.array([0.008, 3.3e-5, 3.3e-7])


def server(
    parameters: Any = PARAMETERS,
    prompt: Any = 1024.0,
    output: Any = 256.0,
    batch: Any = 64,
    queue: Any = 100,
    budget: Any = 8192,
) -> ServerModel:
    return ServerModel(
        ThreeParameterLaw(), np.asarray(parameters), Workload(prompt, output), Limits(batch, queue, budget)
    )


def flatten(metrics: Metrics) -> dict[str, np.ndarray[Any, Any]]:
    values = {}
    for field in dataclasses.fields(metrics):
        value = getattr(metrics, field.name)
        values[field.name] = value.mean if isinstance(value, Distribution) else value
    return values


@st.composite
def servers(draw: st.DrawFn, one_chunk: bool = False) -> ServerModel:
    parameters = [draw(st.floats(1e-3, 0.1)), draw(st.floats(1e-7, 1e-3)), draw(st.floats(0, 1e-5))]
    return server(
        parameters,
        prompt=draw(st.floats(0, 8000)),
        output=draw(st.floats(1, 2000)),
        batch=draw(st.integers(1, 80)),
        queue=draw(st.sampled_from([0, 1, 7, 100, 3000])),
        budget=1e9 if one_chunk else draw(st.integers(512, 16_384)),
    )


@EVERY
def test_arrays_give_what_a_loop_gives(model: QueueingModel) -> None:
    rng = np.random.default_rng(3)
    parameters = PARAMETERS * rng.uniform(0.3, 3, (4, 1, 3))
    prompt, batch, queue = (
        rng.uniform(10, 6000, (3,)),
        np.array([2, 7, 64]),
        np.array([[0], [1], [50], [900]]),
    )
    rate = rng.uniform(0.1, 6, (4, 3))
    many = server(parameters, prompt=prompt, batch=batch, queue=queue)
    targets = Targets(rng.uniform(0.1, 2, (4, 3)), np.array([0.02, np.nan, 0.05]))
    metrics, sizing = flatten(model.analyze(many, rate)), model.max_rate(many, targets)
    concurrency = model.concurrency(many, targets)
    for row in range(4):
        for column in range(3):
            one = server(parameters[row, 0], prompt=prompt[column], batch=batch[column], queue=queue[row, 0])
            bounds = Targets(targets.ttft_s[row, column], targets.itl_s[column])  # type: ignore[index]
            for name, value in flatten(model.analyze(one, rate[row, column])).items():
                np.testing.assert_allclose(
                    metrics[name][row, column], value, rtol=1e-9, atol=1e-12, err_msg=name
                )
            alone = model.max_rate(one, bounds)
            np.testing.assert_allclose(sizing.max_rate_rps[row, column], alone.max_rate_rps, rtol=1e-8)
            assert sizing.feasible[row, column] == alone.feasible
            assert sizing.binding[row, column] == alone.binding
            assert concurrency[row, column] == model.concurrency(one, bounds)


@EVERY
def test_one_server_answers_a_whole_curve_of_rates(model: QueueingModel) -> None:
    metrics = model.analyze(server(), np.linspace(0.5, 4, 7))
    assert metrics.ttft_s.mean.shape == (7,)
    assert (np.diff(metrics.end_to_end_s.mean) > 0).all()


@EVERY
@pytest.mark.parametrize("rate", [np.nan, np.inf, -1.0, [1.0, np.nan]])
def test_a_rate_that_cannot_be_is_refused_by_name(model: QueueingModel, rate: Any) -> None:
    with pytest.raises(ValueError, match="rate_rps"):
        model.analyze(server(), rate)


@pytest.mark.parametrize(
    "parameters", [[0.0, 0.0, 0.0], [[0.01, 1e-5, 0.0], [0.0, 0.0, 0.0]], [np.inf, 0, 0]]
)
def test_an_engine_of_no_or_endless_time_is_refused(parameters: Any) -> None:
    with pytest.raises(ValueError, match="parameters of three-parameter"):
        server(parameters)


def test_fields_that_do_not_broadcast_are_refused_with_their_shapes() -> None:
    with pytest.raises(ValueError, match=r"input_tokens \(2,\).*max_batch \(3,\)"):
        server(prompt=np.ones(2), batch=np.ones(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft_s", 0.0),
        ("itl_s", -1.0),
        ("tps", np.inf),
        ("max_blocked_share", 0.0),
        ("max_blocked_share", 2.0),
    ],
)
def test_a_target_that_cannot_be_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Targets(**{name: value})


@EVERY
def test_a_statistic_beyond_the_capabilities_is_refused_with_what_is_supported(model: QueueingModel) -> None:
    assert Statistic.P95 not in model.capabilities.statistics
    with pytest.raises(ValueError, match=r"p95 is not supported by .*; supported: mean"):
        model.max_rate(server(), Targets(1.0), Statistic.P95)
    with pytest.raises(ValueError, match="supported: mean"):
        model.concurrency(server(), Targets(1.0), Statistic.P95)


@NON_COMPAT
def test_an_idle_server_has_the_latency_of_a_lone_request(model: QueueingModel) -> None:
    metrics = model.analyze(server(), 0.0)
    law, workload = ThreeParameterLaw(), Workload(1024.0, 256.0)
    assert metrics.throughput_rps == 0 and metrics.occupancy == 0 and metrics.blocked_share == 0
    assert metrics.ttft_s.mean == pytest.approx(law.prefill_time(PARAMETERS, 1.0, workload), rel=1e-12)
    assert metrics.itl_s.mean == pytest.approx(law.inter_token_time(PARAMETERS, 1.0, workload), rel=1e-12)


@given(one=servers(), low=st.floats(1e-3, 3), factor=st.floats(1.001, 4))
@settings(max_examples=60)
def test_load_never_makes_waits_or_blocking_fall(one: ServerModel, low: float, factor: float) -> None:
    model = BirthDeathModel()
    capacity = float(model.analyze(one, 0.0).capacity_rps)
    less, more = (flatten(model.analyze(one, load * capacity)) for load in (low, low * factor))
    names = ("occupancy", "queue_length", "blocked_share", "wait_s", "ttft_s", "end_to_end_s")
    for name in names:
        assert more[name] >= less[name] * (1 - 1e-9) - 1e-15, name


@given(one=servers(one_chunk=True), low=st.floats(1e-3, 3), factor=st.floats(1.001, 4))
@settings(max_examples=60)
def test_load_never_makes_tokens_faster_or_throughput_fall_while_chunks_stay(
    one: ServerModel, low: float, factor: float
) -> None:
    for model in PHYSICAL:
        capacity = float(model.analyze(one, 0.0).capacity_rps)
        less, more = (model.analyze(one, load * capacity) for load in (low, low * factor))
        assert more.itl_s.mean >= less.itl_s.mean * (1 - 1e-9)
        assert more.throughput_rps >= less.throughput_rps * (1 - 1e-9)


@given(one=servers(), load=st.floats(1e-3, 3))
@settings(max_examples=60)
def test_flows_and_contents_balance(one: ServerModel, load: float) -> None:
    for model in PHYSICAL:
        capacity = float(model.analyze(one, 0.0).capacity_rps)
        metrics = flatten(model.analyze(one, load * capacity))
        in_system = metrics["occupancy"] + metrics["queue_length"]
        assert in_system == pytest.approx(
            metrics["throughput_rps"] * metrics["end_to_end_s"], rel=2e-3, abs=1e-12
        )
        assert metrics["throughput_rps"] == pytest.approx(
            metrics["offered_rps"] * (1 - metrics["blocked_share"]), rel=1e-6
        )
        assert metrics["occupancy"] <= float(np.asarray(one.limits.max_batch)) * (1 + 1e-9)
        assert metrics["queue_length"] <= float(np.asarray(one.limits.max_queue)) * (1 + 1e-9)


@given(
    one=servers(one_chunk=True),
    ttft_factor=st.one_of(st.just(np.nan), st.floats(1.01, 50)),
    itl_factor=st.one_of(st.just(np.nan), st.floats(1.01, 10)),
)
@settings(max_examples=80, deadline=None)
def test_the_largest_rate_meets_its_targets_and_one_percent_more_does_not(
    one: ServerModel, ttft_factor: float, itl_factor: float
) -> None:
    for model in PHYSICAL:
        idle = model.analyze(one, 0.0)
        targets = Targets(ttft_factor * idle.ttft_s.mean, itl_factor * idle.itl_s.mean)
        sizing = model.max_rate(one, targets)
        assert sizing.feasible

        def kept(rate: float, model: QueueingModel = model, targets: Targets = targets) -> bool:
            metrics = model.analyze(one, rate)
            return bool(
                not metrics.ttft_s.mean > targets.ttft_s * (1 + 1e-6)  # type: ignore[operator]
                and not metrics.itl_s.mean > targets.itl_s * (1 + 1e-6)  # type: ignore[operator]
                and metrics.blocked_share <= targets.max_blocked_share * (1 + 1e-6)
                and rate <= metrics.capacity_rps * (1 + 1e-9)
            )

        assert kept(float(sizing.max_rate_rps))
        assert not kept(1.01 * float(sizing.max_rate_rps))


@given(one=servers(), factor=st.floats(1.01, 20))
@settings(max_examples=60, deadline=None)
def test_the_largest_rate_meets_its_targets_with_any_number_of_chunks(
    one: ServerModel, factor: float
) -> None:
    for model in PHYSICAL:
        idle = model.analyze(one, 0.0)
        targets = Targets(factor * idle.ttft_s.mean, factor * idle.itl_s.mean)
        sizing = model.max_rate(one, targets)
        at = model.analyze(one, sizing.max_rate_rps)
        assert at.ttft_s.mean <= targets.ttft_s * (1 + 1e-6)  # type: ignore[operator]
        assert at.itl_s.mean <= targets.itl_s * (1 + 1e-6)  # type: ignore[operator]


@NON_COMPAT
def test_infeasible_targets_say_which_and_leave_the_others_alone(model: QueueingModel) -> None:
    targets = Targets([1e-6, 1.0, 1.0, np.nan], [1.0, 1e-6, 1.0, np.nan], [np.nan, np.nan, 1e9, np.nan])  # type: ignore[arg-type]
    sizing = model.max_rate(server(), targets)
    assert sizing.feasible.tolist() == [False, False, False, True]
    assert sizing.max_rate_rps[:3].tolist() == [0, 0, 0]
    assert sizing.binding[:3].tolist() == [Binding.TTFT, Binding.ITL, Binding.TPS]
    assert sizing.max_rate_rps[3] > 0


def test_a_single_place_without_queue_is_sized_by_its_blocking() -> None:
    one = server(batch=1, queue=0)
    sizing = BirthDeathModel().max_rate(one, Targets())
    capacity = float(BirthDeathModel().analyze(one, 0.0).capacity_rps)
    # Erlang's loss formula with one server: λ/(λ+μ) = 0.01.
    assert float(sizing.max_rate_rps) == pytest.approx(capacity / 99, rel=1e-8)
    assert sizing.binding == Binding.BLOCKING


@pytest.mark.parametrize("queue", [0, 100])
def test_a_target_that_the_rate_does_not_move_is_met(queue: int) -> None:
    one = server(batch=1, queue=queue)
    exact = float(BirthDeathModel().analyze(one, 0.0).itl_s.mean)
    with_target, without = (BirthDeathModel().max_rate(one, Targets(itl_s=itl)) for itl in (exact, None))
    assert with_target.feasible
    assert float(with_target.max_rate_rps) == pytest.approx(float(without.max_rate_rps), rel=1e-9)


def test_a_throughput_target_is_met_at_the_largest_rate_or_refused() -> None:
    model = BirthDeathModel()
    free = model.max_rate(server(), Targets(itl_s=0.02))
    tokens = float(model.analyze(server(), free.max_rate_rps).throughput_rps) * 256.0
    assert model.max_rate(server(), Targets(itl_s=0.02, tps=0.999 * tokens)).max_rate_rps == free.max_rate_rps
    refused = model.max_rate(server(), Targets(itl_s=0.02, tps=1.001 * tokens))
    assert not refused.feasible and refused.binding == Binding.TPS


def test_more_blocking_allowed_is_more_rate_up_to_capacity() -> None:
    model, one = BirthDeathModel(), server(batch=32, queue=0)
    rates = model.max_rate(one, Targets(max_blocked_share=np.array([1e-4, 1e-2, 0.03, 1.0]))).max_rate_rps
    assert (np.diff(rates) > 0).all()
    assert rates[-1] == pytest.approx(float(model.analyze(one, 0.0).capacity_rps))


def test_overload_names_what_saturates() -> None:
    metrics = BirthDeathModel().analyze(server([0.05, 1e-6, 1e-9], batch=8), np.array([0.1, 1.2, 1e4]))
    assert metrics.overloaded.tolist() == [False, True, True]
    assert metrics.saturation.tolist() == [Saturation.NONE, Saturation.BATCH, Saturation.COMPUTE]


@NON_COMPAT
@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.2])
def test_concurrency_is_the_smallest_batch_near_the_best_of_the_whole_curve(
    model: QueueingModel, tolerance: float
) -> None:
    targets = Targets(0.5, 0.03)
    rates = [float(model.max_rate(server(batch=batch), targets).max_rate_rps) for batch in range(1, 97)]
    near = [
        batch
        for batch, rate in enumerate(rates, start=1)
        if rate >= (1 - tolerance) * max(rates) * (1 - 1e-9)
    ]
    assert model.concurrency(server(batch=96), targets, tolerance=tolerance) == near[0]


@EVERY
def test_concurrency_is_zero_where_no_batch_is_feasible(model: QueueingModel) -> None:
    answer = model.concurrency(server(batch=np.array([8, 8])), Targets(np.array([1e-6, 5.0])))
    assert answer[0] == 0 and answer[1] > 0


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, np.nan])
def test_a_tolerance_that_cannot_be_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        BirthDeathModel().concurrency(server(), Targets(1.0), tolerance=tolerance)


def test_fluid_follows_its_closed_form_while_one_chunk_is_enough() -> None:
    alpha, beta, gamma = PARAMETERS
    prompt, output, rate = 1024.0, 256.0, 3.0
    work = (beta + gamma) * prompt + beta * output + gamma * output * (prompt + (output + 1) / 2)
    slope = work / (1 + output)
    iteration = (alpha + slope) / (1 - rate * work)
    metrics = FluidModel().analyze(server(), rate)
    assert metrics.occupancy == pytest.approx(rate * (1 + output) * iteration, rel=1e-12)
    assert metrics.end_to_end_s.mean == pytest.approx((1 + output) * iteration, rel=1e-12)


def test_fluid_agrees_with_the_chain_at_low_load() -> None:
    fluid, exact = (
        flatten(model.analyze(server(batch=128), 1.0)) for model in (FluidModel(), BirthDeathModel())
    )
    for name in ("occupancy", "itl_s", "ttft_s", "end_to_end_s"):
        assert fluid[name] == pytest.approx(exact[name], rel=1e-9), name


def test_compat_refuses_what_the_reference_refuses() -> None:
    compat = BirthDeathCompatModel()
    with pytest.raises(ValueError, match="rate_rps"):
        compat.analyze(server(), 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        compat.analyze(server(batch=1, queue=0), 1.0)
