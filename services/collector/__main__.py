"""The collector as a process of its own."""

from services.collector.service import CollectorService
from services.collector.settings import Settings
from services.runtime.process import main

if __name__ == "__main__":
    raise SystemExit(main(CollectorService, Settings))
