"""A simulated fleet of one server whose true engine the tuner does not know, and what it learns of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, LawParameters, Model, ModelProfile
from schemas.parameters import ParametersEstimated
from schemas.telemetry import Latency, ReplicaTelemetry, TelemetryObserved
from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import ServerModel, Targets
from services.perfmodel.queueing_models.corrected import CorrectedModel
from services.simulator.fleet import Fleet
from services.simulator.plant import Plant
from services.simulator.server import Pod, PodState
from services.tuner.core import Setup, State, step
from services.tuner.estimators.moving_horizon import MovingHorizon, MovingHorizonSettings
from services.tuner.settings import TunerSettings

LAW = ThreeParameterLaw()
TRUTH = {"alpha_s": 8e-3, "beta_s": 16e-6, "gamma_s": 5e-7}
WRONG = {"alpha_s": 11e-3, "beta_s": 12e-6, "gamma_s": 4e-7}
# The seven-parameter law of an engine of about the same speed, in the simulator's names.
SEVEN = {
    "alpha_s": 8e-3,
    "beta_s": 2e-5,
    "gamma_s": 5e-8,
    "decode_s": 2e-4,
    "prefill_read_s": 0.0,
    "prefill_square_s": 1e-9,
    "overhead_s": 0.01,
}
WINDOW_S = 60.0
ORIGIN_S = 1e9
MAX_BATCH = 64
SETUP = Setup(MovingHorizon(MovingHorizonSettings()), {LAW.name: LAW}, TunerSettings())


def fleet(
    rate_rps: list[tuple[float, float]],
    engine: dict[str, float] = TRUTH,
    replicas: int = 3,
    shape: str = "lognormal",
    cv: float = 0.4,
    burstiness: float = 1.0,
    input_tokens: float = 500.0,
    output_tokens: float = 200.0,
    seed: int = 1,
) -> Fleet:
    """One server of a model on one accelerator; the rate is the server's."""
    return Fleet(
        Plant.model_validate(
            {
                "seed": seed,
                "accelerators": [{"type": "H100", "count": 8}],
                "servers": [
                    {
                        "name": "s",
                        "model": "m",
                        "variants": [
                            {
                                "accelerator": "H100",
                                "accelerator_type": "H100",
                                "max_batch": MAX_BATCH,
                                "startup_s": {"median": 10, "p95": 20},
                                **engine,
                            }
                        ],
                        "initial": [{"accelerator": "H100", "replicas": replicas}],
                        "arrivals": {
                            "kind": "generated",
                            "rate_rps": rate_rps,
                            "interarrival_cv": burstiness,
                            "input_tokens": {"mean": input_tokens, "cv": cv, "shape": shape},
                            "output_tokens": {"mean": output_tokens, "cv": cv, "shape": shape},
                        },
                    }
                ],
            }
        ),
        origin_s=ORIGIN_S,
    )


@dataclass
class Counters:
    """What a replica's counters said at the end of the window before."""

    arrived: int = 0
    finished: int = 0
    prompt: int = 0
    generated: int = 0
    ttft: tuple[int, float] = (0, 0.0)
    itl: tuple[int, float] = (0, 0.0)


