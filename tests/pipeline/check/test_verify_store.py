from pathlib import Path

import pytest
from s3fs.core import S3File

from damaged import KINDS, command, flipped, lines, named
from pictures import tree_bytes
from pipeline.command import InputError
from pipeline.folder import Folder, folder_at
from pipeline.verify import verify


def upload(out: Path, url: str) -> Folder:
    folder = folder_at(url)
    for name, data in tree_bytes(out).items():
        folder.write(name, data)
    return folder


def test_a_data_set_in_a_store_is_verified_alike(out: Path, bucket: str) -> None:
    folder = upload(out, f"{bucket}/alike")
    folder.fs.touch(f"{folder.root}/train/")  # as consoles do for a folder
    assert lines(folder.place, decode=True) == []
    for name in KINDS:
        data = (out / name).read_bytes()
        with flipped(out / name, len(data) // 2, 64):
            folder.write(name, (out / name).read_bytes())
            assert lines(folder.place) == lines(out) != []
        folder.write(name, data)
    folder.write("train/.000000.made.npz", b"")
    folder.remove("val/000000.tar")
    assert named(folder.place) == {"train/.000000.made.npz", "val/000000.tar"}


@pytest.mark.slow
def test_the_command_verifies_a_store(out: Path, bucket: str) -> None:
    folder = upload(out, f"{bucket}/command")
    run = command(folder.place, "--workers", 2)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
    folder.write("mean.png", b"other")
    run = command(folder.place, "--workers", 1)
    assert (run.returncode, run.stdout.partition(",")[0]) == (1, "mean.png: SHA-256")


@pytest.mark.parametrize("place", ["nothing-here", "../no-such-bucket/x"])
def test_nothing_in_a_store_is_a_wrong_call(bucket: str, place: str) -> None:
    url = f"{bucket}/{place}" if not place.startswith("..") else f"s3://{place[3:]}"
    with pytest.raises(InputError, match="expected a"):
        verify(folder_at(url))


def test_a_store_that_fails_while_reading_is_an_os_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_at(f"{bucket}/failing")
    folder.write("file", bytes(3 * 10**7))

    fetch = S3File._fetch_range

    def fail_later(file: S3File, start: int, end: int) -> bytes | None:
        if start:
            raise RuntimeError("the connection\nwas closed")
        return fetch(file, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", fail_later)
    with folder.open_reader("file") as stream:
        assert stream.read(10) == bytes(10)
        with pytest.raises(OSError, match="RuntimeError: the connection was closed") as raised:
            stream.read()
        assert raised.value.filename.endswith("failing/file")
    with pytest.raises(AssertionError), folder.open_reader("file"):  # the reader's own errors stay what they are
        raise AssertionError
