"""Inventory, capacity and calibrations of the simulated fleet; a metrics source reads its metrics."""

from collections.abc import Callable
from typing import Annotated, ClassVar, TypeVar

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.alert import AlertKind
from schemas.parameters import CalibrationProposed
from schemas.telemetry import TelemetryObserved
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
from services.runtime.errors import Retry


class SimulatedSettings(BaseModel):
    """Where the simulated fleet is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str
    """Address of the simulated fleet, without a path."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Wall seconds to wait for an answer; well under the cycle."""
    calibrate: bool = False
    """Whether proposed sweeps are carried out and what they measure is published; only when asked to."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


A = TypeVar("A", bound=_Answer)


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


class _Calibrations(_Answer):
    windows: tuple[TelemetryObserved, ...]


class SimulatedSource:
    """Reads the simulated fleet's inventory, whose times are control time already."""

    name: ClassVar[str] = "simulated"
    Settings: ClassVar[type[BaseModel]] = SimulatedSettings
    provides: ClassVar[frozenset[Provides]] = frozenset({Provides.INVENTORY, Provides.CAPACITY})

    def __init__(self, settings: SimulatedSettings, *, to_clock_s: Callable[[float], float]) -> None:
        self.calibrates = settings.calibrate
        self._settings = settings
        self._held: aiohttp.ClientSession | None = None

    async def poll(self, now_s: float) -> Readings:
        try:
            answer = await self._read("inventory", _Inventory)
            measured = (await self._read("calibrations", _Calibrations)).windows if self.calibrates else ()
        except Retry as error:
            problem = Problem(AlertKind.SOURCE_FAILED, self.name, str(error))
            return Readings(self.name, self.provides, problems=(problem,))
        return Readings(
            self.name,
            self.provides,
            inventory=tuple(_server(server, answer.now_s) for server in answer.servers),
            capacity=tuple(
                CapacityReading(a.type, answer.now_s, a.total, a.free) for a in answer.accelerators
            ),
            calibrations=measured,
        )

    async def calibrate(self, proposed: CalibrationProposed) -> str | None:
        url, asked = self._url("calibrations"), proposed.model_dump(mode="json")
        try:
            async with self._session().post(url, json=asked) as response:
                if response.status >= 500:
                    raise Retry(f"{url}: HTTP status {response.status}, expected 200")
                return None if response.status == 200 else (await response.text(errors="replace"))[:1000]
        except TimeoutError:
            raise Retry(f"{url}: no answer within {self._settings.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Retry(f"{url}: {str(error) or type(error).__name__}") from error

    async def close(self) -> None:
        if self._held is not None:
            await self._held.close()
            self._held = None

    def _session(self) -> aiohttp.ClientSession:
        if self._held is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
            self._held = aiohttp.ClientSession(timeout=timeout)
        return self._held

    def _url(self, page: str) -> str:
        return f"{self._settings.url.rstrip('/')}/{page}"

    async def _read(self, page: str, form: type[A]) -> A:
        """A page of the fleet's; raises Retry, in words that help."""
        url = self._url(page)
        try:
            async with self._session().get(url) as response:
                if response.status != 200:
                    raise Retry(f"{url}: HTTP status {response.status}, expected 200")
                return form.model_validate_json(await response.read())
        except TimeoutError:
            raise Retry(f"{url}: no answer within {self._settings.timeout_s:g} s") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Retry(f"{url}: {where}: {first['msg']}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Retry(f"{url}: {str(error) or type(error).__name__}") from error


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
