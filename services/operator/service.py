"""The operator on the bus: custom resources in, the fleet out; plans and decisions in, statuses and Events out."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from schemas.fleet import FleetDeclared
from services.cluster.client import MERGE_PATCH, Cluster, ClusterError, Refused
from services.cluster.mirror import Following, Mirror
from services.cluster.workloads import kind_of
from services.legacy.form import LegacyRefused
from services.operator.core import Generation, State, declared, must_declare, observe, to_show
from services.operator.declaration import Declaration, declare
from services.operator.resources import API, FINALIZER, KINDS, Key, Resource, collection, read_resource
from services.operator.scale_targets import Candidate, Change, mark, read_candidate
from services.operator.settings import Settings
from services.operator.status import Status, Told, changes, events_of, status_of
from services.runtime.envelope import Emit, Event, encode, rfc3339
from services.runtime.errors import Retry, TooLarge
from services.runtime.service import Outcome, Service, Task

_WRITERS = 16
_FIELD_MANAGER = "stoker-operator"
_LOOK_S = 1.0
"""Wall seconds after which everything is looked at again though nothing was told, for periods that have passed."""


class OperatorService(Service):
    """Declares the fleet that custom resources describe and writes what comes of it into their statuses."""

    name = "operator"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.operator
        self._woken = asyncio.Event()
        self._cluster = Cluster(self._settings.cluster)
        self._mirrors = [
            Mirror(
                self._cluster,
                collection(kind, self._settings.namespace),
                read_resource,
                on_change=self._woken.set,
            )
            for kind in KINDS
        ]
        self._following = Following(*self._mirrors)
        # Not woken by these: workloads change far more often than what is declared of them.
        self._workloads: list[Mirror[Candidate]] = [
            Mirror(
                self._cluster,
                kind_of(one).path_within(self._settings.namespace),
                partial(read_candidate, kind=kind_of(one), names=self._settings.accelerators),
                optional=True,
            )
            for one in self._settings.workloads
        ]
        self._following_workloads = Following(*self._workloads)
        self._off_target: Mapping[Key, str] = {}
        self._state = State()
        self._authority = ""
        self._read: tuple[object, Declaration] | None = None
        self._trouble: tuple[str, ...] = ()

    def hydrate(self, events: Sequence[Event]) -> None:
        self._take(events)

    def handle(self, events: Sequence[Event]) -> Outcome:
        return Outcome(accept=lambda: self._take(events))

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event.payload, FleetDeclared):
                self._authority = event.source.removeprefix("/stoker/")
            self._state = observe(self._state, event.payload)
        self._woken.set()

    def tasks(self) -> Mapping[str, Task]:
        return {"reconcile": self._reconcile_on_change}

    def trouble(self) -> Sequence[str]:
        if self._authority not in ("", self.name):
            return (*self._trouble, f"the fleet is also declared by the {self._authority}; expected one only")
        return self._trouble

    async def close(self) -> None:
        await self._following.close()
        await self._following_workloads.close()
        await self._cluster.close()

    async def _reconcile_on_change(self) -> None:
        while True:
            self._woken.clear()
            began = time.perf_counter()
            if self.host.active:
                try:
                    self._trouble = tuple(await self._reconcile())
                except Retry as error:
                    self.host.log.warning("the bus did not take the fleet", error=str(error))
            self.host.metrics.stage.labels(self.name, "reconcile").observe(time.perf_counter() - began)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _LOOK_S)

    async def _reconcile(self) -> Sequence[str]:
        """Bring the bus and the cluster to what is known; returns what is in the way."""
        error = await self._following.error(self._settings.cluster.timeout_s)
        if error is not None:
            # A resource that is not read is not absent: the fleet stays as it was declared last.
            return [f"custom resources: {error}"]
        resources = [one for mirror in self._mirrors for one in mirror.objects.values()]
        if not resources and self._authority != self.name:
            return ["there are no custom resources yet"]
        now_s = self.host.clock.now_s()
        try:
            declaration = self._declaration(resources, now_s)
        except LegacyRefused as refused:
            return [str(refused)]
        known = set(declaration.servers.values())
        lacking = [one for one in resources if one.key in known and FINALIZER not in one.finalizers]
        failures = await self._side_by_side(self._finalize(one, True) for one in lacking)
        if must_declare(self._state, declaration, now_s, self._settings.ask_again_s):
            try:
                encode(Emit(declaration.fleet), self.name, now_s)
            except TooLarge as error:
                return [str(error), *map(str, failures)]
            await self._publish(declaration, now_s)
        failures += await self._mark(resources, declaration)
        declaration = _with_remarks(declaration, self._off_target)
        shown = to_show(self._state, declaration)
        failures += await self._show(resources, declaration, shown, now_s)
        if shown is not None:
            self._state = replace(self._state, shown=shown)
        leaving = [one for one in resources if one.deleting and FINALIZER in one.finalizers]
        failures += await self._side_by_side(self._finalize(one, False) for one in leaving)
        return [str(one) for one in failures if not (isinstance(one, Refused) and one.status == 409)]

    def _declaration(self, resources: Sequence[Resource], now_s: float) -> Declaration:
        """Made anew when a specification or the Optimizer's progress has changed; statuses change often."""
        seen = [
            (
                one.key,
                one.uid,
                one.generation,
                one.deleting,
                one.kind == "Optimizer" and one.status.get("done"),
            )
            for one in resources
        ]
        if self._read is None or self._read[0] != seen:
            self._read = (seen, declare(resources, now_s))
        return self._read[1]

    async def _publish(self, declaration: Declaration, now_s: float) -> None:
        fleet = declaration.fleet.model_copy(update={"declared_at_s": now_s})
        self._read = None if self._read is None else (self._read[0], replace(declaration, fleet=fleet))
        await self.host.publish([Emit(fleet)])
        self._authority = self.name
        self._state = declared(self._state, replace(declaration, fleet=fleet))
        self.host.log.info("fleet declared", revision=fleet.revision, servers=len(fleet.servers))

    async def _mark(self, resources: Sequence[Resource], declaration: Declaration) -> list[ClusterError]:
        """Make the workloads that declared Servers name known to the collector and the actuator."""
        error = await self._following_workloads.error(self._settings.cluster.timeout_s)
        if error is not None:
            return [error]
        known = set(declaration.servers.values())
        marking = mark(
            [one for one in resources if one.key in known],
            [one.name for one in declaration.fleet.accelerators],
            [one for mirror in self._workloads for one in mirror.objects.values()],
            self._settings.workloads,
        )
        self._off_target = marking.remarks
        return await self._side_by_side(self._annotate(change) for change in marking.changes)

    async def _annotate(self, change: Change) -> None:
        meta = {"resourceVersion": change.resource_version, "annotations": change.annotations}
        query = {"fieldManager": _FIELD_MANAGER}
        await self._cluster.call("PATCH", change.path, query, {"metadata": meta}, MERGE_PATCH)

    async def _show(
        self,
        resources: Sequence[Resource],
        declaration: Declaration,
        shown: Generation | None,
        now_s: float,
    ) -> list[ClusterError]:
        """Write the statuses that differ; an Optimizer's last, since it says that the others are there."""
        standing = [one for one in resources if not one.deleting]
        failures: list[ClusterError] = []
        for last in (False, True):
            part = [one for one in standing if (one.kind == "Optimizer") is last]
            if last and failures:
                break
            statuses = [status_of(one, declaration, self._state, shown, now_s) for one in part]
            pairs = zip(part, statuses, strict=True)
            failures += await self._side_by_side(self._write(one, status) for one, status in pairs)
        return failures

    async def _write(self, resource: Resource, status: Status) -> None:
        if not (changed := changes(resource, status)):
            return
        # What is no longer so as it was read is looked at again when the watch tells.
        meta = {"resourceVersion": resource.resource_version}
        body = {"metadata": meta, "status": changed}
        await self._cluster.call("PATCH", f"{resource.path}/status", body=body, content=MERGE_PATCH)
        for told in events_of(resource, status):
            await self._tell(resource, told)

    async def _tell(self, resource: Resource, told: Told) -> None:
        """One Event; it is news and nothing depends on it, so a refusal is only logged."""
        at = rfc3339(time.time())[:19] + "Z"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{resource.name}.", "namespace": resource.namespace},
            "involvedObject": {
                "apiVersion": API,
                "kind": resource.kind,
                "namespace": resource.namespace,
                "name": resource.name,
                "uid": resource.uid,
                "resourceVersion": resource.resource_version,
            },
            "type": told.type,
            "reason": told.reason,
            "message": told.message[:1000],
            "source": {"component": _FIELD_MANAGER},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        try:
            await self._cluster.call("POST", f"/api/v1/namespaces/{resource.namespace}/events", body=event)
        except ClusterError as error:
            self.host.log.warning("event not written", about=resource.shown, error=str(error))

    async def _finalize(self, resource: Resource, present: bool) -> None:
        """Put our finalizer on an object, or take it off; others' stay."""
        others = [one for one in resource.finalizers if one != FINALIZER]
        meta = {
            "resourceVersion": resource.resource_version,
            "finalizers": [*others, FINALIZER] if present else others,
        }
        await self._cluster.call("PATCH", resource.path, body={"metadata": meta}, content=MERGE_PATCH)

    async def _side_by_side(self, works: Iterable[Coroutine[Any, Any, None]]) -> list[ClusterError]:
        """Do all of it; one object's failure does not stop the next."""
        at_once = asyncio.Semaphore(_WRITERS)

        async def one(work: Coroutine[Any, Any, None]) -> ClusterError | None:
            async with at_once:
                try:
                    await work
                except ClusterError as error:
                    return None if isinstance(error, Refused) and error.status == 404 else error
            return None

        return [e for e in await asyncio.gather(*(one(work) for work in works)) if e is not None]


def _with_remarks(declaration: Declaration, more: Mapping[Key, str]) -> Declaration:
    added = {key: (*declaration.remarks.get(key, ()), text) for key, text in more.items()}
    return replace(declaration, remarks={**declaration.remarks, **added})
