"""Heavy solvers in a process of their own, so that no search can starve the event loop of the service."""

import os
import threading
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from schemas.base import Statistic
from services.optimizer.problem import Candidate, Choice, Problem, ReplicaCase, Solution, SolveOutcome
from services.optimizer.solver import Capabilities, Solver
from services.runtime import plugins

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

# Beside what a solver may take, seconds to start the process and to hand a large problem over and back.
GRACE_S = 30.0
# What of a candidate does not travel: solvers do not look at it, or it is its server's.
STAYS = {"server", "case", "held", "predicted", "predicted_one_fewer", "parameters_at_s"}
FIELDS = tuple(one.name for one in fields(Candidate) if one.name not in STAYS)
_NO_CASE = ReplicaCase("", (), 0.0, 1.0, 1, 0, 1, None, None, None, None, Statistic.MEAN)


class Worker:
    """One process that solves, started when it is first needed and again after it has died or did not answer."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        """grace_s: beside its time limit, seconds that a solve may take."""
        self._grace_s = grace_s
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False
        # Solves come from several threads.
        self._lock = threading.Lock()

    def run(self, name: str, problem: "Packed", time_limit_s: float | None) -> "PackedOutcome":
        """Solves in the process and waits for it; from a thread beside the event loop.

        Raises BrokenExecutor when the process dies twice or is closed, TimeoutError when it does not answer.
        """
        try:
            return self._run(name, problem, time_limit_s)
        except BrokenExecutor:
            return self._run(name, problem, time_limit_s)

    def close(self) -> None:
        """Ends the process for good; what it is solving is lost."""
        with self._lock:
            self._closed, pool = True, self._pool
        self._end(pool)

    def _run(self, name: str, problem: "Packed", time_limit_s: float | None) -> "PackedOutcome":
        pool = self._running()
        try:
            waiting = pool.submit(_solve, name, problem, time_limit_s)
            return waiting.result(None if time_limit_s is None else time_limit_s + self._grace_s)
        except (BrokenExecutor, TimeoutError):
            # Whoever comes next is not to wait for what does not answer.
            self._end(pool)
            raise

    def _running(self) -> "ProcessPoolExecutor":
        with self._lock:
            if self._closed:
                raise BrokenExecutor("the worker is closed")
            if self._pool is None:
                import multiprocessing
                from concurrent.futures import ProcessPoolExecutor

                # A fork would copy the locks of the service's threads.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, initializer=_end_with_parent)
            return self._pool

    def _end(self, pool: "ProcessPoolExecutor | None") -> None:
        """Ends the process of a pool, with which the pool breaks and takes nothing more."""
        with self._lock:
            if self._pool is pool:
                self._pool = None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.terminate()


def _end_with_parent() -> None:
    """In the worker: end when the service does, however it ends; the pipe alone does not tell."""
    import multiprocessing

    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


@dataclass(frozen=True)
class Packed:
    """A problem on its way: without candidates, and their fields in columns with how many each server has."""

    problem: Problem
    counts: tuple[int, ...]
    fields: tuple[list[Any], ...]


@dataclass(frozen=True)
class PackedOutcome:
    """An outcome on its way: without solution, and its choices as server, place of the candidate, replicas."""

    outcome: SolveOutcome
    choices: tuple[tuple[str, int, int], ...]


class RemoteSolver:
    """A solver plug-in as it is seen from here: it solves in the worker."""

    name: ClassVar[str] = "remote"
    Settings: ClassVar[type[BaseModel]] = BaseModel
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, solver: Solver, worker: Worker) -> None:
        # What is asked of an instance is the solver's own.
        self.name = solver.name  # type: ignore[misc]
        self.capabilities = solver.capabilities  # type: ignore[misc]
        self._worker = worker

    def solve(self, problem: Problem, time_limit_s: float | None) -> SolveOutcome:
        """The outcome of the worker, of the candidates that were given here."""
        packed = self._worker.run(self.name, _packed(problem), time_limit_s)
        servers = {s.server: s.candidates for s in problem.servers}
        choices: dict[str, tuple[Choice, ...]] = {}
        for server, place, replicas in packed.choices:
            choices[server] = (*choices.get(server, ()), Choice(servers[server][place], replicas))
        return replace(packed.outcome, solution=Solution(choices))


def _solve(name: str, packed: Packed, time_limit_s: float | None) -> PackedOutcome:
    """In the worker: unpack, solve, pack."""
    problem = _unpacked(packed)
    solver: Solver = plugins.build("stoker.solvers", name)
    outcome = solver.solve(problem, time_limit_s)
    places = {id(c): i for s in problem.servers for i, c in enumerate(s.candidates)}
    choices = tuple(
        (server, places[id(c.candidate)], c.replicas)
        for server, listed in outcome.solution.choices.items()
        for c in listed
    )
    return PackedOutcome(replace(outcome, solution=Solution({})), choices)


def _packed(problem: Problem) -> Packed:
    flat = [c for s in problem.servers for c in s.candidates]
    return Packed(
        replace(problem, servers=tuple(replace(s, candidates=()) for s in problem.servers)),
        tuple(len(s.candidates) for s in problem.servers),
        tuple([getattr(c, name) for c in flat] for name in FIELDS),
    )


def _unpacked(packed: Packed) -> Problem:
    rows = iter(zip(*packed.fields, strict=True))
    servers = []
    for server, count in zip(packed.problem.servers, packed.counts, strict=True):
        candidates = tuple(
            Candidate(
                server=server.server,
                case=_NO_CASE,
                held=server.current,
                **dict(zip(FIELDS, next(rows), strict=True)),
            )
            for _ in range(count)
        )
        servers.append(replace(server, candidates=candidates))
    return replace(packed.problem, servers=tuple(servers))
