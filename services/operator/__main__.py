"""The operator as a process of its own."""

from services.operator.service import OperatorService
from services.operator.settings import Settings
from services.runtime.process import main

if __name__ == "__main__":
    raise SystemExit(main(OperatorService, Settings))
