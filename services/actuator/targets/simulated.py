"""The simulated fleet as a target, over its HTTP API."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from schemas.actuation import FailureReason, VariantScale
from schemas.base import Name
from schemas.telemetry import InventoryObserved
from services.actuator.surge import differs
from services.actuator.target import Applied, Failed

_REASONS = {
    403: FailureReason.FORBIDDEN,
    404: FailureReason.NOT_FOUND,
    409: FailureReason.CONFLICT,
    422: FailureReason.REFUSED,
}


class SimulatedSettings(BaseModel):
    """Where the simulated fleet is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str
    """Address of the simulated fleet, without a path."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Wall seconds to wait for an answer; well under the cycle."""


class _Answer(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)
    resource_version: Name


class SimulatedTarget:
    """Writes variant by variant, each under the resource version that the inventory saw."""

    name: ClassVar[str] = "simulated"
    Settings: ClassVar[type[BaseModel]] = SimulatedSettings
    writes: ClassVar[bool] = True

    def __init__(self, settings: SimulatedSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def apply(
        self, server: str, scales: Sequence[VariantScale], inventory: InventoryObserved
    ) -> Applied | Failed:
        if not differs(scales, inventory):
            return Applied(changed=False)
        held = {v.accelerator: v for v in inventory.variants}
        changed, version = False, None
        # Growing variants first: if a later write fails, capacity was added and none was taken.

        def loss(scale: VariantScale) -> int:
            have = held.get(scale.accelerator)
            return (have.desired if have else 0) - scale.replicas

        # What stays is written as well: nothing may go because of a variant that is no longer as it was seen.
        for scale in sorted(scales, key=loss):
            have = held.get(scale.accelerator)
            seen = have.resource_version if have else None
            written = await self._write(server, scale, seen)
            if isinstance(written, Failed):
                return written
            if written != seen:
                changed, version = True, written
        return Applied(changed, version)

    async def _write(self, server: str, scale: VariantScale, version: str | None) -> str | Failed:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s)
            )
        base = self._settings.url.rstrip("/")
        path = f"/servers/{quote(server, safe='')}/variants/{quote(scale.accelerator, safe='')}"
        body: dict[str, Any] = {"replicas": scale.replicas}
        if scale.max_batch is not None:
            body["max_batch"] = scale.max_batch
        headers = {"If-Match": version} if version is not None else {}
        try:
            async with self._session.put(
                URL(base + path, encoded=True), json=body, headers=headers
            ) as response:
                text = await response.text(errors="replace")
                if response.status != 200:
                    reason = _REASONS.get(response.status, FailureReason.UNREACHABLE)
                    return Failed(reason, f"PUT {path}: status {response.status}: {text[:1000]}")
                return _Answer.model_validate_json(text).resource_version
        except TimeoutError:
            return Failed(
                FailureReason.UNREACHABLE, f"PUT {path}: no answer within {self._settings.timeout_s:g} s"
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Failed(FailureReason.UNREACHABLE, f"PUT {path}: {str(error) or type(error).__name__}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
