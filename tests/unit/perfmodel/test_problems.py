"""Problems as people write them: told apart, refused by name, answered in their place and in their form."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.problems.answering import (
    CURVE_SHARES,
    Answer,
    Asking,
    Models,
    Outcome,
    Question,
    answer,
)
from services.perfmodel.problems.forms import Form, ProblemRefused, read
from services.perfmodel.problems.isolation import isolated
from services.perfmodel.queueing import QueueingModel, ServerModel, Targets
from services.perfmodel.queueing_models.birth_death import BirthDeathModel
from services.perfmodel.queueing_models.simulation import SimulationModel, SimulationSettings
from services.runtime import plugins

MODELS = Models(partial(plugins.build, "stoker.laws"), partial(plugins.build, "stoker.queueing"))
OWN: dict[str, Any] = {
    "parameters": {"alpha_s": 0.012, "beta_s": 5e-5, "gamma_s": 5e-7},
    "input_tokens": 128,
    "output_tokens": 512,
    "max_batch": 48,
    "max_queue": 128,
    "rate_rps": 3,
    "targets": {"ttft_s": 0.5, "itl_s": 0.02},
}
REFERENCE: dict[str, Any] = {
    "RPS": 3.0,
    "maxBatchSize": 48,
    "AvgInputTokens": 128,
    "AvgOutputTokens": 512,
    "alpha": 12,
    "beta": 0.05,
    "gamma": 0.0005,
    "maxQueueSize": 128,
    "targetTTFT": 500.0,
    "targetITL": 20.0,
}
SEVEN = {
    "law": "seven-parameter",
    "parameters": {
        "a_s": 0.007,
        "b_p_s": 4e-5,
        "b_d_s": 1e-5,
        "g_s": 1e-7,
        "q_s": 1e-9,
        "h_s": 0.01,
        "r": 0.6,
    },
}
EVERY = pytest.mark.parametrize("question", list(Question))


def short_runs(name: str) -> QueueingModel:
    """A queueing model; the simulation with runs that are long enough to order its percentiles."""
    if name == "simulation":
        return SimulationModel(SimulationSettings(requests=500))
    model: QueueingModel = MODELS.queueing(name)
    return model


def ask(question: Question, *raws: Any, **how: Any) -> list[Answer]:
    return answer(question, raws, MODELS, Asking(**how))


def body(question: Question, raw: Any, **how: Any) -> dict[str, Any]:
    (found,) = ask(question, raw, **how)
    return found.body


def test_an_analysis_is_what_the_model_says() -> None:
    server = ServerModel(
        ThreeParameterLaw(), np.array([0.012, 5e-5, 5e-7]), Workload(128.0, 512.0), Limits(48, 128)
    )
    metrics = BirthDeathModel().analyze(server, 3.0)
    said = body(Question.ANALYZE, OWN)
    assert said["wait_s"]["mean"] == pytest.approx(float(metrics.wait_s.mean), rel=1e-12)
    assert said["ttft_s"] == {"mean": pytest.approx(float(metrics.ttft_s.mean), rel=1e-12)}
    assert said["capacity_rps"] == pytest.approx(float(metrics.capacity_rps), rel=1e-12)
    assert (said["overloaded"], said["saturation"]) == (False, "none")
    sizing = BirthDeathModel().max_rate(server, Targets(0.5, 0.02))
    assert body(Question.SIZE, OWN)["max_rate_rps"] == pytest.approx(float(sizing.max_rate_rps), rel=1e-12)


@pytest.mark.parametrize("model", ["fluid", "birth-death", "birth-death-compat", "corrected"])
def test_both_forms_of_one_problem_have_one_answer(model: str) -> None:
    ours, theirs = (body(Question.ANALYZE, one, model=model) for one in (OWN, REFERENCE))
    assert theirs["throughput"] == pytest.approx(ours["throughput_rps"], rel=1e-9)
    assert theirs["avgNumInServ"] == pytest.approx(ours["occupancy"], rel=1e-9)
    for key, name in (
        ("avgTTFT", "ttft_s"),
        ("avgITL", "itl_s"),
        ("avgWaitTime", "wait_s"),
        ("avgRespTime", "end_to_end_s"),
    ):
        assert theirs[key] == pytest.approx(1e3 * ours[name]["mean"], rel=1e-9), key
    ours, theirs = (body(Question.SIZE, one, model=model) for one in (OWN, REFERENCE))
    assert theirs["offeredRPS"] == pytest.approx(ours["max_rate_rps"], rel=1e-9)
    assert theirs["offeredRPS"] <= min(theirs["RPSTargetTTFT"], theirs["RPSTargetITL"]) * (1 + 1e-9)
    ours, theirs = (body(Question.CONCURRENCY, one, model=model) for one in (OWN, REFERENCE))
    assert theirs["concurrency"] == ours["max_batch"]


def test_the_rate_of_a_sizing_asked_again_has_the_latencies_that_were_wanted() -> None:
    sized = body(Question.SIZE, OWN)
    again = body(Question.ANALYZE, {**OWN, "rate_rps": sized["max_rate_rps"]})
    wanted = OWN["targets"][f"{sized['binding']}_s"]
    # Rates are found to 1e-10; the time at them moves a little faster than the rate.
    assert again[f"{sized['binding']}_s"]["mean"] == pytest.approx(wanted, rel=1e-7)
    assert again == {key: again[key] for key in ("model", "law")} | sized["at_max_rate"]


def test_a_batch_limit_asked_again_carries_the_rate_that_was_told() -> None:
    limit = body(Question.CONCURRENCY, {**OWN, "max_batch": 256})
    again = body(Question.SIZE, {**OWN, "max_batch": limit["max_batch"]})
    assert again["max_rate_rps"] == pytest.approx(limit["max_rate_rps"], rel=1e-9)


@pytest.mark.parametrize("model", ["corrected", "interference", "simulation"])
def test_percentiles_are_told_and_bounded_where_the_model_has_them(model: str) -> None:
    raw = {
        **OWN,
        "output_tokens_sq": 2 * 512.0**2,
        "targets": {"itl_s": 0.025, "statistic": "p95"},
        "model": model,
    }
    (found,) = answer(Question.ANALYZE, [raw], Models(MODELS.law, short_runs), Asking())
    said = found.body
    for name in ("wait_s", "ttft_s", "itl_s", "end_to_end_s"):
        times = said[name]
        assert times["p50"] <= times["p90"] <= times["p95"] <= times["p99"], name
    if model != "simulation":
        sized = body(Question.SIZE, raw)
        # Percentiles are found to 1e-7, and rates by them to the same.
        assert sized["at_max_rate"]["itl_s"]["p95"] == pytest.approx(0.025, rel=1e-5)


def test_either_law_is_asked_by_its_own_parameters() -> None:
    assert body(Question.SIZE, {**OWN, **SEVEN})["law"] == "seven-parameter"
    said = body(Question.SIZE, {**OWN, "law": "seven-parameter"})["error"]
    assert "a_s is missing" in said and "alpha_s is foreign" in said


@EVERY
def test_a_list_is_answered_in_its_order_and_as_its_problems_one_by_one(question: Question) -> None:
    rng = np.random.default_rng(5)
    raws: list[Any] = []
    for place in range(24):
        raw = REFERENCE if place % 3 == 0 else {**OWN, **(SEVEN if place % 3 == 1 else {})}
        tokens = "AvgInputTokens" if place % 3 == 0 else "input_tokens"
        raws.append({**raw, tokens: float(rng.uniform(10, 3000))})
    raws[5] = {**OWN, "targets": {"ttft_s": 1e-6}}
    raws[9] = {**OWN, "max_batch": 0}
    raws[11] = {**OWN, "parameters": {"alpha_s": 0, "beta_s": 0, "gamma_s": 0}}
    raws[17] = {**OWN, "model": "corrected", "kv_tokens": 9000}
    for found, raw in zip(ask(question, *raws), raws, strict=True):
        (alone,) = ask(question, raw)
        assert found.outcome is alone.outcome
        assert _rounded(found.body) == _rounded(alone.body)


def _rounded(value: Any) -> Any:
    """Rates are found to 1e-10, so a list and its parts may differ by that, and times at them by a little more."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return pytest.approx(value, rel=1e-7, abs=1e-12) if isinstance(value, float) else value


