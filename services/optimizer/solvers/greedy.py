"""Regret-greedy allocation of limited accelerators by priority, with best effort for what does not fit."""

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from schemas.fleet import SaturationPolicy
from schemas.plan import SolveStatus
from services.optimizer.limits import LimitKind, limits_of
from services.optimizer.problem import (
    Candidate,
    Choice,
    Problem,
    ServerProblem,
    Solution,
    SolveOutcome,
    service_of,
    shortfall_of,
)
from services.optimizer.solver import Capabilities


class GreedySettings(BaseModel):
    """How it orders; the fleet's options hold the saturation policy and when best effort comes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    single_precision: bool = False
    """Whether regrets are rounded to single precision, so that they tie where they tie in the reference."""


class GreedySolver:
    """Serves servers in the order of priority and regret, each with the best candidate that still fits.

    Regret is what the next candidate is worse than the first one: who has most to lose chooses first. Group
    by group of priority, those that did not fit get what is left as the saturation policy says; with
    `delayed_best_effort` they get it after the last group. A more important group therefore never gets less
    because of a less important one, except by that option. Ties are broken by name.
    """

    name: ClassVar[str] = "greedy"
    Settings: ClassVar[type[BaseModel]] = GreedySettings
    capabilities: ClassVar[Capabilities] = Capabilities(partial=True, bound=True)

    def __init__(self, settings: GreedySettings) -> None:
        self.settings = settings

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        """One pass in O(n log n) for n candidates, far within any time limit that the fleet may set."""
        left = _Left(problem)
        given: dict[str, Choice] = {}
        best_effort = BEST_EFFORT[problem.options.saturation_policy]
        rounded = np.float32 if self.settings.single_precision else float
        entries = [
            _Entry(s, tuple(sorted(s.candidates, key=lambda c: c.rank())), rounded) for s in problem.servers
        ]
        entries.sort(key=_Entry.order)
        if problem.options.delayed_best_effort:
            best_effort(_allocate(entries, left, given), left, given)
        else:
            for group in _by_priority(entries):
                best_effort(_allocate(group, left, given), left, given)

        solution = Solution({server: (given[server],) for server in sorted(given)})
        objective = solution.value
        short = shortfall_of(problem, solution)
        unbounded = math.fsum(e.candidates[0].value for e in entries)
        if entries and not given:
            status = SolveStatus.INFEASIBLE
        elif not short and objective <= unbounded:
            status = SolveStatus.OPTIMAL
        else:
            status = SolveStatus.FEASIBLE
        return SolveOutcome(
            status,
            solution,
            objective,
            None if short else unbounded,
            short,
            classes=service_of(problem, solution),
        )


@dataclass(frozen=True)
class _Entry:
    server: ServerProblem
    candidates: tuple[Candidate, ...]
    rounded: Callable[[float], Any]
    position: int = 0

    @property
    def candidate(self) -> Candidate:
        return self.candidates[self.position]

    def order(self) -> tuple[int, float, float, str]:
        return (self.server.priority, -self._regret(), -self.candidate.value, self.server.server)

    def _regret(self) -> float:
        following = self.candidates[self.position + 1 : self.position + 2]
        # Falling to a candidate that serves less is as bad as having no other.
        if not following or following[0].served_share < self.candidate.served_share:
            return math.inf
        return float(self.rounded(following[0].value) - self.rounded(self.candidate.value))


class _Left:
    """Of every limit, what is not given yet."""

    def __init__(self, problem: Problem) -> None:
        limits = limits_of(problem)
        self._rest = [limit.most for limit in limits]
        cards = {limit.name: i for i, limit in enumerate(limits) if limit.kind is LimitKind.CARDS}
        others = [(i, limit) for i, limit in enumerate(limits) if limit.kind is not LimitKind.CARDS]
        # By identity: candidates live as long as their problem, and hashing all of their fields takes long.
        self._uses: dict[int, list[tuple[int, float]]] = {}
        for server in problem.servers:
            for c in server.candidates:
                uses = [(cards[c.type], float(c.units_per_replica))] if c.type in cards else []
                uses += [(i, use) for i, limit in others if (use := limit.use(server, c)) > 0]
                self._uses[id(c)] = uses

    def replicas(self, candidate: Candidate, most: int) -> int:
        """Replicas of a candidate that still fit, at most `most`."""
        for i, use in self._uses[id(candidate)]:
            most = min(most, int(self._rest[i] // use))
        return max(most, 0)

    def take(self, candidate: Candidate, replicas: int) -> None:
        """Gives replicas away."""
        for i, use in self._uses[id(candidate)]:
            self._rest[i] -= replicas * use


Given = dict[str, Choice]


def _by_priority(entries: Iterable[_Entry]) -> Iterable[list[_Entry]]:
    ordered = sorted(entries, key=lambda e: e.server.priority)
    return [list(group) for _, group in groupby(ordered, key=lambda e: e.server.priority)]


def _allocate(entries: list[_Entry], left: _Left, given: Given) -> list[_Entry]:
    """Gives full allocations; returns those that no candidate of theirs fits, in the order they were left."""
    heap = [(e.order(), e) for e in entries]
    heapq.heapify(heap)
    unallocated = []
    while heap:
        _, entry = heapq.heappop(heap)
        candidate = entry.candidate
        if left.replicas(candidate, candidate.replicas) == candidate.replicas:
            left.take(candidate, candidate.replicas)
            given[entry.server.server] = Choice(candidate, candidate.replicas)
        elif entry.position + 1 < len(entry.candidates):
            following = replace(entry, position=entry.position + 1)
            heapq.heappush(heap, (following.order(), following))
        else:
            unallocated.append(entry)
    return unallocated


def _nothing(entries: list[_Entry], left: _Left, given: Given) -> None:
    """Those that do not fit get nothing."""


def _exhaustive(entries: list[_Entry], left: _Left, given: Given) -> None:
    """One server after the other gets as many replicas as fit on its first candidate that any fit on."""
    for entry in entries:
        for candidate in entry.candidates:
            replicas = left.replicas(candidate, candidate.replicas)
            if replicas >= entry.server.least_replicas(candidate):
                left.take(candidate, replicas)
                given[entry.server.server] = Choice(candidate, replicas)
                break


def _round_robin(entries: list[_Entry], left: _Left, given: Given) -> None:
    """One replica at a time, in turn, on the first candidate that had room at the server's first turn.

    Who has less than the least that it may have when nothing fits any more gives it back.
    """
    turn, got = list(entries), dict[str, _Entry]()
    while turn:
        following = []
        for entry in turn:
            name = entry.server.server
            had = given.get(name)
            candidates = entry.candidates if had is None else (had.candidate,)
            for candidate in candidates:
                if left.replicas(candidate, 1):
                    replicas = 1 if had is None else had.replicas + 1
                    left.take(candidate, 1)
                    given[name], got[name] = Choice(candidate, replicas), entry
                    if replicas < candidate.replicas:
                        following.append(entry)
                    break
        turn = following
    for name, entry in got.items():
        choice = given[name]
        if choice.replicas < min(entry.server.least_replicas(choice.candidate), choice.candidate.replicas):
            left.take(choice.candidate, -choice.replicas)
            del given[name]


def _priority_round_robin(entries: list[_Entry], left: _Left, given: Given) -> None:
    """In turn within each priority, the more important first."""
    for group in _by_priority(entries):
        _round_robin(group, left, given)


BEST_EFFORT: dict[SaturationPolicy, Callable[[list[_Entry], _Left, Given], None]] = {
    SaturationPolicy.NONE: _nothing,
    SaturationPolicy.PRIORITY_EXHAUSTIVE: _exhaustive,
    SaturationPolicy.PRIORITY_ROUND_ROBIN: _priority_round_robin,
    SaturationPolicy.ROUND_ROBIN: _round_robin,
}
