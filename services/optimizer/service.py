"""The optimizer on the bus: gathers a control cycle, plans beside the event loop, publishes."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from schemas.fleet import FleetDeclared
from schemas.plan import PlanIssued
from schemas.request import (
    CandidateExplained,
    ExplainAnswered,
    ExplainRequested,
    PerformanceAnswered,
    PerformanceRequested,
    SolveAnswered,
    SolveRequested,
)
from services.optimizer.candidates import Memory
from services.optimizer.core import Generation, State, observe, plan
from services.optimizer.performance import answer_request
from services.optimizer.problem import MOST_CARDS, Candidate
from services.optimizer.settings import Settings
from services.optimizer.solver import Solver
from services.optimizer.trigger import Trigger
from services.optimizer.worker import RemoteSolver, Worker
from services.perfmodel.law import IterationLaw
from services.perfmodel.queueing import QueueingModel
from services.perfmodel.queueing_models.chains import warm_up
from services.runtime import plugins
from services.runtime.bus import Conflict
from services.runtime.envelope import Emit, Event, Raw
from services.runtime.errors import Fatal, Reject, Retry
from services.runtime.intake import admitted
from services.runtime.overrides import overridden
from services.runtime.service import Outcome, Service, Task, VerbHandler


class OptimizerService(Service):
    """Keeps the newest of everything and plans once per control cycle."""

    name = "optimizer"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.optimizer
        self._model: QueueingModel = plugins.build("stoker.queueing", self._settings.performance_model)
        self._laws: dict[str, IterationLaw] = {
            name: plugins.build("stoker.laws", name) for name in plugins.names("stoker.laws")
        }
        self._solvers: dict[str, Solver] = {}
        # What is asked may take as long as it likes: plans do not wait for it.
        self._worker, self._answering = Worker(), Worker()
        self._memory = Memory()
        if self._settings.solver is not None:
            self._solver(self._settings.solver, self._worker)
        warm_up()
        self._state = State()
        self._trigger = Trigger()
        self._woken = asyncio.Event()
        self._manifest_sequence = 0
        self._refused = ""

    async def open(self) -> None:
        # A manifest that has expired is nobody's plan, but generations go on from it: the actuator has seen it.
        for manifest in await self.host.newest(PlanIssued):
            self._state = observe(self._state, manifest)

    def hydrate(self, events: Sequence[Event]) -> None:
        self._take(events)

    def handle(self, events: Sequence[Event]) -> Outcome:
        return Outcome(accept=lambda: self._take(events))

    def _take(self, events: Sequence[Event]) -> None:
        wall_s = time.monotonic()
        for event in events:
            self._state = observe(self._state, event.payload)
            self._trigger = self._trigger.note(event.payload, event.correlation_id, wall_s)
            if isinstance(event.payload, PlanIssued):
                self._manifest_sequence = max(self._manifest_sequence, event.sequence)
        self._woken.set()

    def tasks(self) -> Mapping[str, Task]:
        return {"plan": self._plan_when_due}

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {
            "solve": self._answer_solve,
            "explain": self._answer_explain,
            "analyze": self._answer_analyze,
            "size": self._answer_size,
        }

    async def close(self) -> None:
        self._worker.close()
        self._answering.close()

    def trouble(self) -> Sequence[str]:
        if self._state.fleet is None:
            return ("no fleet is declared yet",)
        return (self._refused,) if self._refused else ()

    async def _plan_when_due(self) -> None:
        while True:
            due_s = self._due_in_s()
            if due_s is None or due_s > 0:
                self._woken.clear()
                try:
                    await asyncio.wait_for(self._woken.wait(), due_s)
                except TimeoutError:
                    continue
                continue
            cycle = self._trigger.cycle
            self._trigger = self._trigger.planned()
            if self.host.active:
                await self._plan_and_publish(cycle)

    def _due_in_s(self) -> float | None:
        fleet = self._state.fleet
        if fleet is None:
            return None
        servers = frozenset(server.name for server in fleet.servers)
        settings = self._settings
        return self._trigger.due_in_s(servers, time.monotonic(), settings.debounce_s, settings.max_wait_s)

    async def _plan_and_publish(self, cycle: str) -> None:
        try:
            solver = self._solver_in_force(self._worker)
        except plugins.PluginRefused as error:
            self._refused = str(error)
            self.host.log.error("not planned", error=str(error))
            return
        self._refused = ""
        # As it is before planning: a manifest that comes meanwhile is that of another.
        fence = self._manifest_sequence
        planned, generation = await self._planned(solver)
        self._state = replace(
            self._state,
            last_generation=max(self._state.last_generation, planned.last_generation),
            last_plans=planned.last_plans,
        )
        try:
            await self.host.publish([Emit(p, "", cycle, "", p.expires_at_s) for p in generation.plans])
            await self._issue(generation.manifest, cycle, fence)
        except Retry as error:
            number = generation.manifest.generation
            self.host.log.warning("plan not published", generation=number, error=str(error))
            return
        for note in generation.notes:
            self.host.log.warning("not honoured", note=note)

    async def _issue(self, manifest: PlanIssued, cycle: str, fence: int) -> None:
        """Publish a manifest unless another optimizer was first; raises Fatal then.

        fence: where on its subject the last manifest lies that was known before planning.

        What else lies on its subject, unreadable, expired or an older manifest repeated, is nobody's plan.
        """
        while True:
            try:
                emit = Emit(manifest, "", cycle, "", manifest.expires_at_s, fence)
                (self._manifest_sequence,) = await self.host.publish([emit])
                return
            except Conflict as error:
                if error.last is None:
                    raise Retry(f"{error}; what is there could not be read") from error
                found = self._generation(error.last)
                if found >= manifest.generation:
                    raise Fatal(
                        f"another optimizer has issued generation {found}, this one is at {manifest.generation}"
                    ) from error
                fence = error.last.sequence

    def _generation(self, raw: Raw) -> int:
        """The generation of the manifest in a message; -1 when it holds none, or one that has expired."""
        now_s = self.host.clock.now_s()
        try:
            event = admitted(raw, self.name, now_s)
        except Reject:
            return -1
        expired = event.expires_at_s is not None and event.expires_at_s < now_s
        return event.payload.generation if isinstance(event.payload, PlanIssued) and not expired else -1

    async def _planned(self, solver: Solver, overrides: Sequence[str] = ()) -> tuple[State, Generation]:
        """One generation from what is known now, made in a thread so that messages are still taken.

        overrides: what-if fields of the fleet; raises ValueError for those that cannot be made.
        """
        began = time.perf_counter()
        now_s = self.host.clock.now_s()
        known, memory = self._state, self._memory
        if overrides:
            known, memory = replace(known, fleet=_what_if(known, overrides)), Memory()
        state, generation = await asyncio.to_thread(
            plan, known, solver, self._model, self._laws, self._settings, now_s, memory
        )
        seconds = time.perf_counter() - began
        self.host.metrics.stage.labels(self.name, "plan").observe(seconds)
        manifest = generation.manifest.model_copy(update={"solve_s": seconds})
        return state, replace(generation, manifest=manifest)

    async def _answer_solve(self, request: SolveRequested) -> SolveAnswered:
        generation = await self._answered(request.solver, request.overrides, request.servers)
        plans = tuple(p for p in generation.plans if not request.servers or p.server in request.servers)
        return SolveAnswered(manifest=generation.manifest, plans=plans)

    async def _answer_explain(self, request: ExplainRequested) -> ExplainAnswered:
        generation = await self._answered(request.solver, request.overrides, (request.server,))
        (planned,) = (p for p in generation.plans if p.server == request.server)
        return ExplainAnswered(
            plan=planned,
            manifest=generation.manifest,
            candidates=tuple(_explained(c) for c in generation.candidates.get(request.server, ())),
        )

    async def _answered(
        self, solver: str | None, overrides: Sequence[str], servers: Sequence[str]
    ) -> Generation:
        if self._state.fleet is None:
            raise ValueError("no fleet is declared yet")
        worker = self._answering
        chosen = self._solver(solver, worker) if solver else self._solver_in_force(worker)
        known = {server.name for server in self._state.fleet.servers}
        if unknown := sorted(set(servers) - known):
            raise ValueError(
                f"servers: {', '.join(unknown)} not declared; declared: {', '.join(sorted(known))}"
            )
        _, generation = await self._planned(chosen, overrides)
        return generation

    async def _answer_analyze(self, request: PerformanceRequested) -> PerformanceAnswered:
        return await asyncio.to_thread(answer_request, "analyze", request)

    async def _answer_size(self, request: PerformanceRequested) -> PerformanceAnswered:
        return await asyncio.to_thread(answer_request, "size", request)

    def _solver_in_force(self, worker: Worker) -> Solver:
        assert self._state.fleet is not None
        return self._solver(self._settings.solver or self._state.fleet.optimizer.solver, worker)

    def _solver(self, name: str, worker: Worker) -> Solver:
        """A solver plug-in; a heavy one solves in a worker."""
        if name not in self._solvers:
            self._solvers[name] = plugins.build("stoker.solvers", name)
        built = self._solvers[name]
        return RemoteSolver(built, worker) if built.capabilities.heavy else built


def _what_if(state: State, overrides: Sequence[str]) -> FleetDeclared:
    assert state.fleet is not None
    return FleetDeclared.model_validate(overridden(state.fleet.model_dump(mode="json"), overrides))


def _explained(candidate: Candidate) -> CandidateExplained:
    """A candidate as it is told over the bus."""
    return CandidateExplained(
        accelerator=candidate.accelerator,
        max_batch=candidate.max_batch,
        replicas=candidate.replicas,
        cards=min(MOST_CARDS, candidate.replicas * candidate.units_per_replica),
        cost_per_hour=candidate.cost_per_hour,
        value_per_hour=candidate.value,
        served_share=candidate.served_share,
        binding=candidate.binding,
        predicted=candidate.predicted,
    )
