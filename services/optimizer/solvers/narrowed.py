"""Integer programs made small by the reduced costs of their relaxation, without losing the optimum.

With y the duals of the linear program and r = c − Aᵀy, every whole x costs at least

    L + Σ_j max(0, r_j) x_j + Σ_j max(0, −r_j) (u_j − x_j),

so what costs less than L + δ has x_j = 0 wherever r_j > δ. A program of the other variables is far smaller, and its
optimum is that of the whole as soon as it is at most L + δ.
"""

import time
from dataclasses import replace

import numpy as np

from services.optimizer.solvers.highs import (
    PROVEN_ROUNDING,
    Answer,
    Array,
    Flags,
    Program,
    solve_integer,
    solve_relaxed,
)

# Programs of fewer variables are solved as they are.
FEW = 200
# The first program has so many variables for each row, the next so many times as many, until those that are left are
# no more than so many for each row. All but the last need not be solved closer than the gap.
FIRST_PER_ROW, WIDER, LAST_PER_ROW = 1.5, 2.0, 5.0
FIRST_GAP = 1e-4
# A first solution this close to the relaxation, as a share of its value, is near the optimum.
NEAR_SHARE = 5e-3


def solve_narrowed(program: Program, start: Array, seconds: float, gap_share: float) -> Answer:
    """`solve_integer` from a first solution, on the variables that can matter."""
    if len(program.cost) < FEW:
        return solve_integer(program, start, seconds, gap_share)
    end = time.monotonic() + seconds
    relaxed = solve_relaxed(program, seconds)
    if relaxed.x is None or relaxed.duals is None:
        return solve_integer(program, start, end - time.monotonic(), gap_share)
    reduced = np.maximum(0.0, program.cost - program.matrix.weighted(relaxed.duals))
    rows, ascending = len(program.row_upper), np.sort(reduced[program.upper > 0])
    best, bound, count = start, relaxed.bound, FIRST_PER_ROW * rows
    while time.monotonic() < end:
        value = float(program.cost @ best)
        if value - bound <= _rounding(value, gap_share):
            return Answer(best, bound, True)
        needed = value - relaxed.bound
        few = np.searchsorted(ascending, needed) <= LAST_PER_ROW * rows
        last = few or count >= len(ascending) or ascending[int(count)] >= needed
        width = needed if last else float(ascending[int(count)])
        count *= WIDER
        some = ((reduced <= width) & (program.upper > 0)) | (best > 0)
        found = solve_integer(
            _only(program, some),
            best[some],
            end - time.monotonic(),
            gap_share if last else max(gap_share, FIRST_GAP),
            near=needed <= NEAR_SHARE * abs(value),
        )
        if found.x is not None:
            whole = np.zeros(len(best))
            whole[some] = found.x
            best = whole if float(program.cost @ whole) < value else best
        bound = max(bound, min(found.bound, relaxed.bound + width))
        if last:
            return Answer(best, bound, found.proven)
    return Answer(best, bound, False)


def _only(program: Program, some: Flags) -> Program:
    return replace(
        program,
        cost=program.cost[some],
        upper=program.upper[some],
        integer=program.integer[some],
        matrix=program.matrix.some(some),
    )


def _rounding(value: float, gap_share: float) -> float:
    return max(gap_share * abs(value), PROVEN_ROUNDING * max(1.0, abs(value)))
