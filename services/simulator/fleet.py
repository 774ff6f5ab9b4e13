"""The simulated fleet: arrivals, cold starts, drains and finite accelerators in one order of events.

Everything outside is in Unix seconds; inside, time is in seconds since the fleet's origin, because a
double of today's Unix time resolves no better than a quarter of a microsecond. Pure: no clock, no network.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from schemas.parameters import CalibrationPoint
from schemas.telemetry import TelemetryObserved
from services.simulator.calibration import sweep, sweep_s
from services.simulator.faults import (
    CapacityChange,
    Fault,
    MetricsDropout,
    ReplicaCrash,
    SlowReplica,
    SpeedChange,
)
from services.simulator.plant import Plant, open_arrivals
from services.simulator.replica import Request
from services.simulator.server import Pod, PodState, Server, Variant

# A drift is carried out in so many steps, each of them too small to see.
DRIFT_STEPS = 100
# Requests of a sweep, which is carried out at one go: some seconds of work.
MOST_SWEPT = 100_000

REMOVAL_ORDER = {PodState.PENDING: 0, PodState.STARTING: 1, PodState.READY: 2}


class UnknownName(LookupError):
    """No such server, variant, replica or accelerator type."""


class Conflict(Exception):
    """The variant's resource version is not the one expected."""


class Refused(ValueError):
    """A request that makes no sense for the state the fleet is in."""


class FinishedRequest(NamedTuple):
    """The record of a completed request, times in Unix seconds.

    `arrival_s` is at the gateway, `submitted_s` at the replica that finished it.
    """

    server: str
    pod: str
    accelerator: str
    arrival_s: float
    submitted_s: float
    first_token_s: float
    finish_s: float
    input_tokens: int
    output_tokens: int