@dataclass
class Counting:
    """Hands out a model and counts how often it is asked for a largest rate."""

    servers: list[int] = field(default_factory=list)

    def build(self, name: str) -> Any:
        counted = BirthDeathModel()
        servers = self.servers

        class Model(BirthDeathModel):
            def max_rate(self, server: ServerModel, *rest: Any) -> Any:
                servers.append(server.shape[0])
                return counted.max_rate(server, *rest)

        return Model()


def test_problems_of_one_kind_go_to_their_model_in_one_call() -> None:
    counting = Counting()
    models = Models(MODELS.law, counting.build)
    raws = [{**OWN, "input_tokens": float(tokens)} for tokens in range(100, 400)]
    answers = answer(Question.SIZE, raws, models, Asking())
    assert counting.servers == [300]
    assert all(one.outcome is Outcome.ANSWERED for one in answers)


def test_progress_counts_every_problem_once() -> None:
    told: list[int] = []
    ask(Question.SIZE, *[OWN] * 10, {}, progress=told.append, problems_per_call=4)
    assert sum(told) == 11
    assert max(told) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_batch": 0}, ("max_batch", "greater than or equal to 1", "got 0")),
        ({"max_batch": 2.5}, ("max_batch", "2.5")),
        ({"max_batch": "8"}, ("max_batch", "whole number", "'8'")),
        ({"max_batch": True}, ("max_batch", "whole number", "True")),
        ({"output_tokens": 0.5}, ("output_tokens", "greater than or equal to 1", "0.5")),
        ({"rate_rps": -1}, ("rate_rps", "greater than or equal to 0", "-1")),
        ({"rate_rps": float("inf")}, ("rate_rps", "inf")),
        ({"rate_rps": "3"}, ("rate_rps", "valid number", "'3'")),
        ({"rate_rps": 10**400}, ("rate_rps",)),
        ({"rate_rps": None}, ("rate_rps", "required")),
        ({"ttft_ms": 3}, ("ttft_ms", "is no field", "3")),
        ({"two\nlines" * 100: 3}, ("'two\\nlines", "...", "is no field")),
        ({"parameters": {**OWN["parameters"], "x\n" * 200: 1}}, ("'x\\n", "is foreign")),
        ({"targets": {"ttft_s": 0}}, ("targets.ttft_s", "greater than 0", "got 0")),
        ({"targets": {"statistic": "p42"}}, ("targets.statistic", "'p95'", "p42")),
        ({"output_tokens_sq": 3}, ("output_tokens_sq", "262144", "3")),
        ({"cached_share": 1}, ("cached_share", "less than 1", "got 1")),
        ({"parameters": {"alpha_s": 1}}, ("parameters", "beta_s is missing", "gamma_s is missing")),
        ({"parameters": {**OWN["parameters"], "beta_s": -1}}, ("parameters.beta_s", "-1")),
        ({"law": "newton"}, ("laws", "newton", "seven-parameter")),
        ({"model": "oracle"}, ("queueing", "oracle", "birth-death")),
        ({"targets": {"ttft_s": 1, "statistic": "p95"}, "x": 1}, ("x", "is no field")),
    ],
)
def test_a_bad_figure_is_refused_with_its_field_its_value_and_what_was_expected(
    change: dict[str, Any], named: tuple[str, ...]
) -> None:
    (found,) = ask(Question.ANALYZE, {**OWN, **change})
    assert found.outcome is Outcome.REFUSED
    assert list(found.body) == ["error"]
    assert "\n" not in found.body["error"] and len(found.body["error"]) < 1000
    for part in named:
        assert part in found.body["error"], found.body


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"maxBatchSize": 0}, ("maxBatchSize", "got 0")),
        ({"targetttft": -1}, ("targetTTFT",)),
        ({"Alpha": 3}, ("alpha", "once", "'Alpha'")),
        ({"law": "three-parameter"}, ("law", "is no field")),
        ({"RPS": None}, ("RPS", "required")),
    ],
)
def test_a_bad_figure_in_the_reference_form_is_named_by_the_key_of_the_reference(
    change: dict[str, Any], named: tuple[str, ...]
) -> None:
    said = body(Question.ANALYZE, {**REFERENCE, **change})["error"]
    for part in named:
        assert part in said, said


