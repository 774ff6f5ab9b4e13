"""The engine where the waiting room or the KV memory is full, against `plain_engine`."""

import numpy as np
import pytest
from plain_engine import EngineCase, assert_same, compiled, plain, random_case

from services.perfmodel.law import TokenCosts

SEEDS = range(40)
REQUESTS = 800_000


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_every_request_is_turned_away_or_fares_as_when_every_token_is_followed(
    chunked: bool, cached: bool, memory: bool
) -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=chunked, cached=cached, memory=memory, blocking=True)
        assert_same(compiled(case), plain(case)[0])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_every_request_is_preempted_as_when_every_token_is_followed(chunked: bool, cached: bool) -> None:
    preemptions = 0
    for seed in SEEDS:
        case = random_case(seed, chunked=chunked, cached=cached, memory=True)
        expected, _ = plain(case)
        assert_same(compiled(case), expected)
        preemptions += expected.preemptions
    assert preemptions > 100


def test_requests_that_fit_the_memory_are_all_served() -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=False, cached=False, memory=True)
        assert np.isfinite(compiled(case).finish_s).all(), seed


def test_the_memory_is_never_exceeded() -> None:
    for seed in SEEDS:
        case = random_case(seed, chunked=True, cached=False, memory=True)
        expected, followed = plain(case)
        assert_same(compiled(case), expected)
        assert followed.most_blocks <= case.kv_blocks, seed


def test_one_request_that_ends_leaves_its_blocks_to_the_next() -> None:
    costs = TokenCosts(*map(np.asarray, (0.01, 0.0, 0.0, 0.0, 0.0, 0.0)), prefill_tokens=0)
    two = np.array([60, 60]), np.array([0, 0]), np.array([30, 30])
    case = EngineCase(np.zeros(2), *two, costs, max_batch=2, kv_blocks=100, block_tokens=1)
    run = compiled(case)
    assert run.finish_s[1] == pytest.approx(0.01 * 31 * 2)


@pytest.mark.parametrize("load", [0.5, 0.9, 1.5])
@pytest.mark.parametrize("room", [1, 3, 10])
def test_one_place_turns_away_as_many_as_the_mm1k_formula(load: float, room: int) -> None:
    mean, token_s, rng = 400.0, 0.01, np.random.default_rng(2)
    costs = TokenCosts(*map(np.asarray, (token_s, 0.0, 0.0, 0.0, 0.0, 0.0)), prefill_tokens=1)
    rate = load / (mean * token_s)
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(1.0 / rate, REQUESTS))
    none = np.zeros(REQUESTS, dtype=np.int64)
    case = EngineCase(
        arrival_s, none, none, rng.geometric(1.0 / mean, REQUESTS), costs, max_batch=1, max_queue=room - 1
    )
    blocked = np.isnan(compiled(case).finish_s).mean()
    expected = load**room * (1.0 - load) / (1.0 - load ** (room + 1))
    # Whole tokens for exponential times, and five standard errors of a count in clusters of two.
    assert abs(blocked - expected) <= 0.005 * expected + 5.0 * np.sqrt(2.0 * expected / REQUESTS)
