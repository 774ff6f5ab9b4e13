"""The tuner as a process of its own."""

from services.runtime.process import main
from services.tuner.service import TunerService
from services.tuner.settings import Settings

if __name__ == "__main__":
    raise SystemExit(main(TunerService, Settings))
