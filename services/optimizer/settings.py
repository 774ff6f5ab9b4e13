"""Settings of the optimizer."""

from services.optimizer.planning import OptimizerSettings
from services.runtime.settings import RuntimeSettings


class Settings(RuntimeSettings):
    """Settings of the optimizer's process."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """How the optimizer plans."""
