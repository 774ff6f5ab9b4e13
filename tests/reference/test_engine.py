"""The token-level engine against one that takes token by token, against closed forms, and what it conserves."""

import math
from dataclasses import replace

import numpy as np
import pytest
from plain_engine import EngineCase, assert_same, compiled, plain, random_case

from services.perfmodel.law import Array, TokenCosts
from services.perfmodel.queueing_models.chain import Chain
from services.perfmodel.queueing_models.simulation import estimate
from services.perfmodel.root_finding import Rows

REQUESTS = 800_000
COUNTED = slice(REQUESTS // 10, None)
NO_PROMPTS = np.zeros(REQUESTS, dtype=np.int64)
SEEDS = range(40)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_every_request_fares_as_when_every_token_is_followed(chunked: bool, cached: bool) -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=chunked, cached=cached)
        expected, followed = plain(case)
        assert_same(compiled(case), expected)
        assert followed.most_running <= case.max_batch
        assert followed.most_tokens <= max(case.token_budget, case.max_batch)


def costs(
    iteration_s: float = 0.0,
    prefill_token_s: float = 0.0,
    prefill_read_s: float = 0.0,
    prefill_square_s: float = 0.0,
    decode_s: float = 0.0,
    decode_read_s: float = 0.0,
) -> TokenCosts:
    """Costs, the first token with the end of the prefill: without a prompt K tokens take K iterations."""
    values = (iteration_s, prefill_token_s, prefill_read_s, prefill_square_s, decode_s, decode_read_s)
    return TokenCosts(*map(np.asarray, values), prefill_tokens=1)


def without_prompts(output: Rows, rate_rps: float, token_costs: TokenCosts, places: int) -> EngineCase:
    """Poisson arrivals of requests without prompts, an endless waiting room."""
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(1.0 / rate_rps, REQUESTS))
    return EngineCase(arrival_s, NO_PROMPTS, NO_PROMPTS, output, token_costs, max_batch=places)


def geometric(mean: float) -> Rows:
    return np.random.default_rng(2).geometric(1.0 / mean, REQUESTS)


def assert_mean(values: Array, expected: float, noise: float, bias: float) -> None:
    """The mean of a run is the expected one.

    noise: the largest half-width of the 95 % confidence interval, as a share of the mean, with which the test
        still says something; three half-widths are allowed, as the seeds are fixed but many are compared.
    bias: share of the mean by which the engine differs from the formula, which knows no iterations.
    """
    found = estimate(values[COUNTED])
    assert found.half_width <= noise * expected
    assert abs(found.mean - expected) <= 1.5 * found.half_width + bias * expected, (found, expected)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_place_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    mean, token_s = 40.0, 0.01
    for output in (geometric(mean), np.full(REQUESTS, 40)):
        rate = load / (mean * token_s)
        case = without_prompts(output, rate, costs(iteration_s=token_s), places=1)
        mean_s, square = output.mean() * token_s, np.square(output, dtype=float).mean() * token_s**2
        expected = rate * square / (2.0 * (1.0 - rate * mean_s))
        # An idle engine starts at once and a busy one ends with a request: nothing is rounded to iterations.
        assert_mean(compiled(case).admitted_s - case.arrival_s, expected, noise=0.08, bias=0.0)


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize("places", [2, 8])
def test_places_that_do_not_slow_each_other_wait_as_erlang_says(places: int, load: float) -> None:
    mean, token_s = 1000.0, 0.001
    rate = load * places / (mean * token_s)
    case = without_prompts(geometric(mean), rate, costs(iteration_s=token_s), places)
    offered = load * places
    terms = [offered**n / math.factorial(n) for n in range(places)]
    full = offered**places / math.factorial(places) / (1.0 - load)
    expected = full / (sum(terms) + full) * mean * token_s / (places * (1.0 - load))
    # Half an iteration in progress, of a thousand that a request takes; little is waited for at the low load.
    assert_mean(
        compiled(case).admitted_s - case.arrival_s, expected, noise=0.08, bias=0.5 * token_s / expected
    )


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize("family", ["fixed", "geometric", "two lengths"])
def test_shared_processing_takes_as_long_whatever_the_distribution_of_lengths(
    family: str, load: float
) -> None:
    mean, token_s = 500.0, 0.001
    rng = np.random.default_rng(3)
    output = {
        "fixed": np.full(REQUESTS, 500),
        "geometric": geometric(mean),
        # A squared coefficient of variation of 2.6.
        "two lengths": np.where(rng.random(REQUESTS) < 0.8, 100, 2100),
    }[family]
    rate = load / (mean * token_s)
    case = without_prompts(output, rate, costs(decode_s=token_s), places=4000)
    expected = output.mean() * token_s / (1.0 - rate * output.mean() * token_s)
    # Its first iteration costs an arrival nothing, and it waits for the one in progress: a token of some hundreds.
    assert_mean(compiled(case).finish_s - case.arrival_s, expected, noise=0.04, bias=0.01)


