"""The optimizer as a process of its own."""

from services.optimizer.service import OptimizerService
from services.optimizer.settings import Settings
from services.runtime.process import main

if __name__ == "__main__":
    raise SystemExit(main(OptimizerService, Settings))
