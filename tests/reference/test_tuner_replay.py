"""Observations of published control-loop runs whose true parameters are known, through the built-in estimator.

The published engine sends the first token with the iteration after the prefill (ttft_iterations = 1), and its
inter-token latency is about one sequence's decode work above the law's, which α absorbs: 1.2 of 8 ms for
granite, 0.8 of 12 ms for llama. The bounds hold that bias and a margin; they start after three cycles.
"""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from schemas.base import Quality
from schemas.fleet import Accelerator, FleetDeclared, LawParameters, Model, ModelProfile
from schemas.parameters import ParametersEstimated
from schemas.telemetry import Latency, ReplicaTelemetry, TelemetryObserved
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.tuner.core import Setup, State, step
from services.tuner.estimators.map_window import MapWindow, MapWindowSettings
from services.tuner.settings import TunerSettings

TRUTH = {
    "qa-granite": {"alpha_s": 8e-3, "beta_s": 16e-6, "gamma_s": 5e-7},
    "qa-llama": {"alpha_s": 12e-3, "beta_s": 24e-6, "gamma_s": 7.5e-7},
}
CYCLE_S = 30.0
SETUP = Setup(
    MapWindow(MapWindowSettings(ttft_iterations=1)), {"three-parameter": ThreeParameterLaw()}, TunerSettings()
)


def fleet(server: str, seed: dict[str, float] | None) -> FleetDeclared:
    parameters = None if seed is None else LawParameters(values=seed)
    profile = ModelProfile(accelerator="H100", max_batch=128, parameters=parameters)
    return FleetDeclared(
        declared_at_s=0,
        revision="1",
        accelerators=(Accelerator(name="H100", type="H100", cost_per_hour=75),),
        models=(Model(name=server, profiles=(profile,)),),
        service_classes=(),
        servers=(),
    )


def cycles(data: Path, run: str, server: str) -> list[TelemetryObserved]:
    """One message per cycle; the log has a rate per replica and no counts, which follow from it."""
    with (data / "control-logs" / "replica_observations.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["log"], row["server"]) == (run, server)]
    found = []
    for sequence, group in itertools.groupby(rows, key=lambda row: int(row["collect_seq"])):
        replicas = []
        for row in group:
            rate = float(row["arrival_rpm"]) / 60
            count = rate * 60.0
            replicas.append(
                ReplicaTelemetry(
                    replica=row["pod"],
                    accelerator="H100",
                    max_batch=int(row["max_batch"]),
                    offered_rate_rps=rate,
                    input_tokens=float(row["in_tok"]),
                    output_tokens=float(row["out_tok"]),
                    ttft=Latency(count=count, mean_s=float(row["ttft_ms"]) / 1000),
                    itl=Latency(count=count, mean_s=float(row["itl_ms"]) / 1000),
                )
            )
        end_s = 1e9 + sequence * CYCLE_S
        found.append(
            TelemetryObserved(
                server=server,
                model=server,
                window_start_s=end_s - CYCLE_S,
                window_end_s=end_s,
                quality=Quality.OK,
                replicas=tuple(replicas),
            )
        )
    return found


def replay(
    data: Path, run: str, server: str, seed: dict[str, float] | None
) -> list[ParametersEstimated | None]:
    """What was in force after each cycle."""
    state, _ = step(State(), (), fleet(server, seed), 0.0, SETUP)
    in_force: list[ParametersEstimated | None] = []
    for message in cycles(data, run, server):
        state, outputs = step(state, [message], None, message.window_end_s, SETUP)
        newest = in_force[-1] if in_force else None
        in_force.append(outputs.parameters[0] if outputs.parameters else newest)
    return in_force


@pytest.mark.parametrize("run", ["run7b", "run9", "run11"])
@pytest.mark.parametrize("server", list(TRUTH))
@pytest.mark.parametrize("known", [False, True], ids=["without a prior", "from the truth"])
def test_the_parameters_of_a_published_run_are_found_after_three_cycles(
    reference_data: Path, run: str, server: str, known: bool
) -> None:
    truth = TRUTH[server]
    in_force = replay(reference_data, run, server, truth if known else None)
    assert len(in_force) > 40
    after = [estimate for estimate in in_force[3:] if estimate is not None]
    assert len(after) >= len(in_force) - 6
    error = {
        name: np.array([abs(estimate.values[name] / true - 1) for estimate in after])
        for name, true in truth.items()
    }
    assert error["alpha_s"].max() < 0.20
    assert error["beta_s"].max() < 0.13
    # The two young llama pairs see a narrow range of batches at first.
    assert error["gamma_s"].max() < 0.35
    assert np.median(error["gamma_s"]) < 0.06


@pytest.mark.parametrize("run", ["run7b", "run9", "run11"])
@pytest.mark.parametrize("server", list(TRUTH))
def test_a_wrong_prior_is_left_behind_by_the_end_of_a_published_run(
    reference_data: Path, run: str, server: str
) -> None:
    truth = TRUTH[server]
    seed = {
        "alpha_s": truth["alpha_s"] * 1.5,
        "beta_s": truth["beta_s"] * 0.7,
        "gamma_s": truth["gamma_s"] * 0.7,
    }
    last = replay(reference_data, run, server, seed)[-1]
    assert last is not None
    assert abs(last.values["alpha_s"] / truth["alpha_s"] - 1) < 0.20
    assert abs(last.values["beta_s"] / truth["beta_s"] - 1) < 0.10
    assert abs(last.values["gamma_s"] / truth["gamma_s"] - 1) < 0.10
