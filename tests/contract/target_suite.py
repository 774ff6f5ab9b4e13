"""What every target must keep. Subclass `TargetContract` and override its `target`, `broken` and `inventory`."""

import pytest
from pydantic import BaseModel

from schemas.actuation import FailureReason, VariantScale
from schemas.telemetry import InventoryObserved
from services.actuator.target import Applied, Failed, Target


def scales_of(inventory: InventoryObserved, more: int = 0) -> list[VariantScale]:
    """What an inventory has already, or more of it."""
    return [
        VariantScale(accelerator=v.accelerator, replicas=v.desired + more, max_batch=v.max_batch)
        for v in inventory.variants
    ]


class TargetContract:
    """Behaviour that the service relies on whichever target is configured."""

    @pytest.fixture
    def target(self) -> Target:
        """A target whose backend answers."""
        raise NotImplementedError("override this fixture")

    @pytest.fixture
    def broken(self) -> Target:
        """The same with a backend that is not there; where there is no backend, skip."""
        raise NotImplementedError("override this fixture")

    async def inventory(self, target: Target) -> InventoryObserved:
        """What a server of the target's backend has now, with room for one more replica of each variant."""
        raise NotImplementedError("override this method")

    async def test_it_has_a_name_and_settings_that_refuse_what_they_do_not_know(self, target: Target) -> None:
        assert target.name
        settings_class: type[BaseModel] = target.Settings
        with pytest.raises(ValueError, match="no_such_setting"):
            settings_class.model_validate({"no_such_setting": 1})

    async def test_what_is_there_already_is_not_a_change(self, target: Target) -> None:
        inventory = await self.inventory(target)
        result = await target.apply(inventory.server, scales_of(inventory), inventory)
        assert isinstance(result, Applied) and not result.changed
        assert await self._desired(target) == {v.accelerator: v.desired for v in inventory.variants}

    async def test_it_writes_exactly_when_it_says_that_it_does(self, target: Target) -> None:
        inventory = await self.inventory(target)
        result = await target.apply(inventory.server, scales_of(inventory, more=1), inventory)
        assert isinstance(result, Applied) and result.changed == target.writes
        assert await self._desired(target) == {
            v.accelerator: v.desired + target.writes for v in inventory.variants
        }

    async def test_writing_the_same_twice_changes_once(self, target: Target) -> None:
        before = await self.inventory(target)
        asked = scales_of(before, more=1)
        await target.apply(before.server, asked, before)
        again = await target.apply(before.server, asked, await self.inventory(target))
        assert isinstance(again, Applied)
        assert again.changed is False

    async def test_an_unknown_server_is_a_failure_by_value(self, target: Target) -> None:
        inventory = await self.inventory(target)
        unknown = inventory.model_copy(update={"server": "no such/server"})
        result = await target.apply(unknown.server, scales_of(inventory, more=1), unknown)
        if target.writes:
            assert isinstance(result, Failed)
            assert result.reason is FailureReason.NOT_FOUND and result.message
        else:
            assert isinstance(result, Applied)

    async def test_a_backend_that_is_not_there_is_a_failure_by_value(
        self, target: Target, broken: Target
    ) -> None:
        inventory = await self.inventory(target)
        for _ in range(2):
            result = await broken.apply(inventory.server, scales_of(inventory, more=1), inventory)
            assert isinstance(result, Failed)
            assert result.reason is FailureReason.UNREACHABLE and result.message
        await broken.close()

    async def test_closing_twice_or_before_use_is_harmless(self, target: Target) -> None:
        await target.close()
        inventory = await self.inventory(target)
        await target.apply(inventory.server, scales_of(inventory), inventory)
        await target.close()
        await target.close()

    async def _desired(self, target: Target) -> dict[str, int]:
        return {v.accelerator: v.desired for v in (await self.inventory(target)).variants}
