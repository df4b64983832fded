"""How many cores this process can keep busy: those that it may run on, and the time that its cgroups give it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores for this process's threads and workers, at least 1: by its affinity and by its cgroups' quota."""
    return whole_cores(len(os.sched_getaffinity(0)), cpu_quota())


def whole_cores(cores: int, quota: float | None) -> int:
    """`cores`, or what a quota gives the time of, rounded up; quota: seconds of processor time a second."""
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Seconds of processor time a second that cgroups allow: a container's --cpus, a scheduler's share; None: any.

    The tightest of all the groups that this process is in, because each of them applies.
    """
    quotas = (_quota(folder) for folder in cgroup_folders("cpu", root, membership))
    return min((quota for quota in quotas if quota is not None), default=None)


def cgroup_folders(controller: str, root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """Folders of this process's groups, of version 1 or 2, the innermost first.

    In a container the path may be the host's, with only its last part mounted: folders that are not there are skipped.
    """
    lines = [line.split(":", 2) for line in (read_setting(membership) or "").splitlines()]
    paths = {line[1]: line[2] for line in lines if len(line) == 3}
    old = next((names for names in paths if controller in names.split(",")), None)
    if old is None:
        top = root
    else:  # usually mounted under all its names, with a link for each
        top = root / controller if (root / controller).is_dir() else root / old
    parts = [part for part in paths.get(old or "", "/").split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        if (folder := top.joinpath(*parts[:depth])).is_dir():
            yield folder


def read_setting(path: Path) -> str | None:
    """What a file of a cgroup says; None where there is none, or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def whole_number(text: str | None) -> int | None:
    """A setting's number; None for `max` and for what is not there."""
    try:
        return int(text or "")
    except ValueError:
        return None


def _quota(folder: Path) -> float | None:
    if (new := read_setting(folder / "cpu.max")) is not None:
        quota, period = (*new.split(), "", "")[:2]
    else:
        quota, period = read_setting(folder / "cpu.cfs_quota_us"), read_setting(folder / "cpu.cfs_period_us")
    used, every = whole_number(quota), whole_number(period)
    return used / every if used and used > 0 and every else None
