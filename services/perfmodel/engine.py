"""Continuous batching followed request by request, exact to the token and compiled.

An engine works in iterations. Each computes one token of every request that decodes, and gives what is left of
its token budget to prompts, first come first served, in chunks. A request enters at the start of an iteration
if a place and the KV blocks of its prompt are free; decoding takes further blocks as the output grows, and where
none is left the request that entered last is preempted: it loses its blocks, goes back to the head of the queue
and is prefilled again with what it has generated. What iterations cost is the law's (`TokenCosts`).

Every decoding request gains a token per iteration, so the iteration it ends in is known when it starts, and the
durations of iterations that do nothing but decode are an arithmetic series: all iterations up to the next event
are taken at once, and the cost is per event, not per token.

Limits of validity: the budget never holds back decoding; prompt tokens found in the prefix cache are read and not
computed, but each request still holds its own blocks for them; one priority; no speculative decoding.
"""

import math

import numpy as np
from numba import njit

from services.perfmodel.law import Array
from services.perfmodel.root_finding import Rows

# Token gaps are counted in bins of equal ratio, 1 % wide, from 10 µs to beyond 100 s.
SHORTEST_GAP_S = 1e-5
BINS_PER_E = 100
BINS = 1620


def gap_edges() -> Array:
    """The upper edges of the bins of token gaps in seconds, shape (BINS,)."""
    edges: Array = SHORTEST_GAP_S * np.exp(np.arange(1, BINS + 1) / BINS_PER_E)
    return edges


@njit(cache=True)
def _bin(gap_s: float) -> int:
    if gap_s <= SHORTEST_GAP_S:
        return 0
    return min(BINS - 1, int(math.log(gap_s / SHORTEST_GAP_S) * BINS_PER_E))


@njit(cache=True)
def _count_series(gaps: Array, first_s: float, growth_s: float, count: int, weight: int) -> None:
    """Count `weight` gaps of each of `count` durations that start at first_s and grow by growth_s."""
    done = 0
    while done < count:
        gap_s = first_s + done * growth_s
        found = _bin(gap_s)
        if found == BINS - 1 or growth_s <= 0.0:
            run = count - done
        else:
            edge_s = SHORTEST_GAP_S * math.exp((found + 1) / BINS_PER_E)
            run = min(count - done, max(1, int(np.ceil((edge_s - gap_s) / growth_s))))
        gaps[found] += run * weight
        done += run


@njit(cache=True)
def _sift_up(ends: Rows, members: Rows, place: int) -> None:
    while place > 0:
        parent = (place - 1) // 2
        if ends[parent] <= ends[place]:
            return
        ends[parent], ends[place] = ends[place], ends[parent]
        members[parent], members[place] = members[place], members[parent]
        place = parent


@njit(cache=True)
def _sift_down(ends: Rows, members: Rows, place: int, size: int) -> None:
    while True:
        child = 2 * place + 1
        if child >= size:
            return
        if child + 1 < size and ends[child + 1] < ends[child]:
            child += 1
        if ends[place] <= ends[child]:
            return
        ends[child], ends[place] = ends[place], ends[child]
        members[child], members[place] = members[place], members[child]
        place = child


@njit(cache=True)
def _iterations_until(duration_s: float, first_s: float, growth_s: float) -> int:
    """The fewest iterations of durations first_s, first_s + growth_s, … that end at or after a duration."""
    if growth_s <= 0.0:
        return max(1, int(np.ceil(duration_s / first_s)))
    half = first_s - 0.5 * growth_s
    root = 2.0 * duration_s / (half + math.sqrt(half * half + 2.0 * growth_s * duration_s))
    return max(1, int(np.ceil(root)))


@njit(cache=True)
def _arrive(
    until_s: float,
    upcoming: int,
    tail: int,
    room: int,
    arrival_s: Array,
    blocks: Rows,
    kv_blocks: int,
    queue: Rows,
) -> tuple[int, int]:
    """Queue who arrives until a time, up to a tail of `room`; returns the next to arrive and the new tail."""
    while upcoming < arrival_s.size and arrival_s[upcoming] <= until_s:
        if tail < room and (kv_blocks == 0 or blocks[upcoming] <= kv_blocks):
            queue[tail] = upcoming
            tail += 1
        upcoming += 1
    return upcoming, tail


