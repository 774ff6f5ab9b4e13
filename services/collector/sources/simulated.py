"""Inventory and capacity of the simulated fleet; its metrics are read by a metrics source."""

from collections.abc import Callable
from typing import Annotated, ClassVar

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.alert import AlertKind
from services.collector.source import (
    CapacityReading,
    Problem,
    Provides,
    Readings,
    ReplicaState,
    ReplicaStatus,
    ServerInventory,
    VariantReading,
)


class SimulatedSettings(BaseModel):
    """Where the simulated fleet is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str
    """Address of the simulated fleet, without a path."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Wall seconds to wait for an answer; well under the cycle."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Replica(_Answer):
    name: str
    accelerator: str
    state: ReplicaState
    created_at_s: float | None = None
    ready_at_s: float | None = None
    reason: str | None = None


class _Variant(_Answer):
    accelerator: str
    desired: int
    ready: int
    pending: int
    starting: int = 0
    terminating: int = 0
    max_batch: int | None = None
    resource_version: str | int | None = None


class _Server(_Answer):
    name: str
    variants: tuple[_Variant, ...] = ()
    replicas: tuple[_Replica, ...] = ()


class _Accelerator(_Answer):
    type: str
    total: int
    free: int


class _Inventory(_Answer):
    now_s: float
    servers: tuple[_Server, ...]
    accelerators: tuple[_Accelerator, ...] = ()


class SimulatedSource:
    """Reads the simulated fleet's inventory, whose times are control time already."""

    name: ClassVar[str] = "simulated"
    Settings: ClassVar[type[BaseModel]] = SimulatedSettings
    provides: ClassVar[frozenset[Provides]] = frozenset({Provides.INVENTORY, Provides.CAPACITY})

    def __init__(self, settings: SimulatedSettings, *, to_clock_s: Callable[[float], float]) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def poll(self, now_s: float) -> Readings:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout)
        url = f"{self._settings.url.rstrip('/')}/inventory"
        try:
            async with self._session.get(url) as response:
                if response.status != 200:
                    return self._failed(f"{url}: HTTP status {response.status}, expected 200")
                answer = _Inventory.model_validate_json(await response.read())
        except TimeoutError:
            return self._failed(f"{url}: no answer within {self._settings.timeout_s:g} s")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return self._failed(f"{url}: {where}: {first['msg']}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return self._failed(f"{url}: {str(error) or type(error).__name__}")
        return Readings(
            self.name,
            self.provides,
            inventory=tuple(_server(server, answer.now_s) for server in answer.servers),
            capacity=tuple(
                CapacityReading(a.type, answer.now_s, a.total, a.free) for a in answer.accelerators
            ),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _failed(self, message: str) -> Readings:
        problem = Problem(AlertKind.SOURCE_FAILED, self.name, message)
        return Readings(self.name, self.provides, problems=(problem,))


def _server(server: _Server, observed_at_s: float) -> ServerInventory:
    return ServerInventory(
        server.name,
        observed_at_s,
        tuple(
            VariantReading(
                accelerator=v.accelerator,
                desired=v.desired,
                ready=v.ready,
                # To us a replica that starts is one that does not serve yet.
                pending=v.pending + v.starting,
                terminating=v.terminating,
                max_batch=v.max_batch,
                resource_version=None if v.resource_version is None else str(v.resource_version),
            )
            for v in server.variants
        ),
        tuple(
            ReplicaStatus(r.name, r.accelerator, r.state, r.created_at_s, r.ready_at_s, r.reason or None)
            for r in server.replicas
        ),
    )