@pytest.mark.parametrize("load", [0.6, 0.8])
def test_iterations_that_slow_with_the_batch_make_the_birth_death_chain(load: float) -> None:
    mean, base_s, slope_s, places = 2000.0, 1e-3, 5e-4, 4
    batch = np.arange(1.0, places + 1.0)
    service_s = mean * (base_s + slope_s * batch)
    chain = Chain.from_rates((batch / service_s)[None, :], np.array([float(places)]), np.array([1e6]))
    rate = load * chain.full_rate
    found = chain.found_at(rate, np.zeros(1, dtype=np.intp))
    case = without_prompts(geometric(mean), float(rate[0]), costs(base_s, decode_s=slope_s), places)
    run = compiled(case)
    wait_s = float(found.queued_before[0] / chain.full_rate[0])
    iteration_s = base_s + slope_s * places
    assert_mean(run.admitted_s - case.arrival_s, wait_s, noise=0.08, bias=0.5 * iteration_s / wait_s)
    # The first iteration of a request, one of thousands, is a prefill without work.
    assert_mean(
        run.finish_s - run.admitted_s, float(found.mean(service_s[None, :])[0]), noise=0.02, bias=0.002
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_requests_enter_in_the_order_of_arrival_and_their_times_follow_each_other(chunked: bool) -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=chunked, cached=True)
        run = compiled(case)
        assert (np.diff(run.admitted_s) >= 0).all()
        assert (run.admitted_s >= case.arrival_s).all()
        assert (run.first_token_s > run.admitted_s).all()
        assert (run.finish_s >= run.first_token_s).all()


@pytest.mark.parametrize("chunked", [False, True])
def test_every_token_is_made_once(chunked: bool) -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=chunked, cached=False)
        run = compiled(case)
        assert np.isfinite(run.finish_s).all()
        assert run.decoded == (case.output - case.costs.prefill_tokens).sum()
        assert run.gaps.sum() == run.decoded


def test_no_more_requests_are_in_service_than_there_are_places() -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=True, cached=False)
        run = compiled(case)
        for moment in run.admitted_s:
            # Who finishes at a moment has left before others enter at it.
            inside = (run.admitted_s <= moment) & (run.finish_s > moment)
            assert inside.sum() <= case.max_batch


@pytest.mark.parametrize("chunked", [False, True])
def test_an_engine_that_never_idles_spends_its_time_on_iterations_and_work_alone(chunked: bool) -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=chunked, cached=False)
        # Reads by prefills depend on the chunks; all other work does not depend on the order.
        at_once = replace(
            case,
            arrival_s=np.zeros(case.arrival_s.size),
            costs=replace(case.costs, prefill_read_s=np.asarray(0.0), prefill_tokens=0),
        )
        run, spent = compiled(at_once), case.costs
        prompt, output = case.prompt.astype(float), case.output.astype(float)
        work = spent.prefill_token_s * prompt + spent.prefill_square_s * prompt**2
        work += spent.decode_s * output + spent.decode_read_s * (output * prompt + output * (output + 1) / 2)
        assert run.finish_s.max() == pytest.approx(run.iterations * spent.iteration_s + work.sum(), rel=1e-10)


def test_a_run_is_the_same_every_time() -> None:
    case = random_case(1, chunked=True, cached=True)
    first, again = compiled(case), compiled(case)
    assert (first.finish_s == again.finish_s).all()
    assert (first.gaps == again.gaps).all()