@njit(cache=True)
def run(
    arrival_s: Array,
    prompt: Rows,
    cached: Rows,
    output: Rows,
    costs: Array,
    prefill_tokens: int,
    token_budget: int,
    max_batch: int,
    max_queue: int,
    kv_blocks: int,
    block_tokens: int,
    admitted_s: Array,
    first_token_s: Array,
    finish_s: Array,
    gaps: Array,
) -> tuple[int, int, int]:
    """Serve requests in the order of their arrival; returns iterations, decoded tokens and preemptions.

    arrival_s, prompt, cached, output: shape (R,): seconds in rising order, prompt tokens, those of them in the
        prefix cache, output tokens.
    costs: the six costs of `TokenCosts` in its order, in seconds.
    kv_blocks: blocks of KV memory; 0 is without limit.
    admitted_s, first_token_s, finish_s: shape (R,), written; NaN for requests that were blocked.
    gaps: shape (BINS,), token gaps are added by duration.
    """
    base, prefill_token, prefill_read, prefill_square, decode, decode_read = costs
    count = arrival_s.size
    admitted_s[:] = np.nan
    first_token_s[:] = np.nan
    finish_s[:] = np.nan
    queue = np.empty(count, dtype=np.int64)
    head = tail = 0
    preempted = np.empty(max_batch, dtype=np.int64)
    preempted_count = 0
    prefilling = np.empty(max_batch, dtype=np.int64)
    prefill_count = 0
    chunk = np.empty(max_batch, dtype=np.int64)
    ends = np.empty(max_batch, dtype=np.int64)
    members = np.empty(max_batch, dtype=np.int64)
    decode_count = 0
    prefilled = np.zeros(count, dtype=np.int64)
    to_prefill = prompt.copy()
    generated = np.zeros(count, dtype=np.int64)
    # Iteration number at which a request's context would have been zero, so context = iterations − origin.
    origin = np.zeros(count, dtype=np.int64)
    last_token_s = np.zeros(count)
    # The order of entering: requests that enter together still have a last one.
    entry = np.zeros(count, dtype=np.int64)
    entered = 0
    context = 0
    # Blocks of prompts that are being prefilled, and of requests that decode.
    prompt_blocks = 0
    decode_blocks = 0
    blocks_in_all = -(-(prompt + output) // block_tokens)
    now = 0.0
    upcoming = 0
    iterations = decoded = preemptions = 0
    while True:
        room = max_batch + max_queue - prefill_count - decode_count - preempted_count + head
        upcoming, tail = _arrive(now, upcoming, tail, room, arrival_s, blocks_in_all, kv_blocks, queue)

        if kv_blocks > 0:
            # What decoding takes in the coming iteration; the request that entered last gives way.
            while True:
                decode_blocks = 0
                for place in range(decode_count):
                    tokens = iterations - origin[members[place]] + 1
                    decode_blocks += -(-tokens // block_tokens)
                if prompt_blocks + decode_blocks <= kv_blocks or decode_count + prefill_count <= 1:
                    break
                latest, newest, of_prompts = 0, -1, False
                for place in range(decode_count):
                    if entry[members[place]] > newest:
                        latest, newest = place, entry[members[place]]
                for place in range(prefill_count):
                    if entry[prefilling[place]] > newest:
                        latest, newest, of_prompts = place, entry[prefilling[place]], True
                if of_prompts:
                    victim = prefilling[latest]
                    prompt_blocks -= -(-to_prefill[victim] // block_tokens)
                    prefill_count -= 1
                    for place in range(latest, prefill_count):
                        prefilling[place] = prefilling[place + 1]
                else:
                    victim = members[latest]
                    tokens = iterations - origin[victim]
                    decode_count -= 1
                    ends[latest], members[latest] = ends[decode_count], members[decode_count]
                    if latest < decode_count:
                        _sift_down(ends, members, latest, decode_count)
                        _sift_up(ends, members, latest)
                    context -= tokens
                    generated[victim] += tokens - to_prefill[victim]
                    to_prefill[victim] = tokens
                    last_token_s[victim] = now
                preempted[preempted_count] = victim
                preempted_count += 1
                preemptions += 1

        left = token_budget - decode_count
        chunks = 0
        for place in range(prefill_count):
            if left <= 0:
                break
            one = prefilling[place]
            size = min(left, to_prefill[one] - prefilled[one])
            chunk[chunks] = size
            chunks += 1
            left -= size
        blocked = False
        while left > 0 and (preempted_count > 0 or head < tail):
            if prefill_count + decode_count >= max_batch:
                blocked = True
                break
            one = preempted[preempted_count - 1] if preempted_count > 0 else queue[head]
            blocks = -(-to_prefill[one] // block_tokens)
            if kv_blocks > 0 and prompt_blocks + decode_blocks + blocks > kv_blocks:
                blocked = True
                break
            if preempted_count > 0:
                preempted_count -= 1
            else:
                head += 1
                admitted_s[one] = now
                entry[one] = entered
                entered += 1
            prompt_blocks += blocks
            prefilled[one] = min(cached[one], to_prefill[one])
            prefilling[prefill_count] = one
            prefill_count += 1
            size = min(left, to_prefill[one] - prefilled[one])
            chunk[chunks] = size
            chunks += 1
            left -= size

        if chunks == 0 and decode_count == 0:
            if upcoming == count:
                break
            now = max(now, arrival_s[upcoming])
            continue

        iteration_s = base + decode * decode_count + decode_read * (context + decode_count)
        if chunks > 0:
            for place in range(chunks):
                start = prefilled[prefilling[place]]
                stop = start + chunk[place]
                iteration_s += prefill_token * (stop - start) + prefill_read * stop
                iteration_s += prefill_square * (float(stop) * stop - float(start) * start)
            steps = 1
            total_s = iteration_s
            growth_s = 0.0
        else:
            growth_s = decode_read * decode_count
            steps = ends[0] - iterations
            if not blocked and upcoming < count:
                steps = min(steps, _iterations_until(arrival_s[upcoming] - now, iteration_s, growth_s))
            if kv_blocks > 0:
                free = kv_blocks - prompt_blocks - decode_blocks
                steps = min(steps, max(1, free // decode_count * block_tokens))
            total_s = steps * (iteration_s + 0.5 * growth_s * (steps - 1))

        # Who arrives before the last of these iterations begins finds those that end with it still there.
        last_s = now + total_s - iteration_s - growth_s * (steps - 1)
        room = max_batch + max_queue - prefill_count - decode_count - preempted_count + head
        upcoming, tail = _arrive(last_s, upcoming, tail, room, arrival_s, blocks_in_all, kv_blocks, queue)
        now += total_s
        if decode_count > 0:
            _count_series(gaps, iteration_s, growth_s, steps, decode_count)
            decoded += steps * decode_count
            context += steps * decode_count
        iterations += steps
        while decode_count > 0 and ends[0] <= iterations:
            one = members[0]
            context -= iterations - origin[one]
            finish_s[one] = now
            decode_count -= 1
            ends[0], members[0] = ends[decode_count], members[decode_count]
            _sift_down(ends, members, 0, decode_count)
        kept = 0
        for place in range(prefill_count):
            one = prefilling[place]
            if place < chunks:
                prefilled[one] += chunk[place]
            if place >= chunks or prefilled[one] < to_prefill[one]:
                prefilling[kept] = one
                kept += 1
                continue
            prompt_blocks -= -(-to_prefill[one] // block_tokens)
            if np.isnan(first_token_s[one]):
                first_token_s[one] = now
            else:
                gaps[_bin(now - last_token_s[one])] += 1
            generated[one] += prefill_tokens
            remaining = output[one] - generated[one]
            if remaining <= 0:
                finish_s[one] = now
                continue
            origin[one] = iterations - to_prefill[one]
            context += to_prefill[one]
            ends[decode_count] = iterations + remaining
            members[decode_count] = one
            decode_count += 1
            _sift_up(ends, members, decode_count - 1)
        prefill_count = kept
    return iterations, decoded, preemptions
