"""Sharding and verifying on file systems that lack something, as processes meet them."""

import errno
import os
from pathlib import Path

import pytest

from failing_calls import COMPILER, UNKNOWN_SIZE, WHY_NOT, Call, Ended, Failing, call_in_turn, library
from pictures import tree_bytes, write_tree
from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.manifest import UNFINISHED_FILE, load_dataset
from pipeline.shard import ShardOptions, shard
from pipeline.verify import VerifyOptions, verify

needs_compiler = pytest.mark.skipif(COMPILER is None, reason=WHY_NOT)
Case = tuple[str, str | int, str, int]  # a call, its error, the path below the output, how often

DONE: dict[str, Case] = {
    **{f"folders: {error}": ("fsync_folder", error, "", -1) for error in ("EINVAL", "ENOSYS", "EOPNOTSUPP", "EBADF")},
    **{f"files: {error}": ("fsync", error, "", -1) for error in ("EINVAL", "ENOSYS", "EOPNOTSUPP")},
    "a parent that may not be read": ("open_folder", "EACCES", "..", -1),
    "a folder that may not be read": ("open_folder", "EACCES", "", -1),
    "its size unknown": ("statvfs", UNKNOWN_SIZE, "", -1),
    "a tar's handle stale once": ("rename", "ESTALE", "train/000000.tar", 1),
}
REFUSED: dict[str, tuple[Case, str]] = {
    **{
        f"no locks: {error}": (("flock", error, "", -1), f"{{out}}/{UNFINISHED_FILE} cannot be locked ({{error}})")
        for error in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL")
    },
    "no flush for a fault of the disk": (("fsync_folder", "EIO", "", -1), "{out}: {error}"),
    "a description that cannot be renamed": (("rename", "EXDEV", "dataset.json", -1), "{out}/dataset.json: {error}"),
    "a tar that never can": (("rename", "EXDEV", "train/000000.tar", -1), "'{out}/train/000000.tar'"),
    "a marker that cannot be written": (("write", "EIO", "", -1), "{out}/unfinished: {error}"),
    "read-only": (("mkdir", "EROFS", "", -1), "{out}: {error}"),
    "full": (("write", "ENOSPC", "train", -1), "the disk of {out} is full, expected room"),
    "over quota": (("write", "EDQUOT", "train", -1), "the quota on the disk of {out} is full, expected room"),
}
NO_WORKERS = ("ENOSYS", "ENOSPC", "ENOENT", "EACCES", "EROFS")  # what sem_open says without /dev/shm, or a full one


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("source"), {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert shard(options(source, out)) == 0
    return out


@pytest.fixture(scope="module")
def ended(source: Path, undisturbed: Path, folder: Path) -> dict[str, Ended]:
    """How sharding and verifying end while something fails, by case."""
    calls = {}
    for name, (call, error, where, times) in {**DONE, **{name: case for name, (case, _) in REFUSED.items()}}.items():
        path = Path(os.path.normpath(folder / name / where))
        calls[name] = Call("pipeline.shard", arguments(source, folder / name, 1), (Failing(call, error, path, times),))
    for error in NO_WORKERS:
        nothing = (Failing("sem_open", error, "/"),)
        calls[f"shard {error}"] = Call("pipeline.shard", arguments(source, folder / error, 2), nothing)
        calls[f"verify {error}"] = Call("pipeline.verify", (str(undisturbed), "--workers", "2"), nothing)
    return call_in_turn(library(folder), calls)


def options(source: Path, out: Path) -> ShardOptions:
    return ShardOptions(source=source, out=str(out), size=32, workers=1, shard_samples=2)


def arguments(source: Path, out: Path, workers: int) -> tuple[str, ...]:
    """The same, of a command line."""
    return str(source), "--out", str(out), "--size", "32", "--workers", str(workers), "--shard-samples", "2"


def meaning(error: str | int) -> str:
    """What a system says of an error by its name."""
    assert isinstance(error, str)
    return os.strerror(getattr(errno, error))


@needs_compiler
@pytest.mark.parametrize("name", DONE)
def test_what_a_file_system_need_not_know_changes_no_byte(
    name: str, ended: dict[str, Ended], folder: Path, undisturbed: Path
) -> None:
    assert ended[name].status == 0, ended[name].output
    assert tree_bytes(folder / name) == tree_bytes(undisturbed)


@needs_compiler
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_must_know_is_named_in_one_line(name: str, ended: dict[str, Ended], folder: Path) -> None:
    (_, error, *_), message = REFUSED[name]
    found = ended[name]
    assert found.status == 2 and found.last.startswith("error: "), found.output
    assert message.format(out=folder / name, error=meaning(error)) in found.last
    assert not (folder / name / "dataset.json").exists()


@needs_compiler
@pytest.mark.parametrize("error", NO_WORKERS)
@pytest.mark.parametrize("command", ["shard", "verify"])
def test_without_semaphores_the_output_is_not_blamed(command: str, error: str, ended: dict[str, Ended]) -> None:
    found = ended[f"{command} {error}"]
    assert found.status == 2 and found.last.startswith(f"error: worker processes cannot be started ({meaning(error)})")
    assert "/dev/shm" in found.last and "--workers 1" in found.last and "disk of" not in found.last


@pytest.mark.parametrize("name", ["lost+found", "System Volume Information", ".Trash-1000", "@eaDir"])
def test_what_a_disk_s_own_system_keeps_there_is_no_other_file(
    name: str, source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The root of a fresh disk, where a check of it has put a file since; also below, where a split is a disk."""
    kept = [tmp_path / name, tmp_path / "train" / name]
    for folder in kept[:1]:
        folder.mkdir(mode=0o700)
        (folder / ".#12.tmp").write_bytes(b"found")
    assert shard(options(source, tmp_path)) == 0
    kept[1].mkdir(mode=0o700)
    (kept[1] / ".#12.tmp").write_bytes(b"found")
    assert shard(options(source, tmp_path)) == 0  # it is done, and what is temporary is removed
    assert verify(folder_at(tmp_path)).faults == ()
    made = tree_bytes(tmp_path)
    assert [made.pop(str(folder.relative_to(tmp_path) / ".#12.tmp")) for folder in kept] == [b"found", b"found"]
    assert made == tree_bytes(undisturbed)


def test_other_files_beside_those_are_still_found(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "letters").mkdir()
    with pytest.raises(InputError, match="holds other files, expected a new or empty folder"):
        shard(options(source, tmp_path))
    (tmp_path / "letters").rmdir()
    assert shard(options(source, tmp_path)) == 0
    (tmp_path / "train/lost").write_bytes(b"")
    (tmp_path / "train/link").symlink_to("nowhere")
    (tmp_path / "train/folder").symlink_to(undisturbed)
    faults = verify(folder_at(tmp_path)).faults
    assert [fault.file for fault in faults] == ["train/folder", "train/link", "train/lost"]


def test_a_name_that_is_too_long_is_said_of_whatever_it_names(undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)
    for refuse in (
        lambda: VerifyOptions(dir=str(undisturbed), json=str(path)),
        lambda: verify(folder_at(path)),
        lambda: load_dataset(path),
    ):
        with pytest.raises(InputError, match=r"n{300}.* \(File name too long\)"):
            refuse()
