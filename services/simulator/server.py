"""A simulated inference server: its variants, their replicas, and the gateway in front of them."""

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from math import exp, inf, log
from random import Random

from services.simulator.arrivals import Arrival
from services.simulator.plant import ServerDescription, VariantDescription, pod_prefix
from services.simulator.replica import Engine, EngineParameters, Request

NORMAL_P95 = 1.6448536269514722


class PodState(StrEnum):
    """Where a replica is in its life."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    TERMINATING = "terminating"


class Pod:
    """One replica as its platform sees it; times in seconds since the fleet's origin."""

    def __init__(self, name: str, server: "Server", variant: "Variant", created_at_s: float) -> None:
        self.name = name
        self.server = server
        self.variant = variant
        self.created_at_s = created_at_s
        self.starts_at_s = inf
        self.ready_at_s: float | None = None
        self.silent_until_s = -inf
        self.last_routed = 0
        self.state = PodState.PENDING
        self.reason = ""
        self.slow_factor = 1.0
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        """An engine as it starts: what made this one replica slow is over, what slows its kind down is not."""
        self.slow_factor = 1.0
        return self.variant.new_engine()

    def slow_down(self) -> None:
        """Let the engine run at the present speed of its kind and of its own."""
        self.engine.slow_down(self.slow_factor * self.variant.slow_factor)

    def answers_scrapes(self, time_s: float) -> bool:
        return self.state in (PodState.READY, PodState.TERMINATING) and time_s >= self.silent_until_s


class Variant:
    """A server on one accelerator configuration: the target that was set, and the replicas there are."""

    def __init__(self, server: str, description: VariantDescription, seed: str) -> None:
        self.description = description
        self.accelerator = description.accelerator
        self.desired = 0
        self.max_batch = description.max_batch
        self.resource_version = 1
        self.pods: list[Pod] = []
        self.parameters = EngineParameters(
            alpha_s=description.alpha_s,
            beta_s=description.beta_s,
            gamma_s=description.gamma_s,
            token_budget=description.token_budget,
            kv_tokens=description.kv_tokens,
            decode_s=description.decode_s,
            prefill_read_s=description.prefill_read_s,
            prefill_square_s=description.prefill_square_s,
            overhead_s=description.overhead_s,
        )
        self.slow_factor = 1.0
        self._prefix = pod_prefix(server, description.accelerator)
        self._created = 0
        # Of its own, so that what one variant does leaves the cold starts of the others as they were.
        self._rng = Random(seed)

    def new_engine(self) -> Engine:
        """An idle engine of this kind, at its present speed."""
        engine = Engine(self.parameters, self.max_batch)
        engine.slow_down(self.slow_factor)
        return engine

    def next_name(self) -> str:
        self._created += 1
        return f"{self._prefix}-{self._created}"

    def draw_startup_s(self) -> float:
        """A lognormal cold start with the described median and 95th percentile."""
        startup = self.description.startup_s
        sigma = log(startup.p95 / startup.median) / NORMAL_P95
        return startup.median * exp(self._rng.gauss(0.0, sigma))

    def count(self, state: PodState) -> int:
        return sum(pod.state is state for pod in self.pods)


class Server:
    """A server's gateway routes to the ready replica with the fewest outstanding requests.

    Ties go to the one that has been left alone for longest. While no replica is ready, requests wait in the
    gateway's queue. A request too long for the KV memory of any of the variants is rejected on arrival.
    """

    def __init__(
        self, description: ServerDescription, arrivals: Iterator[Arrival], source: str, seed: str
    ) -> None:
        self.name = description.name
        self.model = description.model
        self.source = source
        self.arrivals = arrivals
        self.queue: deque[Request] = deque()
        self.requests_total = 0
        self.rejected_total = 0
        self.finished_total = 0
        self.variants = {
            variant.accelerator: Variant(self.name, variant, f"{seed}/{variant.accelerator}")
            for variant in description.variants
        }
        self._longest_tokens = description.longest_request_tokens
        self._ready: list[Pod] = []
        self._routed = 0

    def pods(self) -> list[Pod]:
        return [pod for variant in self.variants.values() for pod in variant.pods]

    def outstanding(self) -> int:
        """Requests that have arrived and are neither finished nor rejected."""
        return len(self.queue) + sum(pod.engine.outstanding for pod in self.pods())

    def arrive(self, arrival: Arrival) -> None:
        """Take a new request at its arrival time."""
        self.requests_total += 1
        request = Request(*arrival)
        if self._longest_tokens is not None and request.footprint_tokens > self._longest_tokens:
            self.rejected_total += 1
        else:
            self.route(request, arrival.time_s)

    def route(self, request: Request, time_s: float) -> None:
        """Hand a request to a replica, or queue it."""
        chosen, fewest = None, (0, 0)
        for pod in self._ready:
            engine = pod.engine
            if engine.next_change_s <= time_s:
                engine.advance(time_s)
            load = (engine.outstanding, pod.last_routed)
            if chosen is None or load < fewest:
                chosen, fewest = pod, load
        if chosen is None:
            self.queue.append(request)
            return
        self._routed += 1
        chosen.last_routed = self._routed
        chosen.engine.submit(request, time_s)

    def refresh(self, time_s: float) -> None:
        """Look again which replicas are ready, and hand them what the gateway holds."""
        self._ready = [pod for pod in self.pods() if pod.state is PodState.READY]
        while self.queue and self._ready:
            self.route(self.queue.popleft(), time_s)
