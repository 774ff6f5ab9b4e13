"""The operator's shell: a fleet that the bus cannot carry."""

from collections.abc import Sequence

from declared_objects import accelerator, fleet

from services.cluster.client import ClusterError
from services.operator.service import OperatorService
from services.operator.settings import Settings
from services.runtime.clock import VirtualClock
from services.runtime.envelope import Emit


class Read:
    """Mirrors that were read."""

    async def error(self, within_s: float) -> ClusterError | None:
        return None


class Host:
    """A chassis of which nothing is to be asked but the time."""

    clock = VirtualClock(1000.0)

    async def publish(self, emits: Sequence[Emit]) -> list[int]:
        raise AssertionError(emits)


async def test_a_fleet_that_no_message_carries_is_in_the_way_and_not_taken_for_declared() -> None:
    service = OperatorService(Settings())
    service.host = Host()  # type: ignore[assignment]
    service._following = Read()  # type: ignore[assignment]
    objects = fleet(*(accelerator(f"{k:0200}") for k in range(5000)))
    service._mirrors[0].objects = {(one.kind, one.name): one for one in objects}
    (reason,) = await service._reconcile()
    assert "at most 921600 are carried" in reason
    assert service._state.revision == ""
