"""What the exact, the fluid and the compatible model promise beyond what every queueing model does."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queueing_suite import PARAMETERS, server

from services.perfmodel.law import Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import (
    Binding,
    Distribution,
    Metrics,
    QueueingModel,
    Saturation,
    ServerModel,
    Targets,
)
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel
from services.perfmodel.queueing_models.fluid import FluidModel

PHYSICAL: list[QueueingModel] = [BirthDeathModel(), FluidModel()]
NON_COMPAT = pytest.mark.parametrize("model", PHYSICAL, ids=lambda model: model.name)


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
