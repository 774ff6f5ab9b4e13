"""The actuator on the bus: decides each complete generation once, publishes, then writes to the target."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from schemas.actuation import ActuationApplied, ActuationFailed
from schemas.request import PauseAnswered, PauseRequested
from services.actuator.core import (
    FLEET_KEY,
    SERVER,
    Outputs,
    State,
    Writing,
    decide,
    dump,
    load,
    observe,
    pause,
    resume,
    undecided_generation,
    written,
)
from services.actuator.desired import DesiredReplicas
from services.actuator.gate import Rule
from services.actuator.settings import Settings
from services.actuator.target import Applied, Target
from services.actuator.targets.metrics import MetricsTarget
from services.runtime import plugins
from services.runtime.envelope import Emit, Event
from services.runtime.errors import Retry
from services.runtime.service import Outcome, Service, Task, VerbHandler

_WRITERS = 16


class ActuatorService(Service):
    """Holds whenever it does not know better: without a plan, without its lease, without the bus."""

    name = "actuator"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.actuator
        self._rules: list[Rule] = [
            plugins.build("stoker.gates", name, self._settings.rule_settings.get(name))
            for name in self._settings.rules
        ]
        if unknown := sorted(set(self._settings.rule_settings) - set(self._settings.rules)):
            raise plugins.PluginRefused(f"actuator.rule_settings: {', '.join(unknown)} not among the rules")
        self._target: Target = plugins.build(
            "stoker.targets", self._settings.target, self._settings.target_settings
        )
        exposes = isinstance(self._target, MetricsTarget)
        self._desired = self._target.desired if exposes else DesiredReplicas()
        self._state = State()
        self._cycle = ""
        self._woken = asyncio.Event()
        self._deciding = asyncio.Lock()

    def restore(self, snapshots: Mapping[str, bytes]) -> None:
        for key, raw in snapshots.items():
            try:
                self._state = load(self._state, key, raw)
            except ValueError as error:
                self.host.log.warning("snapshot left out", error=str(error))

    def hydrate(self, events: Sequence[Event]) -> None:
        self._take(events)

    def handle(self, events: Sequence[Event]) -> Outcome:
        return Outcome(accept=lambda: self._take(events))

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            self._state = observe(self._state, event.payload)
            if event.topic.name == "plan.issued":
                self._cycle = event.correlation_id
        self._woken.set()

    async def open(self) -> None:
        self.host.metrics.registry.register(self._desired)

    def tasks(self) -> Mapping[str, Task]:
        return {"decide": self._decide_each_generation}

    def verbs(self) -> Mapping[str, VerbHandler]:
        return {"pause": self._answer_pause, "resume": self._answer_resume}

    async def settle(self) -> None:
        # Kept, so that no other generation is begun; what is written meanwhile is told.
        await self._deciding.acquire()

    async def close(self) -> None:
        await self._target.close()

    async def _decide_each_generation(self) -> None:
        while True:
            self._woken.clear()
            if undecided_generation(self._state) is not None and self.host.active:
                try:
                    async with self._deciding:
                        await self._decide()
                except Retry as error:
                    self.host.log.warning("held: the bus did not take the decision", error=str(error))
                    await asyncio.sleep(error.delay_s)
                    continue
            await self._woken.wait()

    async def _decide(self) -> None:
        outputs = Outputs()
        cycle = self._cycle

        def step() -> Outcome:
            nonlocal outputs
            now_s = self.host.clock.now_s()
            state, outputs = decide(self._state, self._rules, self._settings, now_s, self._target.writes)

            def accept() -> None:
                self._state = state

            emits = [Emit(d, f"{d.generation}", cycle) for d in outputs.decisions]
            emits += [Emit(fact, "", cycle) for fact in (*outputs.alerts, *outputs.unavailable)]
            emits += [Emit(fact, f"{fact.generation}", cycle) for fact in outputs.failures]
            snapshots = {SERVER + d.server: dump(state, SERVER + d.server) for d in outputs.decisions}
            return Outcome(emits, snapshots | {FLEET_KEY: dump(state, FLEET_KEY)}, accept=accept)

        await self.host.transact(step)
        metrics = self.host.metrics
        for decision in outputs.decisions:
            metrics.decisions.labels(decision.verdict.value, decision.rule).inc()
        fleet = self._state.fleet
        self._desired.keep({server.name for server in fleet.servers} if fleet else ())
        for failure in outputs.failures:
            metrics.actuations.labels(self._target.name, failure.reason.value).inc()
        for server, reason in outputs.undecided.items():
            self.host.log.info("not decided", server=server, reason=reason)
        await self._write(outputs.writings, cycle)
        for server, scales in outputs.scales.items():
            self._desired.show(server, scales)

    async def _write(self, writings: Sequence[Writing], cycle: str) -> None:
        """Carry decisions out side by side; one server's failure does not stop the next."""
        at_once = asyncio.Semaphore(_WRITERS)

        owned: set[str] = set()

        async def one(writing: Writing) -> tuple[Writing, ActuationApplied | ActuationFailed] | None:
            async with at_once:
                if not self.host.active:
                    return None
                result = await self._target.apply(writing.server, writing.scales, writing.inventory)
            now_s = self.host.clock.now_s()
            if isinstance(result, Applied):
                if result.owned and self._target.writes:
                    owned.add(writing.server)
                return writing, ActuationApplied(
                    server=writing.server,
                    generation=writing.generation,
                    target=self._target.name,
                    asked=writing.asked,
                    scaled=writing.scales if result.scaled is None else result.scaled,
                    changed=result.changed,
                    resource_version=result.resource_version or None,
                    applied_at_s=now_s,
                )
            return writing, ActuationFailed(
                server=writing.server,
                generation=writing.generation,
                target=self._target.name,
                asked=writing.asked,
                reason=result.reason,
                message=result.message[:4000],
                failed_at_s=now_s,
            )

        results = [r for r in await asyncio.gather(*(one(w) for w in writings)) if r is not None]
        if not results:
            return
        for _, fact in results:
            outcome = fact.reason.value if isinstance(fact, ActuationFailed) else "applied"
            self.host.metrics.actuations.labels(self._target.name, outcome).inc()

        def step() -> Outcome:
            state = self._state
            changed = []
            for writing, fact in results:
                if isinstance(fact, ActuationApplied) and writing.server in owned:
                    state = written(state, replace(writing, scales=fact.scaled), fact.applied_at_s)
                    changed.append(writing.server)

            def accept() -> None:
                self._state = replace(self._state, memory=state.memory)

            emits = [Emit(fact, f"{writing.generation}", cycle) for writing, fact in results]
            return Outcome(
                emits, {SERVER + name: dump(state, SERVER + name) for name in changed}, accept=accept
            )

        while True:
            try:
                await self.host.transact(step)
                return
            except Retry as error:
                # The next cycle would find it written and say nothing of it.
                self.host.log.warning("not told yet what was written", error=str(error))
                await asyncio.sleep(error.delay_s)

    async def _answer_pause(self, request: PauseRequested) -> PauseAnswered:
        return await self._hold(request, pause)

    async def _answer_resume(self, request: PauseRequested) -> PauseAnswered:
        return await self._hold(request, resume)

    async def _hold(
        self, request: PauseRequested, change: Callable[[State, str | None], State]
    ) -> PauseAnswered:
        fleet = self._state.fleet
        known = {server.name for server in fleet.servers} if fleet else set()
        if request.server is not None and request.server not in known:
            raise ValueError(
                f"server {request.server!r} is not declared; declared: {', '.join(sorted(known))}"
            )

        def step() -> Outcome:
            state = change(self._state, request.server)

            def accept() -> None:
                self._state = state

            touched = {
                name for name in state.memory if state.memory[name] is not self._state.memory.get(name)
            }
            snapshots = {SERVER + name: dump(state, SERVER + name) for name in touched}
            return Outcome((), snapshots | {FLEET_KEY: dump(state, FLEET_KEY)}, accept=accept)

        await self.host.transact(step)
        return PauseAnswered(
            fleet_paused=self._state.fleet_paused, servers_paused=tuple(sorted(self._state.paused))
        )
