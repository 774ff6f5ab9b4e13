"""The exact solver: the best service of one class after the other, then the least value, proven by HiGHS."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.fleet import Served
from schemas.plan import SolveStatus
from services.optimizer.problem import Problem, Solution, SolveOutcome
from services.optimizer.solver import Capabilities
from services.optimizer.solvers.columns import (
    Array,
    Columns,
    columns_of,
    ordered,
    outcome_of,
    positions,
    served_wholly,
    solution_of,
)
from services.optimizer.solvers.construction import filled
from services.optimizer.solvers.formulation import formulate, mixes_of
from services.optimizer.solvers.highs import (
    Answer,
    Program,
    deadline,
    left,
    require_highs,
    solve_relaxed,
)
from services.optimizer.solvers.lagrangian import LagrangianSettings, LagrangianSolver
from services.optimizer.solvers.levels import LEVEL_ROUNDING, Kind, Result, levels_of, optimise
from services.optimizer.solvers.narrowed import solve_narrowed

# Of the time limit, the share for a first solution.
START_SHARE = 0.3
# Seconds to look for whom else can be served when the time is over.
FILLING_S = 0.1


class MilpSettings(BaseModel):
    """How far it proves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gap_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Distance to the bound, as a share of the objective, at which it ends; 0 proves the optimum."""
    backend: Literal["direct", "cvxpy"] = "direct"
    """How the program reaches HiGHS: as arrays, or modelled in cvxpy, slower and without mixes, as a check."""


class MilpSolver:
    """Exact and lexicographic, for single accelerators and mixes, with every limit that a problem can have."""

    name: ClassVar[str] = "milp"
    Settings: ClassVar[type[BaseModel]] = MilpSettings
    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True, partial=True, mixes=True, bound=True, shadow_prices=True, weighs=True, heavy=True
    )

    def __init__(self, settings: MilpSettings) -> None:
        require_highs(self.name)
        self.settings = settings

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        """The optimum, or at the time limit the best so far with its bound, from lagrangian's solution on."""
        if self.settings.backend == "cvxpy" and problem.servers and not problem.options.heterogeneous:
            return _modelled(problem, time_limit_s)
        end = deadline(time_limit_s)
        share = None if time_limit_s is None else time_limit_s * START_SHARE
        first = LagrangianSolver(LagrangianSettings()).solve(problem, share).solution
        rest = None if time_limit_s is None else left(end)
        return improve(problem, first, rest, self.settings.gap_share)


def _modelled(problem: Problem, time_limit_s: float | None) -> SolveOutcome:
    from services.optimizer.solvers.modelled import solve_modelled

    problem = ordered(problem)
    columns = columns_of(problem)
    found = solve_modelled(problem, columns, deadline(time_limit_s))
    bounds = {}
    for level, reached in zip(levels_of(columns), found.reached, strict=True):
        if level.kind is Kind.SERVED and found.proven:
            bounds[level.priority] = reached * level.scale
    status = SolveStatus.OPTIMAL if found.proven else SolveStatus.TIME_LIMIT
    bound = found.value if found.proven else -math.inf
    return outcome_of(problem, solution_of(problem, found.chosen), bound, bounds, status, {})


def improve(problem: Problem, first: Solution, time_limit_s: float | None, gap_share: float) -> SolveOutcome:
    """The optimum of a problem, searched from a first solution that keeps its limits."""
    end = deadline(time_limit_s)
    problem = ordered(problem)
    if not problem.servers:
        return SolveOutcome(SolveStatus.OPTIMAL, Solution({}), 0.0, 0.0)
    columns, start = columns_of(problem), positions(problem, first)
    choices = formulate(columns, mixes_of(problem), served_wholly(columns, start))

    def search(program: Program, begin: Array, seconds: float) -> Answer:
        return solve_narrowed(program, begin, seconds, gap_share)

    result = optimise(choices.formulation(), levels_of(columns), choices.encode(start), search, end)
    chosen, bound = choices.decode(result.x), result.bound
    if not (result.proven or columns.weighed or problem.options.heterogeneous):
        # A level that was not reached was not looked at yet.
        more = filled(columns, chosen, deadline(FILLING_S))
        chosen, bound = more, bound if more == chosen else -math.inf
    relaxed = solve_relaxed(result.final, max(left(end), 0.1))
    return outcome_of(
        problem,
        solution_of(problem, chosen),
        bound,
        served_bounds(problem, result),
        SolveStatus.OPTIMAL if result.proven else SolveStatus.TIME_LIMIT,
        {} if relaxed.duals is None else prices_of(columns, relaxed.duals[columns.servers :]),
    )


def served_bounds(problem: Problem, result: Result) -> dict[int, float]:
    """The most that can be served of each class, in servers or requests per second, as the levels prove it."""
    counted = problem.options.maximize is Served.SERVERS
    bounds = {}
    for one in result.reached:
        if one.level.kind is Kind.SERVED:
            most = one.bound * one.level.scale
            bounds[one.level.priority] = math.floor(most + LEVEL_ROUNDING) if counted else most
    return bounds


def prices_of(columns: Columns, duals: Array) -> dict[str, float]:
    """The price of a card of each type, per hour, from the duals of the limits, of shape (R, …)."""
    return {name: max(0.0, -float(duals[row])) for row, name in columns.cards}
