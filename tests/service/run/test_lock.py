"""One worker to a folder."""

from pathlib import Path

import pytest

from pipeline.command import InputError
from service.run.lock import lock_run


def test_a_run_folder_has_one_worker(tmp_path: Path) -> None:
    with lock_run(tmp_path), pytest.raises(InputError, match="another worker is training in"), lock_run(tmp_path):
        pass
    with lock_run(tmp_path):
        pass