class Scraper:
    """Windows of telemetry from counters, as a collector takes them."""

    def __init__(self, simulated: Fleet) -> None:
        self.fleet = simulated
        self._before: dict[str, Counters] = {}

    def next_window(self, duration_s: float = WINDOW_S, epoch: str = "0") -> TelemetryObserved:
        """The fleet moved on by a window, and what was measured in it."""
        start_s = self.fleet.now_s
        self.fleet.advance(start_s + duration_s)
        pods = [pod for pod in self.fleet.servers["s"].pods() if pod.state is PodState.READY]
        return TelemetryObserved(
            server="s",
            model="m",
            window_start_s=start_s,
            window_end_s=self.fleet.now_s,
            epoch=epoch,
            quality=Quality.OK,
            replicas=tuple(self._replica(pod, start_s, duration_s) for pod in pods),
        )

    def _replica(self, pod: Pod, start_s: float, duration_s: float) -> ReplicaTelemetry:
        engine = pod.engine
        before = self._before.get(pod.name, Counters())
        now = Counters(
            arrived=engine.requests_total + engine.outstanding,
            finished=engine.requests_total,
            prompt=engine.prompt_tokens_total,
            generated=engine.generation_tokens_total,
            ttft=(engine.ttft.count, engine.ttft.sum),
            itl=(engine.itl.count, engine.itl.sum),
        )
        self._before[pod.name] = now
        finished, started = now.finished - before.finished, now.ttft[0] - before.ttft[0]
        ready_s = ORIGIN_S + (pod.ready_at_s or 0.0)
        return ReplicaTelemetry(
            replica=pod.name,
            accelerator="H100",
            max_batch=engine.max_batch,
            warming_up=ready_s > start_s,
            offered_rate_rps=(now.arrived - before.arrived) / duration_s,
            completed_rate_rps=finished / duration_s,
            input_tokens=(now.prompt - before.prompt) / started if started else None,
            output_tokens=max(1.0, (now.generated - before.generated) / finished) if finished else None,
            ttft=_mean(before.ttft, now.ttft),
            itl=_mean(before.itl, now.itl),
            running=engine.running,
            waiting=len(engine.waiting),
        )


def _mean(before: tuple[int, float], now: tuple[int, float]) -> Latency | None:
    count = now[0] - before[0]
    return Latency(count=count, mean_s=(now[1] - before[1]) / count) if count else None


def declared(parameters: dict[str, float] | None) -> FleetDeclared:
    """The fleet as the tuner knows it."""
    known = None if parameters is None else LawParameters(values=parameters)
    return FleetDeclared(
        declared_at_s=0,
        revision="1",
        accelerators=(Accelerator(name="H100", type="H100", cost_per_hour=1),),
        models=(
            Model(
                name="m",
                profiles=(ModelProfile(accelerator="H100", max_batch=MAX_BATCH, parameters=known),),
            ),
        ),
        service_classes=(),
        servers=(),
    )


class Loop:
    """A fleet and the tuner's core beside it; `published` has what was in force after each cycle."""

    def __init__(
        self, simulated: Fleet, prior: dict[str, float] | None = WRONG, setup: Setup = SETUP
    ) -> None:
        self.scraper, self.setup = Scraper(simulated), setup
        self.state, outputs = step(State(), (), declared(prior), ORIGIN_S, setup)
        self.in_force = outputs.parameters[0] if outputs.parameters else None
        self.published: list[ParametersEstimated | None] = []
        self.windows: list[TelemetryObserved] = []

    def run(self, cycles: int) -> "Loop":
        """So many windows, one after the other."""
        for _ in range(cycles):
            window = self.scraper.next_window()
            self.state, outputs = step(self.state, [window], None, window.window_end_s, self.setup)
            self.in_force = outputs.parameters[0] if outputs.parameters else self.in_force
            self.published.append(self.in_force)
            self.windows.append(window)
        return self

    @property
    def pair(self) -> Any:
        """The estimator's own state."""
        return self.state.pairs["m", "H100"].estimator


def feasible(values: dict[str, float], input_tokens: float = 500.0, output_tokens: float = 200.0) -> bool:
    """Whether some rate keeps a mean TTFT of 250 ms and a mean ITL of 30 ms: easily, for every engine here."""
    server = ServerModel(
        LAW,
        np.array([values[name] for name in LAW.parameter_names]),
        Workload(input_tokens, output_tokens),
        Limits(float(MAX_BATCH), 128.0),
    )
    return bool(CorrectedModel().max_rate(server, Targets(ttft_s=0.25, itl_s=0.03)).feasible)
