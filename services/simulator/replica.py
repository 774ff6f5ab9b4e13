"""One replica: an LLM inference engine with continuous batching, exact to the token.

The engine works in iterations. An iteration computes one token for every request that is decoding and gives
what is left of its token budget to prompts, first come first served, in chunks; it takes

    T = alpha + beta·(tokens computed) + gamma·(KV tokens read)

where a prompt chunk reads the prompt up to and including itself, and the j-th decode iteration of a request
with an input of L tokens reads L + j. With `decode_s`, `prefill_read_s` and `prefill_square_s` prompts and decoding
cost differently, as in the seven-parameter law. The chunk that ends a prompt yields the request's first output token,
so K output tokens take K - 1 decode iterations. A request enters at the start of an iteration, if fewer than
`max_batch` run and its whole footprint L + K fits into the KV memory not yet promised to others; with that
promise nothing is ever preempted.

While nothing but decoding goes on, T grows by gamma·n from one iteration to the next, so that the end of the
k-th is a quadratic in k: `advance` takes as many iterations at once as no request ends in, and costs a
constant per event, not per token. Times are seconds on any one scale; pure, no clock.
"""

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, sqrt

from services.simulator.histogram import LATENCY_EDGES_S, TOKEN_EDGES_S, TTFT_EDGES_S, Histogram


@dataclass(frozen=True, slots=True)
class EngineParameters:
    """What an engine is made of: the iteration law's parameters in seconds, and its limits.

    `kv_tokens` is the KV memory in tokens, None for no limit. `decode_s` of each decoding request and
    `prefill_read_s` of each KV token that a prompt chunk reads are beta and gamma where they are None;
    `prefill_square_s` is a chunk's from token i to j times j² − i²; `overhead_s` is spent outside the engine.
    """

    alpha_s: float
    beta_s: float
    gamma_s: float
    token_budget: int
    kv_tokens: int | None
    decode_s: float | None = None
    prefill_read_s: float | None = None
    prefill_square_s: float = 0.0
    overhead_s: float = 0.0

    @property
    def per_decode_s(self) -> float:
        return self.beta_s if self.decode_s is None else self.decode_s

    @property
    def per_prefill_read_s(self) -> float:
        return self.gamma_s if self.prefill_read_s is None else self.prefill_read_s


