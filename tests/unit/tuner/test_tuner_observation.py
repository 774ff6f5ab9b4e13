"""Which measurements become observations."""

from typing import Any

import pytest

from schemas.base import Quality
from schemas.fleet import ModelProfile
from schemas.telemetry import Latency, ReplicaTelemetry, TelemetryObserved
from services.tuner.observation import Excluded, Observation, observations
from services.tuner.settings import ObservationSettings

PROFILES = {"A100": ModelProfile(accelerator="A100", max_batch=64, token_budget=4096)}


def replica(**changed: Any) -> ReplicaTelemetry:
    figures: dict[str, Any] = {
        "replica": "r0",
        "accelerator": "A100",
        "offered_rate_rps": 1.0,
        "completed_rate_rps": 1.0,
        "input_tokens": 1000,
        "output_tokens": 200,
        "ttft": Latency(count=60, mean_s=0.05),
        "itl": Latency(count=12_000, mean_s=0.012),
        "running": 3,
        "waiting": 0,
    }
    return ReplicaTelemetry(**(figures | changed))


def window(*replicas: ReplicaTelemetry, **changed: Any) -> TelemetryObserved:
    figures: dict[str, Any] = {
        "server": "s",
        "model": "m",
        "window_start_s": 1000,
        "window_end_s": 1060,
        "quality": Quality.OK,
        "replicas": replicas,
    }
    return TelemetryObserved(**(figures | changed))


def the_one(telemetry: TelemetryObserved) -> Observation:
    found, excluded = observations(telemetry, PROFILES, ObservationSettings())
    assert not excluded
    assert [accelerator for accelerator, _ in found] == ["A100"]
    return found[0][1]


def why_not(telemetry: TelemetryObserved, previous_epoch: str | None = None) -> dict[Excluded, int]:
    found, excluded = observations(telemetry, PROFILES, ObservationSettings(), previous_epoch)
    assert not found
    return dict(excluded)


def test_a_healthy_window_becomes_one_observation_with_the_limits_of_its_profile() -> None:
    seen = the_one(window(replica()))
    assert (seen.rate_rps, seen.ttft_s, seen.itl_s, seen.saturated) == (1.0, 0.05, 0.012, False)
    assert (seen.max_batch, seen.token_budget) == (64, 4096)
    assert seen.served_rps == 1.0


def test_the_batch_limit_that_the_replica_reports_beats_that_of_its_profile() -> None:
    assert the_one(window(replica(max_batch=8))).max_batch == 8


def test_evidence_is_counted_by_request_and_not_by_token() -> None:
    assert the_one(window(replica())).requests == 60


def test_what_a_replica_does_not_tell_of_its_tokens_is_taken_from_its_server() -> None:
    silent = replica(input_tokens=None, output_tokens=None)
    seen = the_one(window(silent, input_tokens=900, output_tokens=100))
    assert (seen.input_tokens, seen.output_tokens) == (900, 100)


def test_without_an_offered_rate_the_completed_one_is_used() -> None:
    assert the_one(window(replica(offered_rate_rps=None, completed_rate_rps=0.5))).rate_rps == 0.5


def test_a_partial_window_still_teaches_through_the_replicas_that_report() -> None:
    assert the_one(window(replica(), quality=Quality.PARTIAL)).rate_rps == 1.0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"warming_up": True}, Excluded.WARMING_UP),
        ({"quality": Quality.PARTIAL}, Excluded.QUALITY),
        ({"quality": Quality.STALE}, Excluded.QUALITY),
        ({"itl": None}, Excluded.INCOMPLETE),
        ({"offered_rate_rps": None, "completed_rate_rps": None}, Excluded.INCOMPLETE),
        ({"output_tokens": None}, Excluded.INCOMPLETE),
        ({"ttft": Latency(count=2, mean_s=0.05)}, Excluded.TOO_FEW_REQUESTS),
        ({"completed_rate_rps": 0.0}, Excluded.TOO_FEW_REQUESTS),
        ({"itl": Latency(count=100, mean_s=0.0)}, Excluded.NOT_POSITIVE),
        ({"ttft": Latency(count=100, mean_s=0.0)}, Excluded.NOT_POSITIVE),
        ({"offered_rate_rps": 0.0}, Excluded.NOT_POSITIVE),
        ({"accelerator": "H100"}, Excluded.UNDECLARED),
    ],
)
def test_a_replica_that_teaches_nothing_is_left_out_for_a_reason(
    changed: dict[str, Any], reason: Excluded
) -> None:
    assert why_not(window(replica(**changed))) == {reason: 1}


@pytest.mark.parametrize("quality", [Quality.STALE, Quality.MISSING])
def test_a_window_of_bad_quality_is_left_out_whole(quality: Quality) -> None:
    assert why_not(window(replica(), replica(replica="r1"), quality=quality)) == {Excluded.QUALITY: 2}


def test_the_first_window_of_a_new_configuration_is_left_out() -> None:
    assert why_not(window(replica(), epoch="1"), previous_epoch="0") == {Excluded.EPOCH_CHANGED: 1}


@pytest.mark.parametrize(
    "overload",
    [{"waiting": 7}, {"waiting": None, "completed_rate_rps": 0.5}],
    ids=["a queue of a tenth of the batch", "half as many completed as offered"],
)
def test_a_saturated_replica_is_kept_without_its_time_to_first_token(overload: dict[str, Any]) -> None:
    seen = the_one(window(replica(**overload)))
    assert seen.saturated
    assert seen.ttft_s is None
    assert seen.itl_s == 0.012


def test_gaps_counted_by_token_measure_the_batch_whatever_the_count_of_requests() -> None:
    seen = the_one(window(replica(offered_rate_rps=0.5)))
    assert (seen.decoding, seen.decoding_measured) == (pytest.approx(12_000 * 0.012 / 60), True)
    by_request = the_one(window(replica(itl=Latency(count=60, mean_s=0.012))))
    assert (by_request.decoding, by_request.decoding_measured) == (pytest.approx(200 * 0.012), False)


def test_a_window_that_ends_at_another_load_than_it_had_is_left_out() -> None:
    assert why_not(window(replica(running=40))) == {Excluded.TRANSIENT: 1}


def test_one_waiting_request_hides_the_time_to_first_token_and_is_no_saturation() -> None:
    seen = the_one(window(replica(waiting=1)))
    assert (seen.ttft_s, seen.saturated) == (None, False)


def test_the_queue_of_the_server_counts_where_the_replica_does_not_tell_its_own() -> None:
    assert the_one(window(replica(waiting=None), waiting=10)).saturated


def test_a_few_arrivals_more_than_completions_are_chance() -> None:
    seen = the_one(window(replica(offered_rate_rps=0.2, completed_rate_rps=0.15)))
    assert not seen.saturated


def test_arrivals_that_outrun_completions_beside_an_empty_queue_are_a_ramp() -> None:
    seen = the_one(window(replica(waiting=0, completed_rate_rps=0.5)))
    assert (seen.saturated, seen.served_rps) == (False, 1.0)


def test_more_requests_than_places_hide_the_time_to_first_token_where_the_queue_is_unknown() -> None:
    seen = the_one(window(replica(waiting=None, ttft=Latency(count=60, mean_s=70.0))))
    assert (seen.ttft_s, seen.saturated) == (None, False)


def test_completions_missed_at_the_edges_of_the_window_change_nothing() -> None:
    seen = the_one(window(replica(completed_rate_rps=0.7)))
    assert seen.served_rps == 1.0
