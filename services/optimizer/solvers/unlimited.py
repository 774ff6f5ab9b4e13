"""The best choice of every server on its own, as if accelerators were without limit."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from schemas.plan import SolveStatus
from services.optimizer.problem import Choice, Problem, Solution, SolveOutcome, service_of, shortfall_of
from services.optimizer.solver import Capabilities


class UnlimitedSettings(BaseModel):
    """Nothing can be set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UnlimitedSolver:
    """Takes the candidate of least value for each server, whatever the capacity and the budget."""

    name: ClassVar[str] = "unlimited"
    Settings: ClassVar[type[BaseModel]] = UnlimitedSettings
    capabilities: ClassVar[Capabilities] = Capabilities(capacity=False, budget=False, exact=True, bound=True)

    def __init__(self, settings: UnlimitedSettings) -> None:
        self.settings = settings

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        """The exact optimum without limits; it is immediate, so the time limit does not matter."""
        best = {
            s.server: min(s.candidates, key=lambda c: c.rank())
            for s in sorted(problem.servers, key=lambda s: s.server)
        }
        solution = Solution({server: (Choice(c, c.replicas),) for server, c in best.items()})
        return SolveOutcome(
            SolveStatus.OPTIMAL,
            solution,
            objective=solution.value,
            bound=solution.value,
            shortfall=shortfall_of(problem, solution),
            classes=service_of(problem, solution),
        )
