"""An engine with continuous batching followed one iteration and one token at a time, as plainly as it can be said."""

import math
from dataclasses import dataclass, field, fields

import numpy as np

from services.perfmodel import engine
from services.perfmodel.law import Array, TokenCosts
from services.perfmodel.root_finding import Rows


@dataclass
class Request:
    """A request and what has become of it."""

    number: int
    arrival_s: float
    prompt: int
    cached: int
    output: int
    generated: int = 0
    # Tokens that must be in the KV cache before it decodes, and those that are: the newest token joins them only
    # with the iteration that makes the next one.
    wanted: int = 0
    present: int = 0
    admitted_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    last_token_s: float = math.nan
    # The order in which requests enter the engine.
    entry: int = -1


@dataclass
class PlainEngine:
    """What `engine.run` promises, without its jumps.

    kv_blocks: 0 is without limit. gaps_s: seconds between tokens, in no order.
    most_blocks, most_running, most_tokens: the largest seen at any iteration of blocks held, requests in service
        and tokens computed.
    """

    costs: TokenCosts
    token_budget: int
    max_batch: int
    max_queue: int
    kv_blocks: int
    block_tokens: int
    gaps_s: list[float] = field(default_factory=list)
    iterations: int = 0
    decoded: int = 0
    preemptions: int = 0
    most_blocks: int = 0
    most_running: int = 0
    most_tokens: int = 0

    def run(self, requests: list[Request]) -> None:
        """Serve requests in the order of their arrival; writes their times."""
        waiting: list[Request] = []
        preempted: list[Request] = []
        prefilling: list[Request] = []
        decoding: list[Request] = []
        coming = list(requests)
        now, entries = 0.0, 0
        while coming or waiting or preempted or prefilling or decoding:
            while coming and coming[0].arrival_s <= now:
                one = coming.pop(0)
                in_system = len(waiting) + len(preempted) + len(prefilling) + len(decoding)
                fits = self.kv_blocks == 0 or self.blocks(one.prompt + one.output) <= self.kv_blocks
                if fits and in_system < self.max_batch + self.max_queue:
                    one.wanted = one.prompt
                    waiting.append(one)

            while self.kv_blocks and self.held(prefilling, decoding) > self.kv_blocks:
                if len(prefilling) + len(decoding) == 1:
                    break
                victim = max([*prefilling, *decoding], key=lambda one: one.entry)
                if victim in decoding:
                    decoding.remove(victim)
                    victim.wanted, victim.last_token_s = victim.present, now
                else:
                    prefilling.remove(victim)
                victim.present = 0
                preempted.append(victim)
                self.preemptions += 1

            left = self.token_budget - len(decoding)
            computed: list[tuple[Request, int]] = []
            for one in prefilling:
                if left <= 0:
                    break
                size = min(left, one.wanted - one.present)
                computed.append((one, size))
                left -= size
            while left > 0 and (preempted or waiting) and len(prefilling) + len(decoding) < self.max_batch:
                one = preempted[-1] if preempted else waiting[0]
                held = self.held(prefilling, decoding) + self.blocks(one.wanted)
                if self.kv_blocks and held > self.kv_blocks:
                    break
                if preempted:
                    preempted.pop()
                else:
                    waiting.pop(0)
                    one.admitted_s, one.entry = now, entries
                    entries += 1
                one.present = min(one.cached, one.wanted)
                prefilling.append(one)
                size = min(left, one.wanted - one.present)
                computed.append((one, size))
                left -= size

            if not computed and not decoding:
                if not coming:
                    return
                now = max(now, coming[0].arrival_s)
                continue
            now += self.duration_s(computed, decoding)
            self.iterations += 1
            self.most_blocks = max(self.most_blocks, self.held(prefilling, decoding))
            self.most_running = max(self.most_running, len(prefilling) + len(decoding))
            self.most_tokens = max(self.most_tokens, sum(size for _, size in computed) + len(decoding))
            self.end_iteration(now, computed, prefilling, decoding)

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.block_tokens)

    def held(self, prefilling: list[Request], decoding: list[Request]) -> int:
        """Blocks that prompts hold, and that decoding holds at the end of the coming iteration."""
        return sum(self.blocks(one.wanted) for one in prefilling) + sum(
            self.blocks(one.present + 1) for one in decoding
        )

    def duration_s(self, computed: list[tuple[Request, int]], decoding: list[Request]) -> float:
        costs = self.costs
        seconds = float(costs.iteration_s)
        for one in decoding:
            seconds += float(costs.decode_s) + float(costs.decode_read_s) * (one.present + 1)
        for one, size in computed:
            stop = one.present + size
            seconds += float(costs.prefill_token_s) * size + float(costs.prefill_read_s) * stop
            seconds += float(costs.prefill_square_s) * (stop**2 - one.present**2)
        return seconds

    def end_iteration(
        self,
        now: float,
        computed: list[tuple[Request, int]],
        prefilling: list[Request],
        decoding: list[Request],
    ) -> None:
        for one in list(decoding):
            one.generated += 1
            one.present += 1
            self.decoded += 1
            self.gaps_s.append(now - one.last_token_s)
            one.last_token_s = now
            if one.generated == one.output:
                one.finish_s = now
                decoding.remove(one)
        for one, size in computed:
            one.present += size
            if one.present < one.wanted:
                continue
            prefilling.remove(one)
            if math.isnan(one.first_token_s):
                one.first_token_s = now
            else:
                self.gaps_s.append(now - one.last_token_s)
            one.last_token_s = now
            one.generated += self.costs.prefill_tokens
            if one.generated >= one.output:
                one.finish_s = now
            else:
                decoding.append(one)


