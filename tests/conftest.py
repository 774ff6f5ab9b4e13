"""Fixtures shared by every test: where the reference data is."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference data: STOKER_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("STOKER_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set STOKER_DATA to its folder")
    return folder