@dataclass(slots=True, eq=False)
class Request:
    """A request on its way; times are None until they happen.

    `arrival_s` is when it reached the server's gateway, `submitted_s` when it reached the replica.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefilled_tokens: int = 0
    submitted_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    finish_s: float | None = None

    @property
    def footprint_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Engine:
    """A replica's engine at its present time; counters and histograms only grow.

    `finished` collects completed requests until the owner takes them. `next_change_s` is a time before
    which no request leaves, whatever else is not submitted; infinite when idle.
    """

    def __init__(self, parameters: EngineParameters, max_batch: int) -> None:
        self.parameters = parameters
        self.max_batch = max_batch
        self.slow_factor = 1.0
        self.waiting: deque[Request] = deque()
        self.finished: list[Request] = []
        self.next_change_s = inf
        self.requests_total = 0
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0
        self.ttft = Histogram(TTFT_EDGES_S)
        self.itl = Histogram(TOKEN_EDGES_S)
        self.time_per_output_token = Histogram(TOKEN_EDGES_S)
        self.e2e_latency = Histogram(LATENCY_EDGES_S)
        self.queue_time = Histogram(LATENCY_EDGES_S)
        self._prefilling: deque[Request] = deque()
        # Every decoding request gains a token per iteration, so the iteration it ends in is known at once:
        # entries are (number of that iteration, tie-breaker, request).
        self._decoding: list[tuple[int, int, Request]] = []
        self._iterations = 0
        self._sequence = 0
        self._context_tokens = 0
        self._promised_tokens = 0
        self._chunks: list[tuple[Request, int]] = []
        self._iteration_s = 0.0
        self._end_s = inf

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def outstanding(self) -> int:
        return len(self._prefilling) + len(self._decoding) + len(self.waiting)

    @property
    def kv_tokens_used(self) -> int:
        return self._context_tokens + sum(request.prefilled_tokens for request in self._prefilling)

    def submit(self, request: Request, now_s: float) -> None:
        """Queue a request at `now_s`, not earlier than any time the engine has been advanced to."""
        self.advance(now_s)
        request.submitted_s = now_s
        self.waiting.append(request)
        if self._end_s == inf:
            self._begin(now_s, now_s)
        self.next_change_s = self._end_s

    def limit_batch(self, max_batch: int) -> None:
        """Set the largest number of running requests; those above a lower limit run to their end."""
        self.max_batch = max_batch
        self.next_change_s = self._end_s

    def slow_down(self, factor: float) -> None:
        """Stretch every later iteration by a factor."""
        self.slow_factor = factor
        self.next_change_s = self._end_s

    def advance(self, until_s: float) -> None:
        """Carry out every iteration that ends by `until_s`; the one then in progress is fixed."""
        while self._end_s <= until_s:
            end_s = self._end_s
            self._complete(end_s)
            self._begin(end_s, until_s)

    def abandon(self) -> list[Request]:
        """Give up every unfinished request, oldest first, as they were before they were admitted."""
        lost = [entry[2] for entry in self._decoding] + [*self._prefilling, *self.waiting]
        for request in lost:
            request.prefilled_tokens = 0
            request.admitted_s = request.first_token_s = None
        return sorted(lost, key=lambda request: request.arrival_s)

    def _begin(self, start_s: float, until_s: float) -> None:
        """Plan the iteration that starts at `start_s`, after the decode-only ones that end by `until_s`."""
        decoding, law = self._decoding, self.parameters
        n = len(decoding)
        self._chunks = self._plan_chunks(start_s, law.token_budget - n)
        slow = self.slow_factor
        if self._chunks:
            computed = sum(size for _, size in self._chunks)
            ends = [(r.prefilled_tokens, r.prefilled_tokens + size) for r, size in self._chunks]
            read = sum(end for _, end in ends)
            squares = sum(end**2 - start**2 for start, end in ends)
            prompts_s = law.beta_s * computed + law.per_prefill_read_s * read + law.prefill_square_s * squares
            decodes_s = law.per_decode_s * n + law.gamma_s * (self._context_tokens + n)
            self._iteration_s = slow * (law.alpha_s + prompts_s + decodes_s)
            self._end_s = self.next_change_s = start_s + self._iteration_s
            return
        if not n:
            self._end_s = self.next_change_s = inf
            return
        growth_s = slow * law.gamma_s * n
        first_s = slow * (law.alpha_s + law.per_decode_s * n + law.gamma_s * (self._context_tokens + n))
        remaining = decoding[0][0] - self._iterations
        jump = min(remaining - 1, _iterations_within(until_s - start_s, first_s, growth_s))
        if jump > 0:
            self._iterations += jump
            self._context_tokens += jump * n
            self.generation_tokens_total += jump * n
            self.itl.observe_series(first_s, growth_s, jump, n)
            start_s += _series_s(jump, first_s, growth_s)
            first_s += jump * growth_s
            remaining -= jump
        self._iteration_s = first_s
        self._end_s = start_s + first_s
        self.next_change_s = start_s + _series_s(remaining, first_s, growth_s)

    def _plan_chunks(self, start_s: float, budget: int) -> list[tuple[Request, int]]:
        chunks: list[tuple[Request, int]] = []
        for request in self._prefilling:
            if budget <= 0:
                return chunks
            size = min(budget, request.input_tokens - request.prefilled_tokens)
            chunks.append((request, size))
            budget -= size
        waiting, limit = self.waiting, self.parameters.kv_tokens
        while waiting and budget > 0 and self.running < self.max_batch:
            request = waiting[0]
            if limit is not None and self._promised_tokens + request.footprint_tokens > limit:
                break
            waiting.popleft()
            request.admitted_s = start_s
            self._prefilling.append(request)
            self._promised_tokens += request.footprint_tokens
            size = min(budget, request.input_tokens)
            chunks.append((request, size))
            budget -= size
        return chunks

    def _complete(self, end_s: float) -> None:
        """Book the results of the iteration in progress, which ends at `end_s`."""
        decoding = self._decoding
        if n := len(decoding):
            self._iterations += 1
            self._context_tokens += n
            self.generation_tokens_total += n
            self.itl.observe(self._iteration_s, n)
            while decoding and decoding[0][0] <= self._iterations:
                request = heappop(decoding)[2]
                self._context_tokens -= request.footprint_tokens - 1
                self._finish(request, end_s)
        for request, size in self._chunks:
            request.prefilled_tokens += size
            if request.prefilled_tokens < request.input_tokens:
                continue
            # Prompts end in the order they were admitted, so this is the oldest.
            self._prefilling.popleft()
            request.first_token_s = end_s + self.parameters.overhead_s
            self.prompt_tokens_total += request.input_tokens
            self.generation_tokens_total += 1
            self.ttft.observe(request.first_token_s - request.submitted_s)
            if request.output_tokens == 1:
                self._finish(request, end_s)
            else:
                self._sequence += 1
                last = self._iterations + request.output_tokens - 1
                heappush(decoding, (last, self._sequence, request))
                self._context_tokens += request.input_tokens

    def _finish(self, request: Request, end_s: float) -> None:
        assert request.admitted_s is not None and request.first_token_s is not None
        request.finish_s = end_s + self.parameters.overhead_s
        self._promised_tokens -= request.footprint_tokens
        self.requests_total += 1
        self.e2e_latency.observe(request.finish_s - request.submitted_s)
        self.queue_time.observe(request.admitted_s - request.submitted_s)
        if request.output_tokens > 1:
            gaps = request.output_tokens - 1
            self.time_per_output_token.observe((request.finish_s - request.first_token_s) / gaps)
        self.finished.append(request)


def _series_s(count: int, first_s: float, growth_s: float) -> float:
    """Duration of `count` iterations, the first of which takes first_s and each next growth_s more."""
    return count * (first_s + growth_s * (count - 1) / 2.0)


def _iterations_within(duration_s: float, first_s: float, growth_s: float) -> int:
    """The largest number of such iterations that end within `duration_s`, the positive root rounded down."""
    if duration_s < first_s:
        return 0
    half = first_s - growth_s / 2.0
    count = int(2.0 * duration_s / (half + sqrt(half * half + 2.0 * growth_s * duration_s)))
    while _series_s(count, first_s, growth_s) > duration_s:
        count -= 1
    while _series_s(count + 1, first_s, growth_s) <= duration_s:
        count += 1
    return count
