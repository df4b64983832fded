"""What tests of verifying share: a data set, and a copy of it to damage."""

import shutil
from pathlib import Path

import pytest

from damaged import make_data_set


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set; nobody writes to it."""
    return make_data_set(tmp_path_factory.mktemp("made"))


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))
