"""The actuator as a process of its own."""

from services.actuator.service import ActuatorService
from services.actuator.settings import Settings
from services.runtime.process import main

if __name__ == "__main__":
    raise SystemExit(main(ActuatorService, Settings))
