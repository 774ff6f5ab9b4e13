"""The chain against closed forms and against a dense solve of its generator."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from services.perfmodel.law import Array
from services.perfmodel.queueing_models.chain import Chain, geometric_sums

ONE_ROW = np.zeros(1, dtype=np.intp)


@dataclass(frozen=True)
class Steady:
    throughput: float
    blocked_share: float
    in_service: float
    in_queue: float


def by_chain(rate: float, service_rate: Array, queue: int) -> Steady:
    count = service_rate.size
    chain = Chain.from_rates(service_rate[None, :], np.array([float(count)]), np.array([float(queue)]))
    found = chain.found_at(np.array([rate]), ONE_ROW)
    service = found.mean((np.arange(1, count + 1) / service_rate)[None, :])[0]
    throughput = float(found.throughput[0])
    wait = found.queued_before[0] / service_rate[-1]
    return Steady(throughput, float(found.blocked_share[0]), throughput * service, throughput * wait)


def by_exact_sums(rate: float, service_rate: Array, queue: int) -> Steady:
    """Balance equations in rational arithmetic."""
    batch = service_rate.size
    weight = [Fraction(1)]
    for state in range(1, batch + queue + 1):
        weight.append(weight[-1] * Fraction(rate) / Fraction(float(service_rate[min(state, batch) - 1])))
    total = sum(weight)
    share = [one / total for one in weight]
    blocked = share[-1]
    return Steady(
        float(Fraction(rate) * (1 - blocked)),
        float(blocked),
        float(sum((min(state, batch) * one for state, one in enumerate(share)), Fraction(0))),
        float(sum((max(state - batch, 0) * one for state, one in enumerate(share)), Fraction(0))),
    )


def assert_same(actual: Steady, expected: Steady, relative: float = 1e-10) -> None:
    for name in ("throughput", "blocked_share", "in_service", "in_queue"):
        assert getattr(actual, name) == pytest.approx(getattr(expected, name), rel=relative, abs=1e-290), name


def stationary(rates: Array) -> Array:
    """The stationary distribution of a dense chain by state reduction, which subtracts nothing.

    W. K. Grassmann, M. I. Taksar, D. P. Heyman, Operations Research 33 (1985) 1107-1116.
    """
    left = rates.copy()
    for last in range(len(left) - 1, 0, -1):
        left[:last, last] /= left[last, :last].sum()
        left[:last, :last] += np.outer(left[:last, last], left[last, :last])
    share = np.zeros(len(left))
    share[0] = 1.0
    for state in range(1, len(left)):
        share[state] = share[:state] @ left[:state, state]
    normed: Array = share / share.sum()
    return normed


@given(
    service_rate=arrays(float, st.integers(1, 12), elements=st.floats(0.01, 100.0)),
    queue=st.integers(0, 20),
    rate=st.floats(1e-3, 1e3),
)
def test_small_chains_agree_with_a_dense_solve(service_rate: Array, queue: int, rate: float) -> None:
    batch, size = service_rate.size, service_rate.size + queue + 1
    generator = np.zeros((size, size))
    for state in range(size - 1):
        generator[state, state + 1] = rate
        generator[state + 1, state] = service_rate[min(state + 1, batch) - 1]
    share = stationary(generator)
    state = np.arange(size)
    expected = Steady(
        rate * (1 - share[-1]),
        share[-1],
        (np.minimum(state, batch) * share).sum(),
        (np.maximum(state - batch, 0) * share).sum(),
    )
    actual = by_chain(rate, service_rate, queue)
    # The throughput of the solve is a difference, exact in absolute terms only.
    assert actual.throughput == pytest.approx(expected.throughput, rel=1e-9, abs=1e-12 * rate)
    for name in ("blocked_share", "in_service", "in_queue"):
        assert getattr(actual, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-290), name


@given(
    service_rate=arrays(float, st.integers(1, 12), elements=st.floats(0.01, 100.0)),
    queue=st.integers(0, 20),
    rate=st.floats(1e-3, 1e3),
)
def test_small_chains_agree_with_rational_arithmetic(service_rate: Array, queue: int, rate: float) -> None:
    assert_same(by_chain(rate, service_rate, queue), by_exact_sums(rate, service_rate, queue))


@pytest.mark.parametrize("load", [0.01, 0.7, 0.999, 1.0 - 1e-9, 1.0 + 1e-9, 1.0, 1.3, 50.0])
@pytest.mark.parametrize("room", [1, 2, 9, 120])
def test_one_server_agrees_with_the_mm1k_formula(load: float, room: int) -> None:
    rho = Fraction(load)
    total = sum(rho**state for state in range(room + 1))
    blocked = rho**room / total
    in_system = sum(state * rho**state for state in range(room + 1)) / total
    actual = by_chain(load, np.array([1.0]), room - 1)
    assert actual.blocked_share == pytest.approx(float(blocked), rel=1e-10)
    assert actual.throughput == pytest.approx(float(rho * (1 - blocked)), rel=1e-10)
    assert actual.in_service + actual.in_queue == pytest.approx(float(in_system), rel=1e-10)


@pytest.mark.parametrize("servers", [1, 5, 40])
@pytest.mark.parametrize("queue", [0, 1, 60])
@pytest.mark.parametrize("load", [0.1, 0.95, 1.0, 2.0])
def test_many_servers_agree_with_the_mmck_formula(servers: int, queue: int, load: float) -> None:
    service_rate = 0.7 * np.arange(1, servers + 1)
    assert_same(
        by_chain(load * servers * 0.7, service_rate, queue),
        by_exact_sums(load * servers * 0.7, service_rate, queue),
    )


def test_a_server_without_queue_agrees_with_the_erlang_loss_recursion() -> None:
    offered, blocked = 90.0, 1.0
    for servers in range(1, 101):
        blocked = offered * blocked / (servers + offered * blocked)
    assert by_chain(offered, np.arange(1.0, 101.0), 0).blocked_share == pytest.approx(blocked, rel=1e-11)


@pytest.mark.parametrize("load", [0.9, 1.0, 1.0 + 1e-7, 1.5])
@pytest.mark.parametrize("queue", [700, 20_000])
def test_a_long_queue_agrees_with_summation_over_all_states(load: float, queue: int) -> None:
    service_rate = np.arange(1, 33) / (1 + 0.5 * np.arange(1, 33))
    rate = load * float(service_rate[-1])
    steps = np.full(32 + queue + 1, np.log(np.longdouble(rate)))
    steps[1:33] -= np.log(service_rate.astype(np.longdouble))
    steps[33:] -= np.log(np.longdouble(service_rate[-1]))
    steps[0] = 0
    logs = np.cumsum(steps)
    share = np.exp(logs - logs.max())
    share /= share.sum()
    state = np.arange(share.size)
    expected = Steady(
        float(rate * (1 - share[-1])),
        float(share[-1]),
        float((np.minimum(state, 32) * share).sum()),
        float((np.maximum(state - 32, 0) * share).sum()),
    )
    assert_same(by_chain(rate, service_rate, queue), expected, relative=1e-9)


@pytest.mark.parametrize("rate", [0.0, 1e-300, 1e-9, 1e9, 1e300])
@pytest.mark.parametrize("queue", [0, 1, 100_000])
def test_extreme_rates_stay_finite(rate: float, queue: int) -> None:
    service_rate = np.arange(1, 1025) / (1 + 0.5 * np.arange(1, 1025))
    actual = by_chain(rate, service_rate, queue)
    assert 0 <= actual.blocked_share <= 1
    assert 0 <= actual.in_service <= 1024 * (1 + 1e-9)
    assert 0 <= actual.in_queue <= queue * (1 + 1e-9)
    assert actual.throughput <= min(rate, service_rate[-1]) * (1 + 1e-9)
    if rate > 1e6:
        assert actual.throughput == pytest.approx(service_rate[-1], rel=1e-6)


@given(step=st.floats(0, 40), count=st.integers(0, 400))
def test_geometric_sums_agree_with_summation(step: float, count: int) -> None:
    powers = np.exp(-step * np.arange(count))
    plain, weighted = geometric_sums(np.array([step]), np.array([float(count)]))
    assert plain[0] == pytest.approx(powers.sum(), rel=1e-11)
    assert weighted[0] == pytest.approx((np.arange(1, count + 1) * powers).sum(), rel=1e-9)


@pytest.mark.parametrize("product", [0.0, 1e-9, 9e-4, 1.1e-3, 1e-2])
def test_geometric_sums_hold_where_series_and_closed_form_meet(product: float) -> None:
    for count in (1, 2, 1000, 100_000):
        step = product / count
        powers = np.exp(-step * np.arange(count, dtype=np.longdouble))
        plain, weighted = geometric_sums(np.array([step]), np.array([float(count)]))
        assert plain[0] == pytest.approx(float(powers.sum()), rel=1e-11)
        assert weighted[0] == pytest.approx(float((np.arange(1, count + 1) * powers).sum()), rel=1e-9)
