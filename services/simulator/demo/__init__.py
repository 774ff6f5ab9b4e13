"""The fleet that `stoker up` runs when none is given."""

from pathlib import Path

DEMO_FLEET = Path(__file__).parent / "fleet.yaml"
DEMO_PLANT = Path(__file__).parent / "plant.yaml"
