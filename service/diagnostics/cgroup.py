"""What the cgroups, version 1 or 2, allow this process: a container's --cpus and --memory, a scheduler's share."""

from pathlib import Path
from typing import Final, NamedTuple

from pipeline.host.cpus import CGROUPS, MEMBERSHIP, cgroup_folders, cpu_quota, read_setting, whole_number

_NO_LIMIT: Final = 2**60  # bytes; version 1 writes about 2**63 where there is none


class Limits(NamedTuple):
    """None where nothing is limited."""

    cores: float | None  # seconds of processor time a second
    memory: int | None  # bytes
    memory_left: int | None  # bytes of it that are unused, or hold files that can be read again


def limits(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Limits:
    """The tightest limits of all the cgroups that this process is in, because each of them applies."""
    rooms = (_room(folder) for folder in cgroup_folders("memory", root, membership))
    tightest = min((room for room in rooms if room), key=lambda room: room[1], default=(None, None))
    return Limits(cpu_quota(root, membership), *tightest)


def _room(folder: Path) -> tuple[int, int] | None:
    """Limit, and what is left of it."""
    names = ("memory.max", "memory.current", "inactive_file")
    if not (folder / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, used = (whole_number(read_setting(folder / name)) for name in names[:2])
    if limit is None or limit >= _NO_LIMIT:
        return None
    pairs = [line.split() for line in (read_setting(folder / "memory.stat") or "").splitlines()]
    reusable = [int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == names[2]]
    return limit, max(0, limit - (used or 0) + sum(reusable))
