"""One worker to a folder."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import InputError
from service.run.lock import lock_run


def test_a_run_folder_has_one_worker(tmp_path: Path) -> None:
    with lock_run(tmp_path), pytest.raises(InputError, match="another worker is training in"), lock_run(tmp_path):
        pass
    with lock_run(tmp_path):
        pass


def test_a_file_system_without_locks_is_refused_and_the_doctor_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    expected = r"\.lock cannot be locked \(No locks available\), .* another --out; python -m service\.doctor says more"
    with pytest.raises(InputError, match=expected), lock_run(tmp_path):
        pass
