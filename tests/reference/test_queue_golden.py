"""The compat model against recorded analyses, sizings and batch limits of the reference system.

The model keeps the reference's roundings in its order, so numbers agree to one conversion between units.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw, chunk_counts
from services.perfmodel.queueing import ServerModel, Targets
from services.perfmodel.queueing_models.birth_death_compat import BirthDeathCompatModel
from services.perfmodel.queueing_models.chain import Chain

MODEL = BirthDeathCompatModel()
LAW = ThreeParameterLaw()
DEFAULT_BUDGET = 8192
MS = 1e-3
# A few roundings to single precision.
EXACT = 2e-7


def cases(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "queue-golden" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found: list[dict[str, Any]] = json.loads(path.read_text())["cases"]
    return found


def server(given: dict[str, Any]) -> ServerModel:
    return ServerModel(
        LAW,
        MS * np.array([given["alpha"], given["beta"], given["gamma"]]),
        Workload(given["avgInputTokens"], given["avgOutputTokens"]),
        Limits(given["maxBatchSize"], given["maxQueueSize"], given["maxNumTokens"] or DEFAULT_BUDGET),
    )


def targets(given: dict[str, float]) -> Targets:
    """In the reference's form zero is no target."""
    return Targets(MS * given["TTFT"] or None, MS * given["ITL"] or None, given["TPS"] or None)


def test_chunk_counts_and_service_rates_agree(reference_data: Path) -> None:
    for case in cases(reference_data, "primitives"):
        one = server(case["input"])
        batch = np.arange(1, len(case["numChunks"]))
        chunks = chunk_counts(batch, one.workload, one.limits.token_budget)
        np.testing.assert_array_equal(chunks, case["numChunks"][1:], err_msg=case["input"]["label"])
        for row in case["rows"]:
            question = (one.parameters, float(row["B"]), one.workload, one.limits.token_budget)
            assert float(LAW.iteration_time(*question)) == pytest.approx(MS * row["tIter"], rel=1e-6)
            assert float(LAW.prefill_time(*question)) == pytest.approx(MS * row["prefill"], rel=1e-6)
            assert float(LAW.inter_token_time(*question)) == pytest.approx(MS * row["itl"], rel=1e-6)


def test_analyses_agree_and_fail_where_the_reference_fails(reference_data: Path) -> None:
    compared = failed = 0
    for case in cases(reference_data, "analyze"):
        name = f"{case['input']['label']} at {case.get('requestRate')}"
        if case.get("error") or case.get("constructError"):
            with pytest.raises(ValueError, match=r"max_batch|token_budget|output_tokens|rate_rps"):
                MODEL.analyze(server(case["input"]), case.get("requestRate", 1.0))
            failed += 1
            continue
        actual, expected = MODEL.analyze(server(case["input"]), case["requestRate"]), case["metrics"]
        ttft, itl, wait = (float(time.mean) for time in (actual.ttft_s, actual.itl_s, actual.wait_s))
        for value, key, unit in (
            (actual.throughput_rps, "Throughput", 1.0),
            (actual.occupancy, "AvgNumInServ", 1.0),
            (actual.end_to_end_s.mean, "AvgRespTime", MS),
            (wait, "AvgWaitTime", MS),
            (itl, "AvgTokenTime", MS),
            (ttft, "AvgTTFT", MS),
            (0.999 * actual.capacity_rps, "MaxRate", 1.0),
        ):
            assert float(value) == pytest.approx(unit * expected[key], rel=EXACT, abs=1e-12), (
                f"{key} of {name}"
            )
        # A prefill is what is left of a TTFT in single precision.
        prefill = pytest.approx(MS * expected["AvgPrefillTime"], abs=EXACT * ttft)
        assert ttft - wait - itl == prefill, f"prefill of {name}"
        compared += 1
    assert compared > 100 and failed > 5


