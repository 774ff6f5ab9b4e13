"""What a solver is."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import BaseModel

from services.optimizer.problem import Problem, SolveOutcome


@dataclass(frozen=True)
class Capabilities:
    """What a solver can do, declared.

    capacity, budget: whether it keeps these limits; budget stands for power and quotas too.
    exact: whether it ends with the best solution when time allows.
    partial: whether it gives a server fewer replicas than it needs when no more fit.
    mixes: whether it serves one server from several accelerators at once.
    bound, shadow_prices: whether outcomes carry them.
    weighs: whether it can weigh what is not served against cost, instead of serving class after class.
    heavy: whether it may take long, so that it must not share a process with an event loop.
    """

    capacity: bool = True
    budget: bool = True
    exact: bool = False
    partial: bool = False
    mixes: bool = False
    bound: bool = False
    shadow_prices: bool = False
    weighs: bool = False
    heavy: bool = False


class Solver(Protocol):
    """Chooses among the candidates of every server; the same problem gives the same outcome in any order.

    A solver is a plug-in: constructed with its validated settings, without state between solves that could
    change an answer.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]
    capabilities: ClassVar[Capabilities]

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        """The best solution found within the limit, never more than capacity and budget allow.

        time_limit_s: the longest it may take; None is without limit. At the limit the best solution so far
            is returned with status TIME_LIMIT.
        """
        ...
