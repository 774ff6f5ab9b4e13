"""The compiled chains against their definition in fifty digits, and against the plain path."""

import math
from dataclasses import dataclass, fields
from itertools import accumulate
from operator import mul

import mpmath
import numpy as np
import pytest
from exact_chain import DIGITS, ExactServer, exact_slopes, exact_state, service_times, weights

from services.perfmodel import affine_kernels as kernels
from services.perfmodel.law import Array, Limits, Workload
from services.perfmodel.laws.seven_parameter import SevenParameterLaw
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import Binding, ServerModel, Sizing, Targets
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.chains import Chains
from services.perfmodel.queueing_models.tables import Tables
from services.perfmodel.root_finding import Rows
from services.perfmodel.sizing import RateCurves, RateOutcome, largest_rates

MODEL = BirthDeathModel()
# Doubles carry sixteen digits; adding and the closed form may lose six.
RELATIVE = 1e-10
# Adding stops where no more than 10⁻¹⁷ of all the weight is left, so shares below this are known to 10⁻¹⁶ only.
NOTHING = 1e-6
SPECIAL_LOADS = (1.0, 1.0 + 1e-9, 1.0 - 1e-9, 1.0 - 1e-6, 0.99, 0.9, 1e-5, 2.0, 1e6)


@dataclass(frozen=True)
class Case:
    """A chain, times affine in the batch, at a rate of `load` times its capacity."""

    iterations: float
    base: float
    slope: float
    places: int
    queue: int
    load: float

    @property
    def full(self) -> float:
        return self.places / (self.iterations * (self.base + self.slope * self.places))

    @property
    def rate(self) -> float:
        return self.load * self.full

    @property
    def shape(self) -> float:
        return min(self.base / self.slope, kernels.LARGEST_SHAPE) if self.slope else kernels.LARGEST_SHAPE

    @property
    def ratio(self) -> float:
        """λmd, with the slope that the largest shape allows."""
        slope = self.slope if self.shape < kernels.LARGEST_SHAPE else self.base / self.shape
        return self.rate * self.iterations * slope

    @property
    def service(self) -> list[mpmath.mpf]:
        with mpmath.workdps(DIGITS):
            return service_times(self.iterations, self.base, self.slope, self.places)

    @property
    def row(self) -> Array:
        """The case as a row of a table; times affine in the batch do not enter."""
        coefficient = kernels.log_coefficient(self.shape, float(self.places))
        row = np.zeros(kernels.ROW)
        row[:6] = self.iterations, self.base, self.slope, coefficient, self.places, self.queue
        return row