def test_a_statistic_that_a_model_has_not_is_refused_with_those_it_has() -> None:
    raw = {**OWN, "targets": {"ttft_s": 1, "statistic": "p95"}}
    assert "supported: mean" in body(Question.SIZE, raw)["error"]


@EVERY
def test_what_cannot_be_met_is_infeasible_and_told_in_its_form(question: Question) -> None:
    impossible = (
        {**OWN, "targets": {"itl_s": 1e-6}},
        {**REFERENCE, "targetITL": 1e-3},
    )
    ours, theirs = ask(question, *impossible)
    if question is Question.ANALYZE:
        assert (ours.outcome, theirs.outcome) == (Outcome.ANSWERED, Outcome.ANSWERED)
        return
    assert (ours.outcome, theirs.outcome) == (Outcome.INFEASIBLE, Outcome.INFEASIBLE)
    assert (ours.body["feasible"], ours.body["max_rate_rps"], ours.body["binding"]) == (False, 0.0, "itl")
    if question is Question.SIZE:
        assert "targetITL" in theirs.body["error"] and "0.001 ms" in theirs.body["error"]
    else:
        assert (theirs.body["concurrency"], theirs.body["feasible"]) == (0, False)


@EVERY
@pytest.mark.parametrize("raw", [OWN, REFERENCE], ids=["own", "reference"])
def test_a_curve_goes_from_five_percent_of_the_capacity_to_all_of_it(
    question: Question, raw: dict[str, Any]
) -> None:
    points = body(question, raw, curve=True)["curve"]
    rate, capacity, served = (
        ("offered_rps", "capacity_rps", "throughput_rps")
        if raw is OWN
        else ("offeredRPS", "maxRPS", "throughput")
    )
    shares = [point[rate] / point[capacity] for point in points]
    assert shares == pytest.approx(CURVE_SHARES.tolist(), rel=1e-9)
    assert np.all(np.diff([point[served] for point in points]) > 0)


