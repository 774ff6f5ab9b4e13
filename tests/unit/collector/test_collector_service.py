"""The collector's shell: the fleet's file, where the bus or the fleet itself is in the way."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from schemas.alert import AlertRaised
from schemas.base import Contract
from schemas.fleet import FleetDeclared
from services.collector.service import CollectorService
from services.collector.settings import CollectorSettings, Settings
from services.runtime.clock import VirtualClock
from services.runtime.envelope import Emit
from services.runtime.errors import Fatal, Retry


class Host:
    """A chassis without a bus: it keeps what is published, or refuses it while it is `away`."""

    def __init__(self) -> None:
        self.clock, self.away, self.published = VirtualClock(1000.0), False, list[Contract]()

    async def publish(self, emits: Sequence[Emit]) -> list[int]:
        if self.away:
            raise Retry("no acknowledgement")
        self.published += [emit.payload for emit in emits]
        return [len(self.published)] * len(emits)


def declare(path: Path, *servers: str, model: str = "m") -> None:
    content = {
        "accelerators": [{"name": "A", "type": "A", "cost_per_hour": 4}],
        "models": [{"name": "m", "profiles": [{"accelerator": "A"}]}],
        "service_classes": [{"name": "gold", "priority": 1}],
        "servers": [{"name": name, "model": model, "service_class": "gold"} for name in servers],
    }
    path.write_text(json.dumps(content))


def collector(path: Path) -> tuple[CollectorService, Host]:
    settings = CollectorSettings(
        sources=("endpoints",), source_settings={"endpoints": {"urls": ["http://nobody"]}}, fleet=path
    )
    service, host = CollectorService(Settings(collector=settings)), Host()
    service.host = host  # type: ignore[assignment]
    return service, host


async def test_a_fleet_mended_while_the_bus_is_away_is_declared_when_it_is_back(tmp_path: Path) -> None:
    declare(path := tmp_path / "fleet.json", "a")
    service, host = collector(path)
    await service.open()
    declare(path, "a", "b", model="unknown")
    host.away = True
    with pytest.raises(Retry):
        await service._reload_fleet(path)
    host.away = False
    await service._reload_fleet(path)
    (refused,) = host.published
    assert isinstance(refused, AlertRaised) and not refused.resolved and "unknown" in refused.message
    assert "unknown" in service.trouble()[0]

    declare(path, "a", "b", "c")
    host.away = True
    with pytest.raises(Retry):
        await service._reload_fleet(path)
    host.away = False
    for _ in range(2):
        await service._reload_fleet(path)
    _, ended, fleet = host.published
    assert isinstance(ended, AlertRaised) and ended.resolved
    assert isinstance(fleet, FleetDeclared) and [one.name for one in fleet.servers] == ["a", "b", "c"]
    assert service.trouble() == ()


async def test_a_fleet_that_no_message_carries_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    declare(path := tmp_path / "fleet.json", "a")
    service, host = collector(path)
    await service.open()
    declare(path, *(f"{k:0200}" for k in range(5000)))
    await service._reload_fleet(path)
    (refused,) = host.published
    assert isinstance(refused, AlertRaised) and "at most 921600 are carried" in refused.message
    assert "at most 921600 are carried" in service.trouble()[0]
    again, _ = collector(path)
    with pytest.raises(Fatal, match="at most 921600 are carried"):
        await again.open()
