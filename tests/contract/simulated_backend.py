"""The real simulated fleet as the backend of a target, with its inventory as the collector would tell it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from schemas.base import Quality
from schemas.telemetry import InventoryObserved, VariantInventory
from services.simulator.fleet import Fleet
from services.simulator.plant import Plant
from services.simulator.service import create_app

ORIGIN_S = 1_700_000_000.0
SERVER = "meta-llama/Llama-3.1-8B"
ACCELERATORS = ("H100", "2xA100/80G")
Client = TestClient[Any, Any]


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.time_s = ORIGIN_S

    def now_s(self) -> float:
        return self.time_s


def new_fleet() -> Fleet:
    """One server with two replicas on the first of two accelerators."""
    variant = {"alpha_s": 8e-3, "beta_s": 1.6e-5, "gamma_s": 5e-7, "max_batch": 32, "kv_tokens": 64_000}
    description = {
        "accelerators": [{"type": name, "count": 8} for name in ACCELERATORS],
        "servers": [
            {
                "name": SERVER,
                "model": "m",
                "variants": [
                    variant
                    | {
                        "accelerator": name,
                        "accelerator_type": name,
                        "startup_s": {"median": 60.0, "p95": 90.0},
                    }
                    for name in ACCELERATORS
                ],
                "initial": [{"accelerator": ACCELERATORS[0], "replicas": 2}],
                "arrivals": {
                    "kind": "generated",
                    "rate_rps": [[0.0, 1.0]],
                    "input_tokens": {"mean": 500},
                    "output_tokens": {"mean": 100},
                },
            }
        ],
    }
    return Fleet(Plant.model_validate(description), origin_s=ORIGIN_S)


@asynccontextmanager
async def simulated_fleet(clock: Clock) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(new_fleet(), clock, tick_s=0.01))) as client:
        yield client


def url_of(client: Client) -> str:
    return str(client.make_url("/"))


async def inventory_of(client: Client) -> InventoryObserved:
    """What the server has, over HTTP."""
    page = await (await client.get("/inventory")).json()
    (server,) = page["servers"]
    return InventoryObserved(
        server=server["name"],
        model=server["model"],
        observed_at_s=page["now_s"],
        quality=Quality.OK,
        variants=tuple(
            VariantInventory(
                accelerator=v["accelerator"],
                max_batch=v["max_batch"],
                desired=v["desired"],
                ready=v["ready"],
                pending=v["pending"] + v["starting"],
                terminating=v["terminating"],
                resource_version=str(v["resource_version"]),
            )
            for v in server["variants"]
        ),
    )


async def set_by_hand(client: Client, accelerator: str, replicas: int) -> None:
    """Another writer's change."""
    path = f"/servers/{quote(SERVER, safe='')}/variants/{quote(accelerator, safe='')}"
    url = URL(url_of(client).rstrip("/") + path, encoded=True)
    response = await client.session.put(url, json={"replicas": replicas})
    assert response.status == 200
