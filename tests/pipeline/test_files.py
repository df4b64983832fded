"""Atomic writes, and locks."""

import errno
import fcntl
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import InputError
from pipeline.files import atomic_writer, check_outputs, try_lock, write_atomic, write_output


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), atomic_writer(path) as stream:
        stream.write(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_data_is_on_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts: list[str] = []
    fsync, rename = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        acts.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        acts.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_rename)
    write_atomic(tmp_path / "file", b"data")
    assert acts == ["file", "rename", "folder"]


@pytest.mark.parametrize("name", ["n" * 255, "ホ" * 85], ids=["ASCII", "three bytes each"])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, name: str) -> None:
    """255 bytes; the temporary name is not longer."""
    write_atomic(tmp_path / name, b"data")
    write_atomic(tmp_path / name, b"new")
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"new"


def test_longer_names_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 256)
    for refuse in (lambda: check_outputs({"--out": path}), lambda: write_output(path, b"", "--out")):
        with pytest.raises(InputError, match=r"n{256} .*\(File name too long\); give another --out"):
            refuse()
    assert not os.listdir(tmp_path)


def test_an_error_of_a_write_names_the_file(tmp_path: Path) -> None:
    """A real one, of a limit on the size of files; also when it comes from another process, pickled."""
    path = tmp_path / "file"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_atomic(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert str(error) == f"[Errno {errno.EFBIG}] File too large: '{path}'"
    assert not os.listdir(tmp_path)


def test_an_error_that_names_another_file_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_writer(tmp_path / "file"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")


def test_one_holds_a_lock(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as first, open(tmp_path / "file") as second:
        assert try_lock(first) and not try_lock(second)
        first.close()
        assert try_lock(second)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_the_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def missing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", missing)
    expected = rf"{tmp_path}/file cannot be locked \({os.strerror(number)}\), expected a lock; mount its file system"
    with open(tmp_path / "file", "w") as file, pytest.raises(InputError, match=expected):
        try_lock(file)
