"""Sharding that is interrupted: what is left, and what the next run makes of it."""

import errno
import os
import pickle
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pictures import tree_bytes
from pipeline.command import InputError
from pipeline.folder import Folder
from pipeline.manifest import UNFINISHED_FILE, load_dataset
from pipeline.picture.jpeg import encoder_version
from pipeline.shard import _is_complete as is_complete
from pipeline.shard import shard
from pipeline.source.ilsvrc import find_pictures
from pipeline.write.plan import shard_tasks
from pipeline.write.record import RECORD_SUFFIX
from pipeline.write.shard import write_shard
from processes import wait_until
from sharding import SAMPLES, command, finished, options


@pytest.fixture
def half(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run leaves that ends with its tenth shard."""

    class Pulled(BaseException):
        pass

    def pull(*_: object) -> None:
        if len(finished(tmp_path / "out")) == 10:
            raise Pulled

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shard.add_result", pull)
        with pytest.raises(Pulled):
            shard(options(source, tmp_path / "out"))
    return tmp_path / "out"


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kept: dict[Path, int] = {}
    for wanted in (1, 6, 12, 20):
        with subprocess.Popen(command(source, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            wait_until(lambda wanted=wanted: len(finished(out)) >= wanted, run)
            run.kill()
            run.communicate(timeout=60)  # the pipe ends only when the workers too are gone
        assert run.returncode == -signal.SIGKILL
        with pytest.raises(InputError, match=r"has no dataset\.json"):
            load_dataset(out)
        for path in out.glob("*/*.tar"):
            assert path.read_bytes() == undisturbed[str(path.relative_to(out))]
        assert {path: path.stat().st_ino for path in kept} == kept  # not made again
        kept = {path: path.stat().st_ino for path in finished(out)}
    last = subprocess.run(command(source, out), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert "were done by an earlier run" in last.stdout
    assert {path: path.stat().st_ino for path in kept} == kept
    assert tree_bytes(out) == undisturbed


def test_sigterm_ends_a_run_and_its_workers(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(source, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        wait_until(lambda: finished(out), run)
        run.terminate()
        printed, _ = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "Traceback" not in printed
    assert shard(options(source, out)) == 0
    assert tree_bytes(out) == undisturbed


def test_a_second_run_is_refused_while_the_first_is_at_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(source, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        wait_until(lambda: finished(out), run)
        run.send_signal(signal.SIGSTOP)  # so that it does not end before the second begins
        second = subprocess.run(command(source, out), capture_output=True, text=True)
        run.send_signal(signal.SIGCONT)
        assert second.returncode == 2
        assert second.stderr == f"error: another run is writing {out}, expected to be alone; wait for it\n"
        assert run.wait(60) == 0
        run.communicate()


def test_temporary_files_of_a_killed_run_are_removed(source: Path, undisturbed: dict[str, bytes], half: Path) -> None:
    for name in (".dataset.json.1234.tmp", "train/.000099.tar.abcd.tmp"):
        (half / name).write_bytes(b"half")
    assert shard(options(source, half)) == 0
    assert tree_bytes(half) == undisturbed


@pytest.mark.parametrize("kind", ["tar", "idx", "record"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_finished_shard_that_is_damaged_is_made_again(
    source: Path, undisturbed: dict[str, bytes], half: Path, kind: str, damage: str
) -> None:
    tar = finished(half)[3]
    path = {"tar": tar, "idx": tar.with_suffix(".idx"), "record": tar.with_name(f".{tar.stem}{RECORD_SUFFIX}")}[kind]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    assert shard(options(source, half)) == 0
    assert tree_bytes(half) == undisturbed


@pytest.mark.parametrize(
    ("changes", "named"), [({"seed": 1}, "seed 0 there, 1 here"), ({"size": 16}, "size"), ({"limit": 3}, "source")]
)
def test_another_data_set_does_not_take_an_unfinished_folder(
    source: Path, half: Path, changes: dict[str, Any], named: str
) -> None:
    before = tree_bytes(half)
    with pytest.raises(InputError, match=f"holds another data set .*{named}"):
        shard(options(source, half, **changes))
    assert tree_bytes(half) == before


def test_an_end_before_the_first_shard_leaves_nothing_in_the_way(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/unfinished").write_bytes(b'{"seed": ')  # killed while it marked the folder
    assert shard(options(source, tmp_path / "out")) == 0
    assert tree_bytes(tmp_path / "out") == undisturbed


def test_an_end_after_the_last_file_is_tidied_up(source: Path, undisturbed: dict[str, bytes], half: Path) -> None:
    leftovers = {path: path.read_bytes() for path in [*half.glob(f"*/.*{RECORD_SUFFIX}"), half / "unfinished"]}
    assert shard(options(source, half)) == 0
    for path, data in leftovers.items():
        path.write_bytes(data)
    assert shard(options(source, half)) == 0
    assert tree_bytes(half) == undisturbed


def can_mount() -> bool:
    """Whether this user may mount a file system in a namespace of its own."""
    script = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(script, capture_output=True).returncode


@pytest.mark.skipif(not can_mount(), reason="a small disk needs a user namespace with mounts")
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    disk, result = tmp_path / "disk", tmp_path / "result"
    disk.mkdir()
    # What is needed is checked before the start; the disk fills up afterwards, as when others write to it.
    script = f"""
        mount -t tmpfs -o size=8m tmpfs {disk}
        dd if=/dev/zero of={disk}/other bs=1k count=7800 2>/dev/null
        {" ".join(command(source, disk / "out"))}; echo "status $?"
        echo "$(ls {disk}/out/train/*.tar | wc -l) shards"
        rm {disk}/other
        {" ".join(command(source, disk / "out"))}; echo "status $?"
        cp -r {disk}/out {result}
    """
    room = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script], capture_output=True, text=True
    )
    assert "status 2" in room.stdout and "status 0" in room.stdout, room.stdout + room.stderr
    assert "\n0 shards" not in room.stdout and "were done by an earlier run" in room.stdout
    assert f"error: the disk of {disk}/out" in room.stderr
    assert tree_bytes(result) == undisturbed


def test_an_unwritable_folder_is_one_line(source: Path, tmp_path: Path) -> None:
    run = subprocess.run(command(source, Path("/proc/none")), capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and run.stderr.startswith("error: ")


def test_the_order_of_the_listing_on_disk_does_not_count(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    copy = tmp_path / "source"
    for path in sorted(source.rglob("*.JPEG"), reverse=True):
        target = copy / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    assert shard(options(copy, tmp_path / "out")) == 0
    assert tree_bytes(tmp_path / "out") == undisturbed


def test_shards_of_other_options_are_not_taken_for_these(
    source: Path, undisturbed: dict[str, bytes], half: Path
) -> None:
    """The marker is lost, as by a disk that lied; what the records were made of tells."""
    (half / "unfinished").write_bytes(b"")
    assert shard(options(source, half, quality=50)) == 0
    other = tree_bytes(half)
    shutil.rmtree(half)
    assert shard(options(source, half, quality=50)) == 0
    assert tree_bytes(half) == other != undisturbed


def test_what_could_not_be_read_is_looked_for_again(source: Path, half: Path, undisturbed: dict[str, bytes]) -> None:
    root = half.parent / "source"
    shutil.copytree(source, root)
    picture, away = root / "train/a/00.JPEG", half.parent / "away"
    out = half.parent / "out again"

    def pull(*_: object) -> None:
        if len(finished(out)) == SAMPLES // 2:  # all of them
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.shard.find_pictures", lambda root: (find_pictures(root), picture.rename(away))[0])
        patch.setattr("pipeline.shard.add_result", pull)
        with pytest.raises(KeyboardInterrupt):
            shard(options(root, out, reject_unreadable=True))
    away.rename(picture)
    assert shard(options(root, out)) == 0
    assert tree_bytes(out) == undisturbed


def test_a_data_set_finished_meanwhile_is_left_as_it_is(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs began together: the second sees no data set yet, waits, and then there is one."""
    out = tmp_path / "out"
    assert shard(options(source, out)) == 0
    looks = iter([False])
    monkeypatch.setattr("pipeline.shard._is_complete", lambda *arguments: next(looks, None) or is_complete(*arguments))
    with pytest.raises(InputError, match="holds another data set"):
        shard(options(source, out, quality=50))
    assert tree_bytes(out) == undisturbed
    looks = iter([False])
    assert shard(options(source, out)) == 0
    assert tree_bytes(out) == undisturbed


@pytest.mark.parametrize("tree", ["train", "."])
def test_a_folder_may_be_sharded_into_itself(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "source"
    shutil.copytree(source / "train", root / tree)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shard.write_dataset", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shard(options(root, root / "shards"))
    assert shard(options(root, root / "shards")) == 0
    assert shard(options(root, root / "shards")) == 0
    assert shard(options(root, tmp_path / "again")) == 0
    assert tree_bytes(root / "shards") == tree_bytes(tmp_path / "again") == undisturbed


def test_what_a_worker_answers_goes_through_a_pipe_at_once(source: Path, tmp_path: Path) -> None:
    """Half an answer, of a worker that was killed, would be waited for without end (PIPE_BUF, pipe(7))."""
    plan = options(source, tmp_path, size=256).plan
    (tmp_path / "out").mkdir()
    task = next(shard_tasks(plan, find_pictures(source), str(tmp_path / "out"), encoder_version(), False))
    for _ in range(2):
        assert len(pickle.dumps(write_shard(task))) < 4096


@pytest.mark.parametrize(
    ("what", "other", "message"),
    [
        ("encoder_version", "another 1.0", "has the encoder another 1.0, expected simplejpeg .*; install the same"),
        ("sys.getfilesystemencoding", "iso8859-1", "has file names in iso8859-1, expected utf-8; start its worker"),
    ],
)
def test_a_worker_that_would_make_something_else_is_refused_by_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, other: str, message: str
) -> None:
    plan = options(source, tmp_path).plan
    task = next(shard_tasks(plan, find_pictures(source), str(tmp_path / "out"), encoder_version(), False))
    monkeypatch.setattr(f"pipeline.write.shard.{what}", lambda: other)
    with pytest.raises(InputError, match=f"^{socket.gethostname()} {message}"):
        write_shard(task)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", [UNFINISHED_FILE, RECORD_SUFFIX])
def test_what_cannot_be_cleaned_up_makes_nothing_unfinished(
    source: Path, tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove = Folder.remove

    def busy(self: Folder, name: str) -> None:
        if name.endswith(left):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        remove(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", busy)
        for _ in range(2):  # made, and found done
            assert shard(options(source, tmp_path / "out")) == 0
            told = [line for line in capsys.readouterr().err.splitlines() if "cannot be removed" in line]
            assert told and all(
                f"{left} cannot be removed (Device or resource busy); it is left" in each for each in told
            )
    assert shard(options(source, tmp_path / "out")) == 0
    assert shard(options(source, tmp_path / "clean")) == 0
    assert tree_bytes(tmp_path / "out") == tree_bytes(tmp_path / "clean")
