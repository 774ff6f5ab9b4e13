"""The simulated fleet over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from time import process_time
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientConnectorError, ClientSession
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from schemas.telemetry import TelemetryObserved
from services.simulator.exposition import render
from services.simulator.fleet import Fleet
from services.simulator.plant import Plant
from services.simulator.service import create_app, serving

ORIGIN_S = 1_700_000_000.0
SERVER = "meta-llama/Llama-3.1-8B"
TARGET = f"/servers/{quote(SERVER, safe='')}/variants/H100"


class HandClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.time_s = ORIGIN_S

    def now_s(self) -> float:
        return self.time_s


def new_fleet(rate_rps: float = 5.0) -> Fleet:
    description = {
        "accelerators": [{"type": "H100", "count": 4}],
        "servers": [
            {
                "name": SERVER,
                "model": 'a "quoted" model',
                "variants": [
                    {
                        "accelerator": "H100",
                        "accelerator_type": "H100",
                        "alpha_s": 0.008,
                        "beta_s": 1.6e-5,
                        "gamma_s": 5e-7,
                        "max_batch": 32,
                        "kv_tokens": 64_000,
                        "startup_s": {"median": 60.0, "p95": 90.0},
                    }
                ],
                "initial": [{"accelerator": "H100", "replicas": 2}],
                "arrivals": {
                    "kind": "generated",
                    "rate_rps": [[0.0, rate_rps]],
                    "input_tokens": {"mean": 500},
                    "output_tokens": {"mean": 100},
                },
            }
        ],
    }
    return Fleet(Plant.model_validate(description), origin_s=ORIGIN_S)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def client(clock: HandClock) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(create_app(new_fleet(), clock, tick_s=0.01))) as started:
        yield started


def samples(page: str) -> dict[tuple[str, str], float]:
    """Values by sample name and replica."""
    return {
        (sample.name, sample.labels.get("pod", "")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def inventory(client: TestClient[Any, Any]) -> dict[str, Any]:
    response = await client.get("/inventory")
    assert response.status == 200
    answer: dict[str, Any] = await response.json()
    return answer


async def test_an_answer_describes_the_fleet_at_the_time_of_the_clock(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    clock.time_s += 40.0
    view = await inventory(client)
    assert view["now_s"] == clock.time_s
    assert view["accelerators"] == [{"type": "H100", "total": 4, "free": 2}]
    (server,) = view["servers"]
    assert (server["name"], server["arrivals"]) == (SERVER, "generated")
    (variant,) = server["variants"]
    assert variant == {
        "accelerator": "H100",
        "accelerator_type": "H100",
        "units": 1,
        "desired": 2,
        "ready": 2,
        "pending": 0,
        "starting": 0,
        "terminating": 0,
        "max_batch": 32,
        "resource_version": 1,
    }
    assert server["replicas"][0] == {
        "name": "meta-llama-llama-3.1-8b-h100-1",
        "accelerator": "H100",
        "state": "ready",
        "created_at_s": ORIGIN_S,
        "ready_at_s": ORIGIN_S,
        "reason": "",
    }


async def test_a_put_scales_and_is_seen_starting_then_ready(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    response = await client.put(TARGET, json={"replicas": 3, "max_batch": 64}, headers={"If-Match": '"1"'})
    assert response.status == 200
    scaled = await response.json()
    assert (scaled["desired"], scaled["max_batch"], scaled["resource_version"]) == (3, 64, 2)
    assert (scaled["ready"], scaled["starting"]) == (2, 1)
    clock.time_s += 300.0
    (server,) = (await inventory(client))["servers"]
    newest = server["replicas"][-1]
    assert newest["state"] == "ready"
    assert newest["created_at_s"] == ORIGIN_S < newest["ready_at_s"] < clock.time_s


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "told"),
    [
        (TARGET, {"replicas": 3}, {"If-Match": "7"}, 409, "expected 1, not 7"),
        (TARGET, {"replicas": 3}, {"If-Match": "x"}, 422, "If-Match"),
        (TARGET, {"replicas": -1}, {}, 422, "replicas: Input should be greater than or equal to 0"),
        (TARGET, {"replicas": "two"}, {}, 422, "not 'two'"),
        (TARGET, {"replica": 2}, {}, 422, "replica: Extra inputs"),
        (TARGET, {"replicas": 2, "max_batch": 0}, {}, 422, "max_batch"),
        ("/servers/nobody/variants/H100", {"replicas": 1}, {}, 404, "nobody"),
        (TARGET.replace("H100", "TPU"), {"replicas": 1}, {}, 404, "TPU"),
    ],
)
async def test_a_bad_target_is_refused_in_words(
    client: TestClient[Any, Any], path: str, body: object, headers: dict[str, str], status: int, told: str
) -> None:
    response = await client.put(path, json=body, headers=headers)
    assert response.status == status
    assert told in (await response.json())["error"]
    (server,) = (await inventory(client))["servers"]
    assert server["variants"][0]["desired"] == 2


async def test_every_discovered_target_can_be_scraped_once_it_is_ready(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    await client.put(TARGET, json={"replicas": 6})
    targets = await (await client.get("/targets")).json()
    assert len(targets) == 4 + 1
    statuses = [(await client.get(target["labels"]["__metrics_path__"])).status for target in targets]
    assert sorted(statuses) == [200, 200, 200, 503, 503]
    clock.time_s += 300.0
    for target in targets:
        assert target["targets"] == [f"{client.host}:{client.port}"]
        response = await client.get(target["labels"]["__metrics_path__"])
        assert response.status == 200
        page = samples(await response.text())
        assert page[("stoker_simulated_clock_seconds", "")] == clock.time_s
        if "pod" in target["labels"]:
            assert ("vllm:num_requests_running", target["labels"]["pod"]) in page


async def test_the_page_is_valid_and_its_histograms_are_cumulative(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    clock.time_s += 120.0
    response = await client.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4"
    page = await response.text()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert len(families) == page.count("# TYPE")
    expected = {"model_name": 'a "quoted" model', "server": SERVER, "accelerator": "H100"}
    for name in ("vllm:prompt_tokens", "vllm:kv_cache_usage_perc", "vllm:num_requests_waiting"):
        for sample in families[name].samples:
            assert expected.items() <= sample.labels.items()
    (info, _) = families["vllm:cache_config_info"].samples
    assert "model_name" not in info.labels
    assert int(info.labels["block_size"]) * int(info.labels["num_gpu_blocks"]) == 64_000
    for name in ("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"):
        family = families[name]
        assert family.type == "histogram"
        for pod in {sample.labels["pod"] for sample in family.samples}:
            own = [sample for sample in family.samples if sample.labels["pod"] == pod]
            buckets = [sample.value for sample in own if sample.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            assert [s.value for s in own if s.name.endswith("_count")] == [buckets[-1]]
    values = samples(page)
    arrived = values[("stoker_gateway_requests_total", "")]
    held = sum(
        value
        for (name, _), value in values.items()
        if name in ("vllm:request_success_total", "vllm:num_requests_running", "vllm:num_requests_waiting")
    )
    assert arrived == held > 400


async def test_the_request_log_is_read_in_pages_without_gaps_or_repeats(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    clock.time_s += 60.0
    whole = (await (await client.get("/requests")).json())["requests"]
    assert len(whole) > 200
    paged: list[Any] = []
    since_s, more = 0.0, True
    while more:
        answer = await (await client.get(f"/requests?since_s={since_s!r}&limit=30")).json()
        assert answer["forgotten"] is False
        paged += answer["requests"]
        since_s, more = answer["next_since_s"], answer["more"]
    assert paged == whole
    assert since_s == clock.time_s
    for record in whole:
        assert record["arrival_s"] <= record["submitted_s"] < record["first_token_s"] <= record["finish_s"]
    assert (await client.get("/requests?server=nobody")).status == 404
    assert (await client.get("/requests?since_s=nan")).status == 422
    assert (await client.get("/requests?limit=many")).status == 422


async def test_a_metrics_dropout_silences_a_replica_and_ends(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    (server,) = (await inventory(client))["servers"]
    name = server["replicas"][0]["name"]
    fault = {"kind": "metrics-dropout", "pod": name, "duration_s": 30.0}
    assert (await client.post("/faults", json=fault)).status == 200
    assert (await client.get(f"/replicas/{name}/metrics")).status == 503
    assert name not in await (await client.get("/metrics")).text()
    clock.time_s += 31.0
    assert (await client.get(f"/replicas/{name}/metrics")).status == 200
    assert (await client.get("/replicas/nobody/metrics")).status == 404
    assert (await client.post("/faults", json={**fault, "pod": "nobody"})).status == 404
    bad = await client.post("/faults", json={"kind": "meteor"})
    assert bad.status == 422
    assert "meteor" in (await bad.json())["error"]


async def test_the_event_loop_answers_while_a_long_time_is_simulated(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    clock.time_s += 3600.0
    far = asyncio.create_task(client.get("/inventory"))
    answered = 0
    while not far.done():
        assert (await client.get("/livez")).status == 200
        answered += 1
    assert answered > 5
    assert (await (await far).json())["now_s"] == clock.time_s


async def test_serving_takes_a_free_port_and_lets_go_of_it(clock: HandClock) -> None:
    async with ClientSession() as session:
        async with serving(new_fleet(), clock, "127.0.0.1", 0) as url:
            assert (await session.get(f"{url}/livez")).status == 200
        with pytest.raises(ClientConnectorError):
            await session.get(f"{url}/livez")


def test_a_replicas_page_takes_less_than_a_millisecond() -> None:
    fleet = new_fleet()
    fleet.advance(ORIGIN_S + 60.0)
    pod = next(iter(fleet.pods.values()))
    durations_s = []
    for _ in range(20):
        start_s = process_time()
        render([pod], [], fleet.now_s)
        durations_s.append(process_time() - start_s)
    assert min(durations_s) < 1e-3


async def test_a_proposed_calibration_is_carried_out_and_its_measurements_can_be_read(
    client: TestClient[Any, Any], clock: HandClock
) -> None:
    proposal = {
        "model": 'a "quoted" model',
        "accelerator": "H100",
        "points": [{"rate_rps": 1.0, "input_tokens": 200, "output_tokens": 50}],
        "reason": "not identified",
        "proposed_at_s": ORIGIN_S,
    }
    started = await (await client.post("/calibrations", json=proposal)).json()
    assert started["ends_at_s"] > ORIGIN_S + 300.0
    assert await (await client.post("/calibrations", json=proposal)).json() == started
    assert (await (await client.get("/calibrations")).json())["windows"] == []
    clock.time_s = started["ends_at_s"] + 1.0
    (window,) = (await (await client.get("/calibrations")).json())["windows"]
    assert TelemetryObserved.model_validate(window).replicas[0].itl is not None
    assert window["calibration"]
    refused = await client.post("/calibrations", json={**proposal, "model": "other"})
    assert refused.status == 404
    assert (await client.post("/calibrations", json={**proposal, "points": []})).status == 422
