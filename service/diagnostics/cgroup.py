"""What the cgroups, version 1 or 2, allow this process: a container's --cpus and --memory, a scheduler's share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
_NO_LIMIT: Final = 2**60  # bytes; version 1 writes about 2**63 where there is none


class Limits(NamedTuple):
    """None where nothing is limited."""

    cores: float | None  # seconds of processor time a second
    memory: int | None  # bytes
    memory_left: int | None  # bytes of it that are unused, or hold files that can be read again


def limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Limits:
    """The tightest limits of all the cgroups that this process is in, because each of them applies."""
    cores = [quota for folder in _groups(root, membership, "cpu") if (quota := _quota(folder)) is not None]
    rooms = [room for folder in _groups(root, membership, "memory") if (room := _room(folder)) is not None]
    tightest = min(rooms, key=lambda room: room[1], default=(None, None))
    return Limits(min(cores, default=None), *tightest)


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's groups, the innermost first.

    In a container the path may be the host's, with only its last part mounted: folders that are not there are skipped.
    """
    lines = [line.split(":", 2) for line in (_read(membership) or "").splitlines()]
    first = {names: path for _, names, path in lines}
    old = [path for names, path in first.items() if controller in names.split(",")]
    top, path = (root / controller, old[0]) if old else (root, first.get("", "/"))
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        if (folder := top.joinpath(*parts[:depth])).is_dir():
            yield folder


def _quota(folder: Path) -> float | None:
    if (new := _read(folder / "cpu.max")) is not None:
        quota, period = (*new.split(), "100000")[:2]
    else:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    used, every = _number(quota), _number(period)
    return used / every if used and used > 0 and every else None


def _room(folder: Path) -> tuple[int, int] | None:
    """Limit, and what is left of it."""
    names = ("memory.max", "memory.current", "inactive_file")
    if not (folder / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, used = _number(_read(folder / names[0])), _number(_read(folder / names[1]))
    if limit is None or limit >= _NO_LIMIT:
        return None
    pairs = [line.split() for line in (_read(folder / "memory.stat") or "").splitlines()]
    reusable = [int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == names[2]]
    return limit, max(0, limit - (used or 0) + sum(reusable))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:  # "max"
        return None
