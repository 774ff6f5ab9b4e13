"""Settings of the simulated fleet."""

from pathlib import Path

from pydantic import Field

from services.runtime.settings import Group, RuntimeSettings
from services.simulator.demo import DEMO_PLANT
from services.simulator.naming import EngineNaming, GatewayNaming


class SimulatorSettings(Group):
    """What is simulated, and how often it moves on by itself."""

    plant: Path = DEMO_PLANT
    """Description of the plant."""
    tick_s: float = Field(default=0.25, gt=0, le=10)
    """Wall seconds between steps when nobody asks; a request always sees the fleet at its own moment."""
    engine_naming: EngineNaming = EngineNaming.VLLM
    """Whose metric names the replicas use; a platform may run several engines and versions of one."""
    gateway_naming: GatewayNaming = GatewayNaming.STOKER
    """Whose metric names the gateway uses."""


class Settings(RuntimeSettings):
    """Settings of the simulated fleet as a process; http.host and http.port serve its whole API."""

    simulator: SimulatorSettings = SimulatorSettings()
    """The simulated fleet."""