def test_a_curve_needs_no_rate() -> None:
    without = {key: value for key, value in OWN.items() if key != "rate_rps"}
    assert len(body(Question.ANALYZE, without, curve=True)["curve"]) == CURVE_SHARES.size
    assert "rate_rps" in body(Question.ANALYZE, without)["error"]


def test_the_keys_tell_the_form_whatever_their_case() -> None:
    assert read(OWN).form is Form.OWN
    for change in (str, str.upper, str.lower):
        posed = read({change(key): value for key, value in REFERENCE.items()})
        assert posed.form is Form.REFERENCE
        assert posed.problem == read(REFERENCE).problem


def test_a_token_budget_of_zero_is_the_default_of_the_reference_form_only() -> None:
    assert read({**REFERENCE, "maxNumTokens": 0}).problem.token_budget == 8192
    with pytest.raises(ProblemRefused, match="token_budget"):
        read({**OWN, "token_budget": 0})


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@EVERY
@given(
    base=st.sampled_from([OWN, REFERENCE]),
    key=st.sampled_from([*OWN, *REFERENCE, "law", "model", "kv_tokens", "tolerance", "label"]),
    value=ANY_JSON,
)
@settings(max_examples=80)
def test_whatever_a_field_holds_there_is_an_answer_or_an_error_that_is_one_line(
    question: Question, base: dict[str, Any], key: str, value: Any
) -> None:
    if key in ("max_batch", "maxBatchSize") and isinstance(value, int | float) and value > 512:
        value = 512  # A search over every batch limit of a million is right and long.
    good, bad = ask(question, base, {**base, key: value})
    assert good.outcome is Outcome.ANSWERED
    if bad.outcome is Outcome.REFUSED:
        assert "\n" not in bad.body["error"] and 0 < len(bad.body["error"]) < 1000


@given(bad=st.sets(st.integers(0, 30)), size=st.integers(0, 31))
def test_one_that_is_refused_costs_the_others_nothing(bad: set[int], size: int) -> None:
    def refuse(items: Any) -> list[str]:
        if wrong := [item for item in items if item in bad]:
            raise ValueError(f"{wrong[0]} is bad")
        return [f"{item} is good" for item in items]

    reason: Callable[[str], str] = str
    assert isolated(range(size), refuse, reason) == [
        f"{item} is {'bad' if item in bad else 'good'}" for item in range(size)
    ]


def simulated(**changes: Any) -> dict[str, Any]:
    models = Models(MODELS.law, lambda name: SimulationModel(SimulationSettings(requests=200)))
    (one,) = answer(Question.ANALYZE, [{**OWN, "model": "simulation", **changes}], models, Asking())
    return one.body


def test_the_simulation_knows_the_capacity_of_a_batch_larger_than_its_runs() -> None:
    # All requests of a run used to enter at once and end at once, which is no rate.
    found = simulated(max_batch=400, input_tokens=0, output_tokens=10)
    exact = body(Question.ANALYZE, {**OWN, "max_batch": 400, "input_tokens": 0, "output_tokens": 10})
    assert found["capacity_rps"] == pytest.approx(exact["capacity_rps"], rel=0.2)


def test_the_simulation_refuses_a_memory_that_holds_none_of_the_requests() -> None:
    assert "the KV memory or the queue is too small" in simulated(kv_tokens=64)["error"]


def test_the_reference_is_not_followed_through_a_waiting_room_without_end() -> None:
    found = body(Question.ANALYZE, {**OWN, "model": "birth-death-compat", "max_queue": 1_000_000_000})
    assert "max_batch + max_queue must be at most 2,000,000" in found["error"]


def test_the_waiting_rooms_of_the_reference_count_in_what_a_request_may_ask() -> None:
    asking = Asking(most_batch_sizes=1000)
    large = {**OWN, "max_queue": 900}
    chained, closed = (
        [one.body for one in answer(Question.SIZE, [{**large, "model": name}] * 2, MODELS, asking)]
        for name in ("birth-death-compat", "birth-death")
    )
    assert "error" not in chained[0]
    assert chained[1]["error"] == (
        "max_batch + max_queue: the problems of a request may add up to 52 more, got 948"
    )
    assert all("error" not in one for one in closed)
