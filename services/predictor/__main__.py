"""The predictor as a process of its own."""

from services.predictor.service import PredictorService
from services.predictor.settings import Settings
from services.runtime.process import main

if __name__ == "__main__":
    raise SystemExit(main(PredictorService, Settings))
