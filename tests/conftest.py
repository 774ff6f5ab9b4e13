"""What every test shares: where the reference data is, and examples that are the same in every run."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from services.perfmodel.queueing_models.chains import warm_up
from services.runtime import logs
from services.runtime.settings import LogSettings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
# As in a service: what is tested of the performance models is what their kernels answer.
warm_up()
logs.configure(LogSettings(format="text"))

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference data: STOKER_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("STOKER_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set STOKER_DATA to its folder")
    return folder