class Fleet:
    """All servers of a plant and the accelerators they share.

    `origin_s` is the Unix time at which the simulation starts; `trace_folders` is where traces are looked
    for; `log_size` is how many completed requests are remembered. Raises PlantError or TraceError.
    """

    def __init__(
        self, plant: Plant, trace_folders: Sequence[Path] = (), origin_s: float = 0.0, log_size: int = 100_000
    ) -> None:
        self.origin_s = origin_s
        self.servers: dict[str, Server] = {}
        self.capacity = {accelerator.type: accelerator.count for accelerator in plant.accelerators}
        self.free = dict(self.capacity)
        self.pods: dict[str, Pod] = {}
        self.forgotten_until_s = -inf
        self.calibrations: list[TelemetryObserved] = []
        self._seed = plant.seed
        self._log: deque[FinishedRequest] = deque(maxlen=log_size)
        self._time_s = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        for description in plant.servers:
            seed = f"{plant.seed}/{description.name}"
            arrivals, source = open_arrivals(description.arrivals, trace_folders, f"{seed}/arrivals")
            server = Server(description, arrivals, source, seed)
            self.servers[server.name] = server
            for initial in description.initial:
                variant = server.variants[initial.accelerator]
                variant.desired = initial.replicas
                for _ in range(initial.replicas):
                    pod = self._create(server, variant)
                    self._allocate(pod)
                    pod.state, pod.ready_at_s = PodState.READY, 0.0
            server.refresh(0.0)
            self._await_arrival(server)

    @property
    def now_s(self) -> float:
        return self.origin_s + self._time_s

    def advance(self, until_s: float, max_events: int | None = None) -> bool:
        """Simulate up to `until_s`, or at most `max_events` events; whether `until_s` was reached."""
        until_s -= self.origin_s
        events, left = self._events, max_events
        while events and events[0][0] <= until_s:
            if left == 0:
                self._collect_all()
                return False
            left = None if left is None else left - 1
            self._time_s, _, handle, subject = heappop(events)
            handle(subject)
        self._time_s = max(self._time_s, until_s)
        for pod in self.pods.values():
            pod.engine.advance(self._time_s)
        self._collect_all()
        return True

    def variant(self, server: str, accelerator: str) -> Variant:
        """A server's variant; raises UnknownName."""
        if server not in self.servers:
            raise UnknownName(f"server {server!r}: expected one of {sorted(self.servers)}")
        variants = self.servers[server].variants
        if accelerator not in variants:
            raise UnknownName(f"server {server!r}, accelerator {accelerator!r}: expected {sorted(variants)}")
        return variants[accelerator]

    def scale(
        self,
        server: str,
        accelerator: str,
        replicas: int,
        max_batch: int | None = None,
        resource_version: int | None = None,
    ) -> Variant:
        """Set a variant's replicas and batch limit (None leaves it); the same again changes nothing.

        Raises UnknownName, Refused on a target out of range, and Conflict if a resource version is given
        that is not the present one.
        """
        variant = self.variant(server, accelerator)
        if replicas < 0:
            raise Refused(f"replicas: expected 0 or more, not {replicas}")
        if max_batch is not None and max_batch < 1:
            raise Refused(f"max_batch: expected 1 or more, not {max_batch}")
        if resource_version is not None and resource_version != variant.resource_version:
            raise Conflict(f"resource version: expected {variant.resource_version}, not {resource_version}")
        batch = variant.max_batch if max_batch is None else max_batch
        if (replicas, batch) == (variant.desired, variant.max_batch):
            return variant
        variant.resource_version += 1
        variant.desired = replicas
        if batch != variant.max_batch:
            variant.max_batch = batch
            for pod in variant.pods:
                pod.engine.advance(self._time_s)
                pod.engine.limit_batch(batch)
        self._reconcile(self.servers[server], variant)
        return variant

    def inject(self, fault: Fault) -> None:
        """Put a fault in at the present time; raises UnknownName or Refused."""
        match fault:
            case CapacityChange(accelerator_type=kind, count=count):
                self._change_capacity(kind, count)
            case MetricsDropout(pod=name, duration_s=duration_s):
                self.pod(name).silent_until_s = self._time_s + duration_s
            case ReplicaCrash(pod=name):
                self._crash(self.pod(name))
            case SlowReplica(pod=name, factor=factor):
                pod = self.pod(name)
                pod.slow_factor = factor
                self._slow_down(pod)
            case SpeedChange(server=server, accelerator=accelerator, factor=factor, over_s=over_s):
                variant = self.variant(server, accelerator)
                steps = DRIFT_STEPS if over_s > 0.0 else 1
                ratio = (factor / variant.slow_factor) ** (1.0 / steps)
                for step in range(1, steps + 1):
                    reached = variant.slow_factor * ratio**step
                    self._at(self._time_s + over_s * step / steps, self._change_speed, (variant, reached))

    def calibrate(self, model: str, accelerator: str, points: Sequence[CalibrationPoint]) -> float:
        """Start a sweep on a replica of its own, which no user reaches; when it will have ended, in Unix seconds.

        It takes a cold start and the time of its points, and holds accelerators meanwhile; what it measured is then
        in `calibrations`. Raises UnknownName, and Refused where no accelerator is free.
        """
        variant = next(
            (
                server.variants[accelerator]
                for server in self.servers.values()
                if server.model == model and accelerator in server.variants
            ),
            None,
        )
        if variant is None:
            raise UnknownName(f"model {model!r} on {accelerator!r}: no server has it")
        requests = sum(point.rate_rps for point in points) * sweep_s(1)
        if requests > MOST_SWEPT:
            raise Refused(f"calibration: expected at most {MOST_SWEPT} requests, not {requests:.0f}")
        units, kind = variant.description.units, variant.description.accelerator_type
        if self.free[kind] < units:
            raise Refused(f"calibration: expected {units} {kind} free, not {max(0, self.free[kind])}")
        self.free[kind] -= units
        end_s = self._time_s + variant.draw_startup_s() + sweep_s(len(points))
        self._at(end_s, self._calibrated, (variant, model, tuple(points)))
        return self.origin_s + end_s

    def _calibrated(self, subject: tuple[Variant, str, tuple[CalibrationPoint, ...]]) -> None:
        variant, model, points = subject
        seed = f"{self._seed}/calibration/{len(self.calibrations)}"
        found = sweep(variant.new_engine, model, variant.accelerator, points, self.now_s, seed)
        self.calibrations.append(found)
        self.free[variant.description.accelerator_type] += variant.description.units
        self._schedule()

    def pod(self, name: str) -> Pod:
        """A replica by name; raises UnknownName."""
        if name not in self.pods:
            raise UnknownName(f"replica {name!r}: no such replica")
        return self.pods[name]

    def answers_scrapes(self, pod: Pod) -> bool:
        return pod.answers_scrapes(self._time_s)

    def finished_since(self, since_s: float, server: str | None = None) -> list[FinishedRequest]:
        """Remembered requests that finished after `since_s`, in the order in which they finished."""
        chosen = (r for r in self._log if r.finish_s > since_s and (server is None or r.server == server))
        return sorted(chosen, key=lambda record: record.finish_s)

    def _at(self, time_s: float, handle: Callable[[Any], None], subject: object) -> None:
        self._sequence += 1
        heappush(self._events, (time_s, self._sequence, handle, subject))

    def _await_arrival(self, server: Server) -> None:
        if (arrival := next(server.arrivals, None)) is not None:
            self._at(arrival.time_s, self._arrive, (server, arrival))

    def _arrive(self, subject: tuple[Server, Any]) -> None:
        server, arrival = subject
        server.arrive(arrival)
        self._await_arrival(server)

    def _reconcile(self, server: Server, variant: Variant) -> None:
        """Create or retire replicas until the variant has as many as desired."""
        kept = [pod for pod in variant.pods if pod.state is not PodState.TERMINATING]
        for _ in range(variant.desired - len(kept)):
            self._create(server, variant)
        if len(kept) > variant.desired:
            for pod in kept:
                pod.engine.advance(self._time_s)
            newest_first = reversed(kept)
            ranked = sorted(newest_first, key=lambda pod: (REMOVAL_ORDER[pod.state], pod.engine.outstanding))
            for pod in ranked[: len(kept) - variant.desired]:
                self._retire(pod)
        server.refresh(self._time_s)
        self._schedule()

    def _create(self, server: Server, variant: Variant) -> Pod:
        pod = Pod(variant.next_name(), server, variant, self._time_s)
        variant.pods.append(pod)
        self.pods[pod.name] = pod
        return pod

    def _allocate(self, pod: Pod) -> None:
        description = pod.variant.description
        self.free[description.accelerator_type] -= description.units

    def _schedule(self) -> None:
        """Start pending replicas, the oldest first, that fit into what is free."""
        for pod in self.pods.values():
            if pod.state is not PodState.PENDING:
                continue
            needed, kind = pod.variant.description.units, pod.variant.description.accelerator_type
            if self.free[kind] >= needed:
                self._allocate(pod)
                self._start(pod, "")
            else:
                pod.reason = f"Unschedulable: {needed} {kind} needed, {max(0, self.free[kind])} free"

    def _start(self, pod: Pod, reason: str) -> None:
        pod.state, pod.reason, pod.ready_at_s = PodState.STARTING, reason, None
        pod.starts_at_s = self._time_s + pod.variant.draw_startup_s()
        self._at(pod.starts_at_s, self._started, pod)

    def _started(self, pod: Pod) -> None:
        # A start that was cut short leaves its event behind.
        if pod.name in self.pods and pod.state is PodState.STARTING and pod.starts_at_s == self._time_s:
            pod.state, pod.reason, pod.ready_at_s = PodState.READY, "", self._time_s
            pod.server.refresh(self._time_s)

    def _retire(self, pod: Pod) -> None:
        if pod.engine.outstanding:
            pod.state, pod.reason = PodState.TERMINATING, "Draining"
            self._at(pod.engine.next_change_s, self._drain, pod)
        else:
            self._remove(pod)

    def _drain(self, pod: Pod) -> None:
        if pod.name not in self.pods:
            return
        pod.engine.advance(self._time_s)
        if pod.engine.outstanding:
            self._at(pod.engine.next_change_s, self._drain, pod)
        else:
            self._remove(pod)
            self._schedule()

    def _remove(self, pod: Pod) -> None:
        self._collect(pod)
        pod.variant.pods.remove(pod)
        del self.pods[pod.name]
        if pod.state is not PodState.PENDING:
            self.free[pod.variant.description.accelerator_type] += pod.variant.description.units

    def _change_speed(self, subject: tuple[Variant, float]) -> None:
        variant, factor = subject
        variant.slow_factor = factor
        for pod in variant.pods:
            self._slow_down(pod)

    def _slow_down(self, pod: Pod) -> None:
        pod.engine.advance(self._time_s)
        pod.slow_down()
        if pod.state is PodState.TERMINATING:
            self._at(pod.engine.next_change_s, self._drain, pod)

    def _crash(self, pod: Pod) -> None:
        if pod.state is PodState.PENDING:
            raise Refused(f"replica {pod.name!r}: it is pending, there is no process to crash")
        lost = self._abandon(pod)
        if pod.state is PodState.TERMINATING:
            self._remove(pod)
            self._schedule()
        else:
            self._start(pod, "Restarted after a crash")
        self._send_again(pod.server, lost)

    def _change_capacity(self, kind: str, count: int) -> None:
        if kind not in self.capacity:
            raise UnknownName(f"accelerator type {kind!r}: expected one of {sorted(self.capacity)}")
        self.free[kind] += count - self.capacity[kind]
        self.capacity[kind] = count
        holders = [p for p in self.pods.values() if p.variant.description.accelerator_type == kind]
        for pod in reversed(holders):
            if self.free[kind] >= 0:
                break
            if pod.state is PodState.PENDING:
                continue
            lost = self._abandon(pod)
            self._remove(pod)
            if pod.state is not PodState.TERMINATING:
                self._create(pod.server, pod.variant)
            self._send_again(pod.server, lost)
        self._schedule()

    def _abandon(self, pod: Pod) -> list[Request]:
        pod.engine.advance(self._time_s)
        self._collect(pod)
        lost = pod.engine.abandon()
        pod.engine = pod.new_engine()
        return lost

    def _send_again(self, server: Server, lost: list[Request]) -> None:
        """The gateway repeats lost requests from their first token; they keep their arrival times."""
        server.refresh(self._time_s)
        for request in lost:
            server.route(request, self._time_s)

    def _collect_all(self) -> None:
        for pod in self.pods.values():
            if pod.engine.finished:
                self._collect(pod)

    def _collect(self, pod: Pod) -> None:
        for record in self._records(pod):
            if len(self._log) == self._log.maxlen:
                self.forgotten_until_s = max(self.forgotten_until_s, self._log[0].finish_s)
            self._log.append(record)
        pod.server.finished_total += len(pod.engine.finished)
        pod.engine.finished.clear()

    def _records(self, pod: Pod) -> Iterator[FinishedRequest]:
        origin_s = self.origin_s
        for request in pod.engine.finished:
            assert request.first_token_s is not None and request.finish_s is not None
            yield FinishedRequest(
                pod.server.name,
                pod.name,
                pod.variant.accelerator,
                origin_s + request.arrival_s,
                origin_s + request.submitted_s,
                origin_s + request.first_token_s,
                origin_s + request.finish_s,
                request.input_tokens,
                request.output_tokens,
            )
