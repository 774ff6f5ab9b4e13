"""The engine of a replica, against a loop that carries out one iteration at a time."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import accumulate, count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator.histogram import TOKEN_EDGES_S, Histogram
from services.simulator.replica import Engine, EngineParameters, Request

FAR_S = 1e5


@dataclass
class Naive:
    arrival_s: float
    inputs: int
    outputs: int
    prefilled: int = 0
    produced: int = 0
    admitted_s: float = 0.0
    first_s: float = 0.0
    finish_s: float = 0.0


def one_iteration_at_a_time(
    arrivals: list[tuple[float, int, int]], law: EngineParameters, max_batch: int
) -> tuple[list[Naive], list[float]]:
    """Every request with its times, and every gap between two tokens of a request."""
    every = [Naive(*arrival) for arrival in arrivals]
    waiting, running, gaps, now_s = list(every), list[Naive](), list[float](), 0.0
    while waiting or running:
        if not running:
            now_s = max(now_s, waiting[0].arrival_s)
        decoding = [r for r in running if r.prefilled == r.inputs]
        budget, chunks = law.token_budget - len(decoding), []
        for request in [r for r in running if r.prefilled < r.inputs]:
            if (size := min(max(budget, 0), request.inputs - request.prefilled)) > 0:
                chunks.append((request, size))
                budget -= size
        while waiting and waiting[0].arrival_s <= now_s and budget > 0 and len(running) < max_batch:
            promised = sum(r.inputs + r.outputs for r in [*running, waiting[0]])
            if law.kv_tokens is not None and promised > law.kv_tokens:
                break
            request = waiting.pop(0)
            request.admitted_s = now_s
            running.append(request)
            size = min(budget, request.inputs)
            chunks.append((request, size))
            budget -= size
        duration_s = law.alpha_s
        for request in decoding:
            each_s = law.beta_s if law.decode_s is None else law.decode_s
            duration_s += each_s + law.gamma_s * (request.inputs + request.produced)
        for request, size in chunks:
            end = request.prefilled + size
            each_s = law.gamma_s if law.prefill_read_s is None else law.prefill_read_s
            duration_s += law.beta_s * size + each_s * end
            duration_s += law.prefill_square_s * (end**2 - request.prefilled**2)
        now_s += duration_s
        for request in decoding:
            request.produced += 1
            gaps.append(duration_s)
        for request, size in chunks:
            request.prefilled += size
            if request.prefilled == request.inputs:
                request.produced, request.first_s = 1, now_s
        for request in [r for r in running if r.produced == r.outputs]:
            request.finish_s = now_s
            running.remove(request)
    return every, gaps


lengths = st.integers(min_value=1, max_value=400)
streams = st.lists(
    st.tuples(st.floats(min_value=0.0, max_value=1.5), lengths, st.integers(min_value=1, max_value=120)),
    min_size=1,
    max_size=25,
)
laws = st.builds(
    EngineParameters,
    alpha_s=st.floats(min_value=1e-3, max_value=0.05),
    beta_s=st.floats(min_value=0.0, max_value=1e-4),
    gamma_s=st.one_of(st.just(0.0), st.floats(min_value=1e-7, max_value=1e-5)),
    token_budget=st.sampled_from([8, 64, 512, 8192]),
    kv_tokens=st.sampled_from([None, 600, 2000]),
    decode_s=st.none() | st.floats(min_value=0.0, max_value=1e-3),
    prefill_read_s=st.none() | st.just(0.0),
    prefill_square_s=st.sampled_from([0.0, 1e-8]),
    overhead_s=st.just(0.0),
)


@settings(max_examples=150, deadline=None)
@given(
    stream=streams,
    law=laws,
    max_batch=st.integers(min_value=1, max_value=12),
    looks_s=st.lists(st.floats(min_value=0.01, max_value=30.0), max_size=10),
)
def test_jumping_over_iterations_gives_the_times_of_carrying_out_each(
    stream: list[tuple[float, int, int]], law: EngineParameters, max_batch: int, looks_s: list[float]
) -> None:
    arrivals, now_s = [], 0.0
    for gap_s, inputs, outputs in stream:
        # An irrational step keeps arrivals off the ends of iterations, where rounding would decide.
        now_s += gap_s * 0.7320508075688772 + 1.4142135e-7
        arrivals.append((now_s, inputs, outputs))
    expected, gaps = one_iteration_at_a_time(arrivals, law, max_batch)

    engine = Engine(law, max_batch)
    requests = [Request(*arrival) for arrival in arrivals]
    events = [(request.arrival_s, index) for index, request in enumerate(requests)]
    events += [(look_s, -1) for look_s in looks_s]
    for time_s, index in sorted(events):
        engine.advance(time_s)
        if index >= 0:
            engine.submit(requests[index], time_s)
    engine.advance(FAR_S)

    for request, naive in zip(requests, expected, strict=True):
        # 1e-9 s: sums of at most some thousand terms differ by rounding alone.
        assert request.admitted_s == pytest.approx(naive.admitted_s, abs=1e-9)
        assert request.first_token_s == pytest.approx(naive.first_s, abs=1e-9)
        assert request.finish_s == pytest.approx(naive.finish_s, abs=1e-9)
    assert engine.itl.count == len(gaps)
    assert engine.itl.sum == pytest.approx(sum(gaps), abs=1e-7)
    assert engine.generation_tokens_total == sum(outputs for _, _, outputs in arrivals)
    assert engine.prompt_tokens_total == sum(inputs for _, inputs, _ in arrivals)
    assert engine.kv_tokens_used == 0
    assert engine.outstanding == 0


def test_a_lone_request_takes_what_the_iteration_law_says() -> None:
    law = EngineParameters(alpha_s=8e-3, beta_s=16e-6, gamma_s=5e-7, token_budget=8192, kv_tokens=None)
    engine = Engine(law, 64)
    inputs, outputs = 1000, 200
    engine.submit(Request(0.0, inputs, outputs), 0.0)
    engine.advance(FAR_S)
    (request,) = engine.finished
    prefill_s = 8e-3 + 16e-6 * inputs + 5e-7 * inputs
    steps = outputs - 1
    decode_s = steps * (8e-3 + 16e-6) + 5e-7 * (steps * inputs + steps * (steps + 1) / 2)
    assert request.first_token_s == pytest.approx(prefill_s, abs=1e-12)
    assert request.finish_s == pytest.approx(prefill_s + decode_s, abs=1e-12)


def test_how_often_the_engine_is_looked_at_does_not_change_what_it_does() -> None:
    law = EngineParameters(alpha_s=8e-3, beta_s=16e-6, gamma_s=5e-7, token_budget=512, kv_tokens=None)
    finishes = []
    for step_s in (0.003, 1.0, 1000.0):
        engine = Engine(law, 4)
        for index in range(12):
            engine.submit(Request(0.0, 100 + 37 * index, 50 + 11 * index), 0.0)
        for tick in count(1):
            engine.advance(tick * step_s)
            if not engine.outstanding:
                break
        finishes.append([request.finish_s for request in engine.finished])
    for other in finishes[1:]:
        assert other == pytest.approx(finishes[0], abs=1e-9)


def test_histograms_count_what_the_log_of_requests_holds() -> None:
    law = EngineParameters(alpha_s=0.02, beta_s=5e-5, gamma_s=1e-6, token_budget=1024, kv_tokens=20_000)
    engine = Engine(law, 8)
    for index in range(200):
        engine.submit(Request(index * 0.21, 50 + index * 7 % 900, 1 + index * 13 % 150), index * 0.21)
    engine.advance(FAR_S)
    done = engine.finished
    assert engine.requests_total == len(done) == 200
    per_token = [(r.finish_s - r.first_token_s) / (r.output_tokens - 1) for r in done if r.output_tokens > 1]  # type: ignore[operator]
    for histogram, values in (
        (engine.ttft, [r.first_token_s - r.submitted_s for r in done]),  # type: ignore[operator]
        (engine.e2e_latency, [r.finish_s - r.submitted_s for r in done]),  # type: ignore[operator]
        (engine.queue_time, [r.admitted_s - r.submitted_s for r in done]),  # type: ignore[operator]
        (engine.time_per_output_token, per_token),
    ):
        counts = [0] * (len(histogram.edges) + 1)
        for value in values:
            counts[bisect_left(histogram.edges, value)] += 1
        assert histogram.counts == counts
        assert histogram.sum == pytest.approx(sum(values), rel=1e-12)
    assert engine.itl.count == sum(r.output_tokens - 1 for r in done)


def test_requests_wait_while_the_kv_memory_is_promised_to_others() -> None:
    law = EngineParameters(alpha_s=0.01, beta_s=0.0, gamma_s=0.0, token_budget=8192, kv_tokens=1000)
    engine = Engine(law, 64)
    for _ in range(3):
        engine.submit(Request(0.0, 300, 100), 0.0)
    engine.advance(0.5)
    assert (engine.running, len(engine.waiting)) == (2, 1)
    assert engine.kv_tokens_used <= 1000
    engine.advance(FAR_S)
    assert engine.requests_total == 3


def test_a_lower_batch_limit_holds_for_the_next_admission_and_cuts_nobody_off() -> None:
    law = EngineParameters(alpha_s=0.01, beta_s=0.0, gamma_s=0.0, token_budget=8192, kv_tokens=None)
    engine = Engine(law, 8)
    for _ in range(12):
        engine.submit(Request(0.0, 10, 100), 0.0)
    engine.advance(0.5)
    assert (engine.running, len(engine.waiting)) == (8, 4)
    engine.limit_batch(2)
    engine.advance(0.9)
    assert engine.running == 8
    engine.advance(1.5)
    assert (engine.running, len(engine.waiting)) == (2, 2)
    engine.limit_batch(8)
    engine.advance(1.6)
    assert (engine.running, len(engine.waiting)) == (4, 0)


@settings(max_examples=200, deadline=None)
@given(
    first=st.floats(min_value=1e-3, max_value=2.0),
    step=st.one_of(st.just(0.0), st.floats(min_value=1e-6, max_value=0.3)),
    length=st.integers(min_value=1, max_value=300),
    times=st.integers(min_value=1, max_value=5),
)
def test_a_series_of_gaps_is_counted_as_if_one_by_one(
    first: float, step: float, length: int, times: int
) -> None:
    whole, single = Histogram(TOKEN_EDGES_S), Histogram(TOKEN_EDGES_S)
    whole.observe_series(first, step, length, times)
    for index in range(length):
        single.observe(first + index * step, times)
    assert whole.count == single.count
    assert whole.sum == pytest.approx(single.sum, rel=1e-9)
    # A gap that lies on an edge up to rounding may be counted on either side of it.
    for ours, theirs in zip(accumulate(whole.counts), accumulate(single.counts), strict=True):
        assert abs(ours - theirs) <= times


def test_overhead_outside_the_engine_is_in_every_latency_and_between_no_tokens() -> None:
    plain = EngineParameters(alpha_s=0.01, beta_s=1e-5, gamma_s=0.0, token_budget=8192, kv_tokens=None)
    sums = []
    for law in (plain, replace(plain, overhead_s=0.5)):
        engine = Engine(law, 4)
        engine.submit(Request(0.0, 100, 11), 0.0)
        engine.advance(10.0)
        sums.append(
            (engine.ttft.sum, engine.e2e_latency.sum, engine.itl.sum, engine.time_per_output_token.sum)
        )
    assert sums[1] == pytest.approx((sums[0][0] + 0.5, sums[0][1] + 0.5, sums[0][2], sums[0][3]))
