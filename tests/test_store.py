"""Sharding into an object store: the same data set, committed last; a lease instead of a lock."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from object_store import s3_bucket
from pictures import tree_bytes, write_tree
from pipeline import lease
from pipeline.command import InputError
from pipeline.folder import Folder, folder_at
from pipeline.record import RECORD_SUFFIX
from pipeline.shard import ShardOptions, shard
from processes import PATIENCE, wait_until


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that lapse soon."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 1.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("source"), {"train": {"a": 15, "b": 15}}, 640, 480)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the data set on disk."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert shard(options(source, str(out))) == 0
    return tree_bytes(out)


def options(source: Path, out: str, **changes: Any) -> ShardOptions:
    given: dict[str, Any] = {"size": 32, "shard_samples": 2, "val_fraction": 0.2, "workers": 1, **changes}
    return ShardOptions(source=source, out=out, **given)


def command(source: Path, out: str) -> list[str]:
    given = [str(source), "--out", out, "--size", "32", "--shard-samples", "2", "--val-fraction", "0.2"]
    return [sys.executable, "-m", "pipeline.shard", *given, "--workers", "2"]


def stored(place: str) -> dict[str, bytes]:
    """Every object below a prefix."""
    folder = folder_at(place)
    return {name: folder.read(name) for name in folder.sizes()}


def records(folder: Folder) -> list[str]:
    return [name for name in folder.sizes() if name.endswith(RECORD_SUFFIX)]


def test_a_store_gets_the_same_bytes_by_processes_too(source: Path, undisturbed: dict[str, bytes], bucket: str) -> None:
    assert shard(options(source, f"{bucket}/one")) == 0
    assert stored(f"{bucket}/one") == undisturbed
    run = subprocess.run(command(source, f"{bucket}/deep/two/"), capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert stored(f"{bucket}/deep/two") == undisturbed
    again = subprocess.run(command(source, f"{bucket}/deep/two"), capture_output=True, text=True)
    assert "already sharded" in again.stdout


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
    with lease.leased(folder) as check:
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
        with lease.leased(folder):
            assert list(folder.sizes()) == ["unfinished.lease"]
    assert list(folder.sizes()) == []
    assert capsys.readouterr().err == ""


def test_a_prefix_with_other_objects_is_left_alone(source: Path, bucket: str) -> None:
    folder = folder_at(f"{bucket}/others")
    folder.write("thesis.txt", b"mine")
    with pytest.raises(InputError, match="holds other files"):
        shard(options(source, folder.place))
    assert stored(folder.place) == {"thesis.txt": b"mine"}


def test_a_shard_whose_object_is_cut_is_made_again(
    source: Path, undisturbed: dict[str, bytes], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_at(f"{bucket}/cut")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shard.assemble", lambda *_: 1 / 0)
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