@dataclass(frozen=True)
class EngineCase:
    """What one run is given; see `engine.run`. output holds at least one token a request."""

    arrival_s: Array
    prompt: Rows
    cached: Rows
    output: Rows
    costs: TokenCosts
    token_budget: int = 1_000_000
    max_batch: int = 8
    max_queue: int = 1_000_000
    kv_blocks: int = 0
    block_tokens: int = 16


@dataclass(frozen=True)
class EngineRun:
    """What an engine made of a case; times are NaN of requests that were turned away."""

    admitted_s: Array
    first_token_s: Array
    finish_s: Array
    gaps: Array
    iterations: int
    decoded: int
    preemptions: int


def compiled(case: EngineCase) -> EngineRun:
    """The run of the compiled engine."""
    times = [np.empty(case.arrival_s.size) for _ in range(3)]
    gaps = np.zeros(engine.BINS)
    costs = np.array([float(getattr(case.costs, one.name)) for one in fields(case.costs)[:-1]])
    counts = engine.run(
        case.arrival_s,
        case.prompt,
        case.cached,
        case.output,
        costs,
        case.costs.prefill_tokens,
        case.token_budget,
        case.max_batch,
        case.max_queue,
        case.kv_blocks,
        case.block_tokens,
        *times,
        gaps,
    )
    return EngineRun(times[0], times[1], times[2], gaps, *counts)


def plain(case: EngineCase) -> tuple[EngineRun, PlainEngine]:
    """The run of the plain engine, and the engine for what else it saw."""
    found = PlainEngine(
        case.costs, case.token_budget, case.max_batch, case.max_queue, case.kv_blocks, case.block_tokens
    )
    rows = zip(case.arrival_s, case.prompt, case.cached, case.output, strict=True)
    requests = [Request(k, float(t), int(p), int(c), int(o)) for k, (t, p, c, o) in enumerate(rows)]
    found.run(requests)
    admitted, first, finish = (
        np.array([getattr(one, name) for one in requests])
        for name in ("admitted_s", "first_token_s", "finish_s")
    )
    bins = np.minimum(np.searchsorted(engine.gap_edges(), found.gaps_s), engine.BINS - 1)
    gaps = np.bincount(bins, minlength=engine.BINS).astype(float)
    counts = found.iterations, found.decoded, found.preemptions
    return EngineRun(admitted, first, finish, gaps, *counts), found


def random_case(
    seed: int, *, chunked: bool, cached: bool, memory: bool = False, blocking: bool = False
) -> EngineCase:
    """Sixty requests at any load on a small engine."""
    rng, count = np.random.default_rng(seed), 60
    prompt = rng.integers(0, 120, count)
    costs = np.array([0.01, 1e-4, 1e-6, 1e-8, 1e-3, 1e-6]) * rng.uniform(0.1, 3.0, 6)
    block_tokens = int(rng.choice([1, 4, 16]))
    return EngineCase(
        arrival_s=np.cumsum(rng.exponential(1.0, count)) * float(rng.choice([0.005, 0.05, 0.3])),
        prompt=prompt,
        cached=(prompt * rng.uniform(0.0, 0.9, count) * cached).astype(np.int64),
        output=rng.integers(1, 60, count),
        costs=TokenCosts(*costs, prefill_tokens=int(rng.integers(0, 2))),
        token_budget=int(rng.integers(8, 64)) if chunked else 1_000_000,
        max_batch=int(rng.integers(1, 8)),
        max_queue=int(rng.integers(0, 6)) if blocking else 1_000_000,
        # At least the longest request, at most a few.
        kv_blocks=int(rng.integers(200 // block_tokens + 1, 600 // block_tokens + 2)) if memory else 0,
        block_tokens=block_tokens,
    )


def assert_same(found: EngineRun, expected: EngineRun) -> None:
    """The same requests turned away, the same times to rounding, the same counts."""
    for name in ("admitted_s", "first_token_s", "finish_s"):
        # Series are added at once by one and term by term by the other.
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-12, err_msg=name
        )
    for name in ("iterations", "decoded", "preemptions"):
        assert getattr(found, name) == getattr(expected, name), name
    places = [np.repeat(np.arange(engine.BINS), run.gaps.astype(np.int64)) for run in (found, expected)]
    # A gap on the edge of two bins may be rounded into either.
    assert places[0].size == places[1].size
    assert np.abs(places[0] - places[1]).max(initial=0) <= 1