def random_cases(seed: int, count: int, most_queue: int = 10_000) -> list[Case]:
    """Chains over the whole range: N to 1024, Q to 10 000, slopes from none to ten times the base, any load."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        places = int(rng.choice([1, 2, 8, 64, 96, 97, 130, 256, 500, 1024]))
        base = 10 ** rng.uniform(-4, -1)
        slope = base * 10 ** float(rng.choice([rng.uniform(-5, 1), rng.uniform(-3, 0), -12.0, -30.0]))
        kind = rng.random()
        if kind < 0.05:
            slope = 0.0
        elif kind < 0.1:
            base = 0.0
        queues = [0, 1, 10, 128, 1000, most_queue] if places < 300 else [0, 1, 128]
        load = float(rng.choice([rng.uniform(0.01, 1.2), float(rng.choice(SPECIAL_LOADS))]))
        queue = int(rng.choice([q for q in queues if q <= most_queue]))
        cases.append(Case(rng.uniform(2, 2000), base, slope, places, queue, load))
    return cases


NAMED_CASES = [
    *(Case(300.0, 0.01, 1e-4, 128, 10_000, load) for load in (1.0, 1.0 + 1e-9, 1.0 - 1e-9, 1.5, 1e6)),
    *(Case(300.0, 0.01, slope, 256, 128, 0.95) for slope in (0.0, 1e-300, 1e-20, 1e-9, 1.0)),
    *(Case(300.0, 0.01, 1.0, 1024, queue, 1.0) for queue in (0, 128)),
    *(Case(50.0, 0.01, 1e-3, 1, queue, load) for queue in (0, 1, 500) for load in (1e-5, 0.9, 1.0, 1e6)),
    # r = λmd of at least one: no negative binomial.
    *(
        Case(300.0, 1e-6, 0.01, places, 10, load)
        for places in (2, 200, 1024)
        for load in (0.999, 1.001, 30.0)
    ),
]


def state(case: Case) -> Array:
    found: Array = kernels.states(np.array([case.rate]), np.zeros(1, dtype=np.intp), case.row[None, :])[0]
    return found


def assert_close(actual: float, expected: mpmath.mpf, relative: float, floor: float, name: object) -> None:
    """Relative to the exact value, or to a floor below which digits mean nothing."""
    scale = max(abs(expected), mpmath.mpf(floor))
    assert abs(mpmath.mpf(actual) - expected) <= relative * scale, (name, actual, float(expected))


@pytest.mark.parametrize(
    "cases",
    [NAMED_CASES, random_cases(1, 70)],
    ids=["named", "random"],
)
def test_what_arrivals_find_agrees_with_fifty_digits(cases: list[Case]) -> None:
    for case in cases:
        exact, found = exact_state(mpmath.mpf(case.rate), case.service, case.queue), state(case)
        for column, name in enumerate(("batch", "batch_sq", "found", "waited", "queued", "blocked", "idle")):
            assert_close(found[column], getattr(exact, name), RELATIVE, NOTHING, (name, case))


def test_derivatives_agree_with_differences_in_fifty_digits() -> None:
    for case in [c for c in random_cases(2, 40, most_queue=128) if c.load > 1e-4] + NAMED_CASES[5:]:
        if case.queue > 1000:
            continue
        found = state(case)
        batch, waited, blocked = exact_slopes(mpmath.mpf(case.rate), case.service, case.queue)
        # Covariances are differences of products of means, exact relative to those products only.
        mean = max(found[kernels.FOUND], 1.0)
        for column, exact, scale in (
            (kernels.SLOPE_BATCH, batch, found[kernels.BATCH] * mean),
            (kernels.SLOPE_WAITED, waited, max(found[kernels.WAITED], 1e-20) * mean),
            (kernels.SLOPE_BLOCKED, blocked, float(case.places + case.queue)),
        ):
            assert_close(found[column], exact, RELATIVE, scale, (column, case))


def exact_sums(case: Case) -> list[mpmath.mpf]:
    """Σp_n, Σnp_n, Σn²p_n over n < N, p_N and p₀."""
    with mpmath.workdps(DIGITS):
        share = weights(mpmath.mpf(case.rate), case.service)
        below = share[: case.places]
        powers = [mpmath.fsum(n**k * one for n, one in enumerate(below)) for k in range(3)]
        return [*powers, share[-1], share[0]]


def assert_same_sums(sums: tuple[float, ...], case: Case) -> None:
    """Whatever the scale, as shares of all the weight up to N."""
    exact = exact_sums(case)
    total, exact_total = mpmath.mpf(sums[0]) + sums[3], exact[0] + exact[3]
    for index, name in enumerate(("below", "one", "two", "last", "first")):
        assert_close(float(sums[index] / total), exact[index] / exact_total, RELATIVE, NOTHING, (name, case))


def test_the_closed_form_agrees_with_fifty_digits_wherever_it_claims_to_hold() -> None:
    claimed = 0
    for case in random_cases(3, 150, most_queue=0):
        if case.places < 64 or not kernels.is_closed(case.shape, case.ratio, float(case.places)):
            continue
        coefficient = kernels.log_coefficient(case.shape, float(case.places))
        assert_same_sums(kernels.closed_sums(case.shape, case.ratio, float(case.places), coefficient), case)
        claimed += 1
    assert claimed > 30


def test_added_terms_agree_with_fifty_digits_at_any_rate() -> None:
    for case in [*random_cases(4, 60, most_queue=0), *NAMED_CASES]:
        assert_same_sums(
            kernels.added_sums(case.rate, case.iterations, case.base, case.slope, case.places), case
        )


@pytest.mark.parametrize("queue", [0, 1, 2, 7, 128, 10_000])
@pytest.mark.parametrize("x", [0.0, 1e-300, 0.3, 0.999, 1.0 - 1e-9, 1.0])
def test_sums_over_the_waiting_room_agree_with_fifty_digits(x: float, queue: int) -> None:
    with mpmath.workdps(DIGITS):
        powers = list(accumulate([mpmath.mpf(x)] * (queue - 1), mul, initial=mpmath.mpf(1)))[:queue]
        expected = [mpmath.fsum((j + 1) ** k * one for j, one in enumerate(powers)) for k in range(3)]
        expected.append(mpmath.mpf(x) ** queue)
        for index, (actual, exact) in enumerate(zip(kernels.waiting_sums(x, queue), expected, strict=True)):
            # Adding positive numbers loses a digit at most; the last power loses one for each doubling.
            assert_close(actual, exact, 1e-12, 1e-290, index)


def random_servers(seed: int, count: int, jumps: bool) -> ServerModel:
    """Servers of the three-parameter law; with `jumps` their prompts need more chunks the fuller the batch."""
    rng = np.random.default_rng(seed)
    output = rng.uniform(2.0, 600.0, count)
    workload = Workload(
        rng.uniform(0.0, 6000.0 if jumps else 500.0, count), output, output_tokens_sq=output**2 * 1.7
    )
    limits = Limits(
        rng.choice([1.0, 2.0, 17.0, 96.0, 97.0, 200.0], count),
        rng.choice([0.0, 1.0, 60.0, 3000.0], count),
        rng.choice([700.0, 2048.0], count) if jumps else np.full(count, 1e9),
    )
    parameters = np.array([8e-3, 3e-5, 3e-7]) * rng.uniform(0.1, 5.0, (count, 3))
    return ServerModel(ThreeParameterLaw(), parameters, workload, limits)


def random_targets(servers: ServerModel, rng: np.random.Generator) -> Targets:
    """Targets just above or far above what an idle server does, or none."""
    idle = MODEL.analyze(servers, 0.0)
    bounds = []
    for alone, decades in ((idle.ttft_s.mean, (-3, 2)), (idle.itl_s.mean, (-3, 1))):
        bound = alone * (1.0 + 10 ** rng.uniform(*decades, alone.size))
        bounds.append(np.where(rng.random(alone.size) < 0.3, np.nan, bound))
    return Targets(*bounds, max_blocked_share=rng.choice([1.0, 0.01], idle.ttft_s.mean.size)).spread(
        servers.shape
    )


def assert_largest(servers: ServerModel, targets: Targets, sizing: Sizing) -> set[int]:
    """Every rate meets its targets and a hundred-millionth more does not, by fifty digits; returns what binds."""
    for row, rate in enumerate(sizing.max_rate_rps):
        assert sizing.feasible[row]
        one, at = ExactServer.of(servers.take(np.array([row]))), mpmath.mpf(float(rate))
        limits = (targets.ttft_s, targets.itl_s, targets.max_blocked_share)
        bounds = [float(np.asarray(limit)[row]) for limit in limits]
        bounds = [math.inf if math.isnan(bound) else bound for bound in bounds]
        with mpmath.workdps(DIGITS):
            # Latencies are computed to a hundredth of a billionth.
            met = [value / bound - 1 for value, bound in zip(one.figures(at), bounds, strict=True)]
            assert max(met) <= 1e-11, (row, met)
            if sizing.binding[row] == Binding.CAPACITY:
                assert float(rate / one.capacity) == pytest.approx(1.0, rel=1e-10), row
                continue
            more = one.figures(at * (1 + mpmath.mpf("1e-8")))
            beyond = [value / bound - 1 for value, bound in zip(more, bounds, strict=True)]
            assert max(beyond) > 0, (row, beyond)
            cause = (Binding.TTFT, Binding.ITL, Binding.BLOCKING)[beyond.index(max(beyond))]
            assert sizing.binding[row] == cause, (row, beyond)
    return set(sizing.binding.tolist())


def test_the_largest_rate_meets_its_targets_and_a_hundred_millionth_more_does_not() -> None:
    servers = random_servers(7, 40, jumps=False)
    targets = random_targets(servers, np.random.default_rng(5))
    seen = assert_largest(servers, targets, MODEL.max_rate(servers, targets))
    assert seen == {Binding.CAPACITY, Binding.TTFT, Binding.ITL, Binding.BLOCKING}


def test_a_target_below_an_idle_servers_time_is_infeasible_and_named() -> None:
    servers = random_servers(12, 20, jumps=True)
    idle = MODEL.analyze(servers, 0.0)
    for targets, cause in (
        (Targets(ttft_s=idle.ttft_s.mean * (1 - 1e-9)), Binding.TTFT),
        (Targets(itl_s=idle.itl_s.mean * (1 - 1e-9)), Binding.ITL),
    ):
        sizing = MODEL.max_rate(servers, targets)
        assert not sizing.feasible.any()
        assert (sizing.max_rate_rps == 0).all()
        assert (sizing.binding == cause).all()


def tabulated(servers: ServerModel) -> RateCurves:
    tables = Tables.of(servers)

    def evaluate(rate: Array, rows: Rows) -> RateOutcome:
        states = tables.states(rate, rows)
        ttft = tables.overhead_s[rows] + states.wait_s + states.prefill_s
        return RateOutcome(ttft, states.inter_token_s, states.blocked_share, states.throughput_rps)

    return RateCurves(tables.chain.full_rate, evaluate)


def assert_both_paths_say_the_same(servers: ServerModel, load: float) -> None:
    chains, rows = Chains.of(servers), np.arange(servers.shape[0])
    rate = load * chains.full_rate
    plain, compiled = Tables.of(servers).states(rate, rows), chains.at(rate, rows)
    for field in fields(plain):
        # Shares below 10⁻¹⁷ are left out by the compiled path.
        np.testing.assert_allclose(
            getattr(compiled, field.name),
            getattr(plain, field.name),
            rtol=1e-9,
            atol=1e-16,
            err_msg=field.name,
        )


@pytest.mark.parametrize("load", [0.02, 0.7, 0.95, 1.0, 1.3])
@pytest.mark.parametrize("jumps", [False, True])
def test_the_plain_path_and_the_compiled_one_say_the_same(jumps: bool, load: float) -> None:
    assert_both_paths_say_the_same(random_servers(7, 120, jumps), load)


def test_the_plain_path_and_the_compiled_one_say_the_same_of_the_seven_parameter_law() -> None:
    rng = np.random.default_rng(8)
    parameters = np.array([7e-3, 2e-5, 1e-4, 2e-8, 3e-10, 0.01, 0.8]) * rng.uniform(0.3, 3.0, (40, 7))
    workload = Workload(rng.uniform(0.0, 3000.0, 40), rng.uniform(2.0, 600.0, 40))
    assert_both_paths_say_the_same(
        ServerModel(SevenParameterLaw(), parameters, workload, Limits(128, 50)).rows(), 0.9
    )


@pytest.mark.parametrize("jumps", [False, True])
def test_the_plain_path_and_the_compiled_one_size_the_same(jumps: bool) -> None:
    servers = random_servers(9, 120, jumps)
    targets = random_targets(servers, np.random.default_rng(10))
    compiled, plain = MODEL.max_rate(servers, targets), largest_rates(servers, targets, tabulated)
    assert (compiled.feasible == plain.feasible).all()
    np.testing.assert_allclose(compiled.max_rate_rps, plain.max_rate_rps, rtol=1e-8)
    assert (compiled.binding == plain.binding).all()


@pytest.mark.parametrize("load", [0.5, 1.0, 1.2])
def test_chains_with_chunk_jumps_agree_with_fifty_digits(load: float) -> None:
    servers = random_servers(11, 60, jumps=True)
    law, limits = servers.law, servers.limits
    alone, full = (
        law.iterations_per_request(servers.parameters, batch, servers.workload, limits.token_budget)
        for batch in (1.0, np.asarray(limits.max_batch))
    )
    jumping = np.flatnonzero(alone != full)[:10]
    assert jumping.size == 10
    for row in jumping:
        one = servers.take(np.array([row]))
        exact, rate = ExactServer.of(one), load * MODEL.analyze(one, 0.0).capacity_rps
        metrics = MODEL.analyze(one, rate)
        ttft, itl, blocked = exact.figures(mpmath.mpf(float(rate[0])))
        assert_close(float(metrics.ttft_s.mean[0]), ttft, RELATIVE, NOTHING, (row, "ttft"))
        assert_close(float(metrics.itl_s.mean[0]), itl, RELATIVE, NOTHING, (row, "itl"))
        assert_close(float(metrics.blocked_share[0]), blocked, RELATIVE, NOTHING, (row, "blocked"))
