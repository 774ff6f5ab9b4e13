"""The engine that the tests of images and of the compose file share."""

import pytest
from container_engine import Engine, Refused, engine_of_this_machine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A container engine that runs what the tests need."""
    try:
        return engine_of_this_machine()
    except Refused as refused:
        pytest.skip(f"no container engine: {refused}")
