"""A side as a process group in its own environment: asked by lines, stopped while others run, measured from outside."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

TICKS: Final = os.sysconf("SC_CLK_TCK")  # of processor time, a second


class Memory(NamedTuple):
    """Bytes of a process group, shared pages divided among those that share them."""

    all: int  # with the mapped files' pages that are in memory
    own: int  # anonymous and shared memory alone


class Side:
    """One side, from its start to its end."""

    def __init__(self, command: list[str], errors: Path):
        self.started = time.monotonic()
        self.errors = errors
        with errors.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True, start_new_session=True
            )

    def first(self) -> dict[str, Any]:
        """Its first batch's form, and the seconds from the process's start to that batch."""
        return {**self.answer(), "start_seconds": time.monotonic() - self.started}

    def ask(self, *words: object) -> dict[str, Any]:
        """Its answer to a line."""
        self.send(*words)
        return self.answer()

    def send(self, *words: object) -> None:
        """Ask, and do not wait."""
        stream = _open(self.process.stdin)
        stream.write(" ".join(map(str, words)) + "\n")
        stream.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer; RuntimeError with its last words where it has ended."""
        line = _open(self.process.stdout).readline()
        if not line:
            raise RuntimeError(self.errors.read_text(errors="replace")[-2000:].strip() or "it ended without a word")
        return json.loads(line)

    def freeze(self) -> None:
        """Stop all its threads and processes."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """End the whole group."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.communicate()

    def states(self) -> set[str]:
        """Of its processes, as /proc names them: T where all are stopped."""
        return {fields[0] for pid in group(self.process.pid) if (fields := stat_of(pid))}

    def memory(self) -> Memory:
        """What its processes hold now."""
        return group_memory(self.process.pid)

    def processor_seconds(self) -> float:
        """What its processes have used so far."""
        return sum(map(processor_seconds, group(self.process.pid)))


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def group(leader: int) -> list[int]:
    """Processes of a group."""
    return [pid for pid in every_process() if (fields := stat_of(pid)) and int(fields[2]) == leader]


def every_process() -> Iterator[int]:
    """Processes that there are now."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def stat_of(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on, the state; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def processor_seconds(pid: int) -> float:
    """Of one process, all threads."""
    fields = stat_of(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS if fields else 0.0


def group_memory(leader: int) -> Memory:
    """Of all processes of a group."""
    each = [memory(pid) for pid in group(leader)]
    return Memory(sum(one.all for one in each), sum(one.own for one in each))


def memory(pid: int) -> Memory:
    """Of one process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # it has just ended
        return Memory(0, 0)
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return Memory(sizes["Pss"], sizes["Pss_Anon"] + sizes["Pss_Shmem"])
