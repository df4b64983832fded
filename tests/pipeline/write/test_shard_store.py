"""Sharding into an object store: the same data set, committed last; a lease instead of a lock."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.command import InputError
from pipeline.folder import Folder, folder_at
from pipeline.shard import shard
from pipeline.write import lease
from pipeline.write.record import RECORD_SUFFIX
from processes import PATIENCE, wait_until
from sharding import command, options


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that expire soon."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)


def stored(place: str) -> dict[str, bytes]:
    """Every object below a prefix."""
    folder = folder_at(place)
    return {name: folder.read(name) for name in folder.sizes()}


def records(folder: Folder) -> list[str]:
    return [name for name in folder.sizes() if name.endswith(RECORD_SUFFIX)]


@pytest.mark.slow
def test_a_store_gets_the_same_bytes_by_processes_too(source: Path, undisturbed: dict[str, bytes], bucket: str) -> None:
    assert shard(options(source, f"{bucket}/one")) == 0
    assert stored(f"{bucket}/one") == undisturbed
    run = subprocess.run(command(source, f"{bucket}/deep/two/"), capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert stored(f"{bucket}/deep/two") == undisturbed
    again = subprocess.run(command(source, f"{bucket}/deep/two"), capture_output=True, text=True)
    assert "already sharded" in again.stdout


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with_once_its_lease_has_lapsed(
    source: Path, undisturbed: dict[str, bytes], bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_at(f"{bucket}/killed")
    with subprocess.Popen(
        command(source, folder.place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        wait_until(lambda: len(records(folder)) >= 3, run)
        run.kill()
        run.communicate(timeout=PATIENCE)
    names = folder.sizes()
    assert "dataset.json" not in names and "unfinished.lease" in names
    kept = records(folder)
    assert all(folder.read(name) == undisturbed[name] for name in names if name.endswith(".tar"))
    with pytest.raises(InputError, match="holds another data set"):
        shard(options(source, folder.place, seed=5))
    assert shard(options(source, folder.place)) == 0
    printed = capsys.readouterr()
    assert "watching for 1 s whether it still runs" in printed.err
    assert f"{2 * len(kept)} were done by an earlier run" in printed.out
    assert stored(folder.place) == undisturbed


def test_a_run_that_lives_keeps_others_out(source: Path, bucket: str) -> None:
    folder = folder_at(f"{bucket}/held")
    with lease.hold_lease(folder) as check:
        folder.write("unfinished", b"{}")
        with pytest.raises(InputError, match=r"another run is writing .*held by process \d+"):
            shard(options(source, folder.place))
        check()
        folder.write("unfinished.lease", b'{"token": "of another"}')

        def lost() -> bool:
            try:
                check()
            except InputError:
                return True
            return False

        deadline = time.monotonic() + PATIENCE
        while not lost():  # at the next renewal
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert folder.read("unfinished.lease") == b'{"token": "of another"}'


def test_a_lease_given_back_is_free_at_once(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_at(f"{bucket}/free")
    for _ in range(2):
        with lease.hold_lease(folder):
            assert list(folder.sizes()) == ["unfinished.lease"]
    assert list(folder.sizes()) == []
    assert capsys.readouterr().err == ""


def test_a_prefix_with_other_objects_is_left_alone(source: Path, bucket: str) -> None:
    folder = folder_at(f"{bucket}/others")
    folder.write("thesis.txt", b"mine")
    with pytest.raises(InputError, match="holds other files"):
        shard(options(source, folder.place))
    assert stored(folder.place) == {"thesis.txt": b"mine"}


@pytest.mark.slow
def test_a_shard_whose_object_is_cut_is_made_again(
    source: Path, undisturbed: dict[str, bytes], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_at(f"{bucket}/cut")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shard.write_dataset", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shard(options(source, folder.place))
    folder.write("train/000002.tar", undisturbed["train/000002.tar"][:-512])
    folder.write("train/000003.idx", b"x" * len(undisturbed["train/000003.idx"]))
    assert shard(options(source, folder.place)) == 0
    assert stored(folder.place) == undisturbed


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://no-such-bucket-here/x", r"no-such-bucket-here.*expected to read the source and write"),
        ("nosuch://bucket/x", r"Protocol not known.*expected a folder or s3://bucket/prefix"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(source: Path, bucket: str, out: str, message: str) -> None:
    run = subprocess.run(command(source, out), capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and run.stderr.startswith("error: ")
    assert re.search(message, run.stderr)


def test_no_credentials_are_one_line(source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    run = subprocess.run(command(source, f"{bucket}/x"), capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and "redentials" in run.stderr
