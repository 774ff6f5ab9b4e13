"""Mixed-integer and linear programs in arrays, solved by HiGHS directly. The only module that imports highspy."""

import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.optimizer.solvers.matrix import Matrix
from services.runtime.plugins import PluginRefused

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Searches for better solutions within the search, which take most of its time where only the proof is missing.
INNER_SEARCHES = tuple(f"mip_heuristic_run_{name}" for name in ("rins", "rens", "root_reduced_cost"))
# HiGHS keeps bounds of rows to about this.
PROVEN_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise cost · x with row_lower ≤ matrix · x ≤ row_upper and 0 ≤ x ≤ upper.

    cost, upper, integer: shape (n,). matrix: shape (m, n). row_lower, row_upper: shape (m,), may be infinite.
    """

    cost: Array
    upper: Array
    integer: Flags
    matrix: Matrix
    row_lower: Array
    row_upper: Array

    def with_row(self, row: Array, at_least: float) -> "Program":
        """The program with one more row, of shape (n,), that must reach a value."""
        return Program(
            self.cost,
            self.upper,
            self.integer,
            self.matrix.over(Matrix.of(row[None, :])),
            np.append(self.row_lower, at_least),
            np.append(self.row_upper, np.inf),
        )

    def with_cost(self, cost: Array) -> "Program":
        """The program with another objective, of shape (n,)."""
        return Program(cost, self.upper, self.integer, self.matrix, self.row_lower, self.row_upper)


@dataclass(frozen=True, eq=False)
class Answer:
    """How a program ended.

    x: shape (n,), the best found; None when nothing was. bound: no x that is feasible costs less.
    proven: whether x is the optimum, or the program infeasible when x is None.
    duals: shape (m,), change of the optimum per unit of each row, of a linear program only.
    """

    x: Array | None
    bound: float
    proven: bool
    duals: Array | None = None


def solve_integer(
    program: Program,
    start: Array | None,
    seconds: float,
    gap_share: float,
    nodes: int | None = None,
    near: bool = False,
) -> Answer:
    """The best whole solution within the time, from a first one where there is any.

    gap_share: distance to the bound, as a share of the objective, at which the search ends.
    nodes: the most that the search tree may have; None is without limit.
    near: whether the first solution is so near the optimum that proof is what is missing.
    """
    began = time.monotonic()
    answer = _run(program, start, seconds, gap_share, nodes, near)
    if start is None or answer.x is None or not answer.proven:
        return answer
    # Where presolve alone solves a program, HiGHS can hand the first solution back and call it optimal; only
    # the bound tells.
    value = float(program.cost @ answer.x)
    if value <= answer.bound + max(gap_share * abs(value), PROVEN_ROUNDING * max(1.0, abs(value))):
        return answer
    again = _run(program, None, seconds - (time.monotonic() - began), gap_share, nodes, near=False)
    if again.x is None or float(program.cost @ again.x) >= value:
        return Answer(answer.x, max(answer.bound, again.bound), again.proven)
    return again


def _run(
    program: Program, start: Array | None, seconds: float, gap_share: float, nodes: int | None, near: bool
) -> Answer:
    import highspy

    solver = _solver(program, seconds, relaxed=False)
    solver.setOptionValue("mip_rel_gap", gap_share)
    solver.setOptionValue("mip_abs_gap", 1e-9)
    if nodes is not None:
        solver.setOptionValue("mip_max_nodes", nodes)
    if near:
        for option in INNER_SEARCHES:
            solver.setOptionValue(option, False)
    if start is not None:
        first = highspy.HighsSolution()
        first.col_value = start.tolist()
        solver.setSolution(first)
    solver.run()
    status, info = solver.getModelStatus(), solver.getInfo()
    infeasible = status in (
        highspy.HighsModelStatus.kInfeasible,
        highspy.HighsModelStatus.kUnboundedOrInfeasible,
    )
    if infeasible:
        return Answer(None, np.inf, True)
    optimal = status == highspy.HighsModelStatus.kOptimal
    bound = float(info.mip_dual_bound)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Answer(start, bound if np.isfinite(bound) else -np.inf, False)
    x = np.array(solver.getSolution().col_value)
    # HiGHS calls a solution optimal within its own gaps; what it proves is the bound.
    return Answer(np.where(program.integer, np.round(x), x), bound, optimal)


def solve_relaxed(program: Program, seconds: float) -> Answer:
    """The linear program without whole numbers, with its duals."""
    import highspy

    solver = _solver(program, seconds, relaxed=True)
    solver.run()
    status = solver.getModelStatus()
    if status != highspy.HighsModelStatus.kOptimal:
        return Answer(None, np.inf if status == highspy.HighsModelStatus.kInfeasible else -np.inf, False)
    found = solver.getSolution()
    bound = float(solver.getInfo().objective_function_value)
    return Answer(np.array(found.col_value), bound, True, np.array(found.row_dual))


class Cuts:
    """A linear program in free variables that gets rows as it goes: maximise gain · x with row · x ≤ most."""

    def __init__(self, gain: Array) -> None:
        """gain: shape (n,)."""
        none = Matrix.of(np.zeros((0, len(gain))))
        free = Program(
            -gain, np.zeros(len(gain)), np.zeros(len(gain), dtype=bool), none, np.zeros(0), np.zeros(0)
        )
        self._solver = _solver(free, np.inf, relaxed=True)
        self._width = len(gain)

    def bound(self, lower: Array, upper: Array) -> None:
        """Bounds of the variables, shape (n,)."""
        every = np.arange(self._width, dtype=np.int32)
        self._solver.changeColsBounds(self._width, every, lower, upper)

    def add(self, rows: Array, most: Array) -> None:
        """rows: shape (k, n), mostly zeros. most: shape (k,)."""
        entries, count = Matrix.of(rows), len(most)
        self._solver.addRows(
            count,
            np.full(count, -np.inf),
            most,
            len(entries.value),
            np.searchsorted(entries.row, np.arange(count)).astype(np.int32),
            entries.column.astype(np.int32),
            entries.value,
        )

    def solve(self) -> Array | None:
        """The best x; None when there is none."""
        import highspy

        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return np.array(self._solver.getSolution().col_value)


def _solver(program: Program, seconds: float, relaxed: bool) -> Any:
    import highspy
    from highspy._core import _Highs

    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = program.matrix.rows, program.matrix.columns
    lp.col_cost_ = program.cost
    lp.col_lower_, lp.col_upper_ = np.zeros_like(program.upper), program.upper
    lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = program.matrix.by_column()
    if not relaxed:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(flag)] for flag in program.integer]
    # The class beneath `highspy.Highs`, which prints a banner to standard output as it sets up callbacks.
    solver: Any = _Highs()
    for name, value in (("output_flag", False), ("threads", 1), ("random_seed", 0), ("parallel", "off")):
        solver.setOptionValue(name, value)
    if np.isfinite(seconds):
        solver.setOptionValue("time_limit", max(seconds, 0.01))
    solver.passModel(lp)
    return solver


def require_highs(solver: str) -> None:
    """Raises PluginRefused where the library that a solver needs is not installed."""
    if importlib.util.find_spec("highspy") is None:
        raise PluginRefused(f"solver {solver!r} needs highspy: install stoker[optimizer], or choose greedy")


def deadline(time_limit_s: float | None) -> float:
    """When a solve that begins now must end, on the clock of `left`."""
    return np.inf if time_limit_s is None else time.monotonic() + time_limit_s


def left(end: float) -> float:
    """Seconds until a deadline."""
    return max(0.0, end - time.monotonic())
