"""A process with a time limit, which leaves no process behind."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def run_limited(
    call: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]
) -> tuple[int | None, float]:
    """Exit status, or None where the limit ended it, and the seconds that it took; what it says goes to `log`.

    It leads a process group of its own, which is killed in the end, however it ends.
    """
    start = time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(
            call,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        kill_tree(process.pid)
        process.wait()
    return status, time.monotonic() - start


def kill_tree(leader: int) -> None:
    """Kill a process group, and the groups of those below its leader: torchrun gives each rank one of its own."""
    for pid in (*descendants(leader), leader):
        with suppress(OSError):
            if pid == leader or os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process has started, and those that these have."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from descendants(child)
