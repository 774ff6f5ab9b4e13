"""The default: prices first, then the exact solver from there, and the best of both when the time ends."""

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.fleet import SaturationPolicy, Served
from services.optimizer.problem import Problem, SolveOutcome
from services.optimizer.solver import Capabilities
from services.optimizer.solvers.highs import deadline, left
from services.optimizer.solvers.lagrangian import LagrangianSettings, LagrangianSolver, value_bound
from services.optimizer.solvers.milp import improve

# Services and bounds that differ by less are the same.
SAME_SERVICE = 1e-6
# Of the time that is left for the exact solver, the share kept for a bound in case it has none.
BOUND_SHARE = 0.1


class AutoSettings(BaseModel):
    """How it divides the time, and when it is content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gap_share: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """Distance to the bound, as a share of the cost, that is as good as none."""
    prices_share: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the time limit for the prices, so that there is an incumbent with a bound early."""


class AutoSolver:
    """`lagrangian` and, where that leaves a gap, `milp` from its incumbent: never nothing, always a bound."""

    name: ClassVar[str] = "auto"
    Settings: ClassVar[type[BaseModel]] = AutoSettings
    capabilities: ClassVar[Capabilities] = Capabilities(
        partial=True, mixes=True, bound=True, shadow_prices=True, weighs=True, heavy=True
    )

    def __init__(self, settings: AutoSettings) -> None:
        self.settings = settings
        self._prices = LagrangianSolver(LagrangianSettings(gap_share=settings.gap_share))

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        """The best of both within the time, with the tighter bound."""
        end = deadline(time_limit_s)
        share = None if time_limit_s is None else time_limit_s * self.settings.prices_share
        priced = self._prices.solve(problem, share)
        if problem.options.heterogeneous:
            # The bound of single accelerators says nothing of mixes.
            return improve(problem, priced.solution, _rest(time_limit_s, end), self.settings.gap_share)
        if _content(problem, priced, self.settings.gap_share) or left(end) <= 0:
            return priced
        rest = _rest(time_limit_s, end)
        within = None if rest is None else rest * (1.0 - BOUND_SHARE)
        exact = _together(priced, improve(problem, priced.solution, within, self.settings.gap_share))
        if exact.bound is not None:
            return exact
        bound = value_bound(problem, exact.solution, _rest(time_limit_s, end))
        return replace(exact, bound=min(bound, exact.objective))


def _rest(time_limit_s: float | None, end: float) -> float | None:
    return None if time_limit_s is None else left(end)


def _content(problem: Problem, outcome: SolveOutcome, gap_share: float) -> bool:
    """Whether the service is as good as can be and the value within the gap.

    There is no bound on best effort but all of the demand.
    """
    counted = problem.options.maximize is Served.SERVERS
    in_part = problem.options.saturation_policy is not SaturationPolicy.NONE or any(
        not c.objectives_met for s in problem.servers for c in s.candidates
    )
    if in_part and any(c.demand_carried_rps < c.demand_rps * (1 - SAME_SERVICE) for c in outcome.classes):
        return False
    reached = all(
        c.bound is not None
        and (c.servers_served if counted else c.demand_served_rps) >= c.bound * (1 - SAME_SERVICE)
        for c in outcome.classes
    )
    return reached and outcome.gap_share is not None and outcome.gap_share <= gap_share


def _together(priced: SolveOutcome, exact: SolveOutcome) -> SolveOutcome:
    """The exact outcome, which began with the other, and the bounds that both prove of it."""
    same = all(
        abs(a.demand_served_rps - b.demand_served_rps) <= SAME_SERVICE
        and abs(a.demand_carried_rps - b.demand_carried_rps) <= SAME_SERVICE
        for a, b in zip(priced.classes, exact.classes, strict=True)
    )
    bounds = [b for b in (exact.bound, priced.bound if same else None) if b is not None]
    classes = tuple(
        e.model_copy(update={"bound": min(b for b in (e.bound, p.bound) if b is not None)})
        if same and e.bound is not None and p.bound is not None
        else e
        for e, p in zip(exact.classes, priced.classes, strict=True)
    )
    return replace(
        exact,
        bound=min(max(bounds), exact.objective) if bounds else None,
        classes=classes,
        shadow_prices=exact.shadow_prices or priced.shadow_prices,
    )
