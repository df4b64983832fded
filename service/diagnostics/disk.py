"""What service.doctor looks at where a run is to be written: room, speed, and what a checkpoint relies on."""

import errno
import fcntl
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.files import fsync_file, fsync_folder
from service.diagnostics.finding import Finding, size

WRITTEN_BYTES: Final = 32 * 2**20
CHECKPOINT_BYTES: Final = 8  # a parameter: weight and momentum in float32
KEPT: Final = 3  # --keep-checkpoints' default; the best and the one resumed from stay besides
SLOW_SECONDS: Final = 60.0  # to write a checkpoint


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    path = path.absolute()
    return next((each for each in (path, *path.parents) if each.exists()), Path("/"))


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A folder, or where it would be made. Troubles are empty where there are none."""

    out: str
    tried: str  # the folder that was tested: out, or its nearest parent that is there
    trouble: str = ""  # why nothing can be written there
    full: bool = False  # whether the reason is that there is no room
    unlockable: str = ""  # why files cannot be locked
    unflushed: bool = False  # whether its file system does not know how to make files or folders durable
    busy: bool = False  # another worker holds the folder
    free: int = 0  # bytes
    files_left: int | None = None  # inodes; None where they are not counted
    bytes_per_second: float = 0.0  # written and flushed


def find_disk(out: Path) -> Disk:
    """Write, flush, lock and rename in a temporary folder, which is removed; `out` is not made."""
    tried = existing_parent(out)
    there = partial(Disk, out=str(out), tried=str(tried))
    if not tried.is_dir():
        return there(trouble=f"{tried} is a file")
    try:
        room = os.statvfs(tried)
    except OSError as error:
        return there(trouble=error.strerror or str(error))
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail if room.f_files else None
    unlockable = ""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=tried) as place:
            file, renamed = Path(place) / "written", Path(place) / "renamed"
            block = os.urandom(2**20)  # random, or a disk that compresses would look too fast
            start = time.monotonic()
            with open(file, "wb") as stream:
                unlockable = _lock_failure(stream.fileno())
                for _ in range(WRITTEN_BYTES // 2**20):
                    stream.write(block)
                stream.flush()
                durable = fsync_file(stream.fileno())
            seconds = time.monotonic() - start
            os.replace(file, renamed)
            durable = fsync_folder(Path(place)) and durable
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return there(trouble=error.strerror or str(error), full=full, free=free, files_left=inodes)
    return there(
        unlockable=unlockable,
        unflushed=not durable,
        busy=_held(out / ".lock"),
        free=free,
        files_left=inodes,
        bytes_per_second=WRITTEN_BYTES / max(seconds, 1e-9),
    )


def _lock_failure(descriptor: int) -> str:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _held(lock: Path) -> bool:
    """Whether a worker holds a run's lock; tried shared, and released at once, so that no new worker is refused."""
    try:
        with open(lock, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def judge_disk(disk: Disk, parameters: int = 0) -> Finding:
    """parameters: of the network, for the size of a checkpoint; 0 where that is unknown."""
    another = "let --out name a folder elsewhere"
    if disk.trouble:
        follows = "no checkpoint can be written" if disk.full else "service.train does not start"
        remedy = f"make room (df -h, df -i), or {another}" if disk.full else another
        return Finding("failed", "disk", f"{disk.tried} cannot be written ({disk.trouble})", follows, remedy)
    if disk.unlockable:
        found = f"{disk.tried} cannot be locked ({disk.unlockable})"
        remedy = f"mount it with locks (flock, not noflock), or {another}"
        return Finding("failed", "disk", found, "service.train does not start", remedy)
    speed = f"writes {size(disk.bytes_per_second)}/s; locks, renames{'' if disk.unflushed else ' and flushes'}"
    found = f"{size(disk.free)} free at {disk.tried}; {speed}"
    if disk.busy:
        follows = f"another worker is training in {disk.out}: a second one is refused"
        return Finding("failed", "disk", found, follows, "stop it first, or give another --out")
    if disk.files_left is not None and disk.files_left < 1000:
        follows = f"room for {disk.files_left} more files only"
        return Finding("warning", "disk", found, follows, f"make room (df -i), or {another}")
    if disk.unflushed:
        follows = f"{disk.tried} cannot be flushed: when power fails, checkpoints of the last minute may be damaged"
        return Finding("warning", "disk", found, follows, another)
    each = CHECKPOINT_BYTES * parameters
    if disk.free < each:
        follows = f"a checkpoint of paper takes {size(each)}"
        return Finding("failed", "disk", found, follows, f"make room (df -h), or {another}")
    if disk.free < (KEPT + 2) * each:
        follows = f"checkpoints of paper take {size(each)} each, up to {KEPT + 2} of them: the disk would fill"
        return Finding("warning", "disk", found, follows, f"make room, use --keep-checkpoints 2, or {another}")
    if each and each / disk.bytes_per_second > SLOW_SECONDS:
        follows = f"a checkpoint of paper takes {each / disk.bytes_per_second:.0f} s to write"
        return Finding("warning", "disk", found, follows, f"{another}, or use a higher --checkpoint-seconds")
    return Finding("ok", "disk", found)