def test_sizings_agree_and_fail_where_the_reference_fails(reference_data: Path) -> None:
    compared = failed = 0
    for case in cases(reference_data, "size"):
        given, name = case["target"], f"{case['input']['label']}, {case['kind']}"
        if min(given.values()) < 0:
            with pytest.raises(ValueError, match="ttft_s"):
                targets(given)
            continue
        one = server(case["input"])
        sizing = MODEL.max_rate(one, targets(given))
        assert bool(sizing.feasible) == (case["error"] is None), name
        if case["error"]:
            failed += 1
            continue
        assert float(sizing.max_rate_rps) == pytest.approx(case["metrics"]["OfferedRate"], rel=EXACT), name
        for key in ("TTFT", "ITL", "TPS"):
            alone = MODEL.max_rate(one, targets({"TTFT": 0, "ITL": 0, "TPS": 0, key: given[key]}))
            assert float(alone.max_rate_rps) == pytest.approx(case["targetRate"][key], rel=EXACT), (
                f"{key}, {name}"
            )
        at = MODEL.analyze(one, sizing.max_rate_rps)
        achieved = case["achieved"]
        assert float(at.ttft_s.mean) == pytest.approx(MS * achieved["TTFT"], rel=EXACT), name
        assert float(at.itl_s.mean) == pytest.approx(MS * achieved["ITL"], rel=EXACT), name
        tokens = float(at.throughput_rps) * case["input"]["avgOutputTokens"]
        assert tokens == pytest.approx(achieved["TPS"], rel=EXACT), name
        compared += 1
    assert compared > 100 and failed > 20


def test_one_sizing_of_all_servers_is_the_sizings_one_by_one(reference_data: Path) -> None:
    some = [case for case in cases(reference_data, "size") if case["kind"] == "both"]
    inputs = {
        key: np.array([case["input"][key] for case in some], float)
        for key in some[0]["input"]
        if key != "label"
    }
    inputs["maxNumTokens"] = np.where(inputs["maxNumTokens"] > 0, inputs["maxNumTokens"], DEFAULT_BUDGET)
    together = ServerModel(
        LAW,
        MS * np.stack([inputs[key] for key in ("alpha", "beta", "gamma")], axis=-1),
        Workload(inputs["avgInputTokens"], inputs["avgOutputTokens"]),
        Limits(inputs["maxBatchSize"], inputs["maxQueueSize"], inputs["maxNumTokens"]),
    )
    sizing = MODEL.max_rate(
        together,
        Targets(*(MS * np.array([case["target"][key] for case in some]) for key in ("TTFT", "ITL"))),
    )
    for index, case in enumerate(some):
        alone = MODEL.max_rate(server(case["input"]), targets(case["target"]))
        assert sizing.feasible[index] == alone.feasible
        assert sizing.max_rate_rps[index] == pytest.approx(float(alone.max_rate_rps), rel=1e-8)


def test_batch_limits_agree(reference_data: Path) -> None:
    for case in cases(reference_data, "optimal_concurrency"):
        found = MODEL.concurrency(server(case["input"]), targets(case["target"]))
        assert int(found) == case["result"]["Concurrency"], case["input"]["label"]


def test_chains_with_any_service_rates_agree(reference_data: Path) -> None:
    shapes = {
        "affine": lambda n: n / (1 + 0.5 * n),
        "const": lambda n: np.full(n.shape, 1.5),
        "huge": lambda n: 1e-30 * n,
        "linear": lambda n: 0.7 * n,
    }
    compared = 0
    for case in cases(reference_data, "mm1_state_dependent"):
        expected = case["model"]
        # Its throughput is λ(1 − p) in single precision, without digits left at a million times capacity.
        if not expected["isValid"] or case["factor"] > 100:
            continue
        number = np.arange(1.0, case["N"] + 1)
        rates = np.array(case["servRate"], float) if "servRate" in case else shapes[case["shape"]](number)
        chain = Chain.from_rates(
            rates[None, :], np.array([float(case["N"])]), np.array([float(case["K"] - case["N"])])
        )
        found = chain.found_at(np.array([case["lambda"]]), np.zeros(1, dtype=np.intp))
        throughput = found.throughput[0]
        service = found.mean((number / rates)[None, :])[0]
        wait = found.queued_before[0] / rates[-1]
        name = f"{case['shape']} N={case['N']} K={case['K']} λ={case['lambda']}"
        assert throughput == pytest.approx(expected["throughput"], rel=1e-4), name
        assert throughput * service == pytest.approx(expected["avgNumInServers"], rel=1e-4), name
        assert service + wait == pytest.approx(expected["avgRespTime"], rel=1e-4), name
        assert abs(wait - expected["avgWaitTime"]) <= 1e-5 * expected["avgRespTime"], name
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("rate", [np.inf, np.nan, -1.0])
def test_rates_on_which_the_reference_never_returns_are_refused(rate: float) -> None:
    one = ServerModel(LAW, np.array([0.008, 1e-5, 1e-7]), Workload(128, 128), Limits(8, 8))
    with pytest.raises(ValueError, match="rate_rps"):
        MODEL.analyze(one, rate)


def test_parameters_on_which_the_reference_never_returns_are_refused() -> None:
    with pytest.raises(ValueError, match="parameters of three-parameter"):
        ServerModel(LAW, np.zeros(3), Workload(128, 128), Limits(8, 8))
