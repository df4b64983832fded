"""What is done to a training run from outside while it runs, each by a function of a Trial.

The run is at some step by then; a disturbance does what it does, and checks what holds at once. Trial.ended, finish and
faults check what holds of every one: that no start ends without a word, and that the run comes to the very numbers of
one that nothing was done to.
"""

import os
import resource
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from failing_calls import HANGS, Failing
from faulty_store import faulty_store
from processes import descendants, is_server
from trial import EVERY, Layout, Lost, Trial

STALLED: Final = 2  # seconds; a rank that hangs ends itself after three times that
WHILE: Final = (0.3, 1.5)  # seconds that a disturbance lasts


@dataclass(frozen=True)
class Disturbance:
    """One kind of fault."""

    disturb: Callable[[Trial], None]
    layout: Layout = "one process"
    damages: bool = False  # whether pictures may be lost, and others stand in for them
    unmapped: bool = False  # whether shards are on a file system that cannot map files
    options: tuple[str, ...] = ()  # of the run
    soaks: bool = True  # whether it can be done to a run again and again


def killed(trial: Trial) -> None:
    """SIGKILL at any moment of the run, its saves and now and then its start too."""
    trial.kill()
    trial.ended()
    if trial.random.random() < 0.3:
        trial.start()
        time.sleep(trial.random.uniform(0, 4))
        trial.kill()
        trial.ended()


def killed_again_and_again(trial: Trial) -> None:
    """SIGKILL of three starts in a row, the second and third soon after they have gone on."""
    for _ in range(3):
        trial.kill()
        if trial.ended().status == 0:
            return
        trial.start()
        trial.reach(trial.newest_step() + trial.random.randrange(1, EVERY + 3))


def stopped(trial: Trial) -> None:
    """SIGTERM, SIGINT or SIGHUP: what was trained is saved to the last step, and the status says so."""
    number = trial.random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    trial.signal(number)
    status, output = trial.ended()
    if status not in (0, 128 + number):
        raise Lost(f"{number.name} gives status {status}: {output[-300:]}")
    if (last := trial.logged_step()) != trial.newest_step():
        raise Lost(f"after {number.name} the checkpoint is of step {trial.newest_step()}, the log of {last}")


def frozen(trial: Trial) -> None:
    """SIGSTOP of all its processes for a while."""
    assert trial.process
    pids = [trial.process.pid, *descendants(trial.process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(trial.random.uniform(*WHILE))
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def rank_killed(trial: Trial) -> None:
    """SIGKILL of one rank of two."""
    if pid := trial.ranks().get(trial.random.randrange(2)):
        os.kill(pid, signal.SIGKILL)
        if (end := trial.ended()).status == 0:
            raise Lost(f"status 0 though a rank was killed: {end.output[-300:]}")


def rank_hangs(trial: Trial) -> None:
    """SIGSTOP of one rank of two, for longer than the other waits: the watchdog ends it and writes where it waited."""
    rank = trial.random.randrange(2)
    pids = trial.ranks()
    if len(pids) < 2:
        return
    os.kill(pids[rank], signal.SIGSTOP)
    stacks = trial.out / f"stacks-rank{1 - rank}.txt"
    trial.wait_until(lambda: not Path(f"/proc/{pids[1 - rank]}").exists() or is_zombie(pids[1 - rank]))
    os.kill(pids[rank], signal.SIGCONT)  # which else torchrun kills, after 30 s
    end = trial.ended()
    if end.status == 0 or not stacks.exists():
        raise Lost(f"status {end.status}, {'with' if stacks.exists() else 'without'} stacks: {end.output[-300:]}")


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def server_killed(trial: Trial) -> None:
    """SIGKILL of the process that answers HTTP: another answers at the same address, and training goes on."""
    words = next(line for line in trial.output().splitlines() if line.startswith("serving ")).split()
    url = words[1].rstrip(",")
    (server,) = (pid for pid in descendants(trial.ranks()[0]) if is_server(pid))
    os.kill(server, signal.SIGKILL)
    trial.wait_until(lambda: answers(url))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}healthz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def clock_set(trial: Trial) -> None:
    """The clock set to another hour or year, and back again."""
    for _ in range(2):
        trial.fail(Failing("clock", trial.random.choice((-(10**9), -3600, -5, 5, 3600, 10**8)), "/"))
        time.sleep(trial.random.uniform(0, 0.3))
    trial.fail()


def out_of_memory(trial: Trial) -> None:
    """No more memory than it has at that moment, but for so much by chance."""
    (pid,) = trial.ranks().values()
    try:
        now = 4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        more = trial.random.choice((0, 1, 5, 20)) * 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))
    except (OSError, ProcessLookupError):  # it has just ended
        return
    trial.reach(trial.logged_step() + 2 * EVERY)  # through a save
    trial.kill()  # if it has not ended
    trial.ended()


def disk_fails(*failing: tuple[str, str | int]) -> Callable[[Trial], None]:
    """Calls on the run's folder fail for a while: the run goes on, or ends and says why."""

    def disturb(trial: Trial) -> None:
        trial.fail(*(Failing(call, error, trial.out) for call, error in failing))
        time.sleep(trial.random.uniform(*WHILE))
        trial.fail()

    return disturb


def disk_fails_for_good(trial: Trial) -> None:
    """Nothing can be written any more: status 1 and why, and the last checkpoint is sound."""
    trial.fail(*(Failing(call, "EROFS", trial.out) for call in ("write", "open_to_write", "mkdir", "rename", "unlink")))
    end = trial.ended()
    trial.fail()
    if end.status != 1 or "Read-only file system" not in end.output:
        raise Lost(f"status {end.status}: {end.output[-300:]}")


def reads_hang(trial: Trial) -> None:
    """Shards that cannot be mapped, and whose file system then does not answer for a while."""
    trial.fail(Failing("pread", HANGS, trial.shards))
    time.sleep(trial.random.uniform(*WHILE))
    trial.fail()


def sectors_fail(trial: Trial) -> None:
    """Reads of shards that cannot be mapped fail for a moment: those pictures are named."""
    trial.fail(Failing("pread", "EIO", trial.shards, trial.random.randrange(1, 4)))


@contextmanager
def a_shard(trial: Trial) -> Iterator[Path]:
    """A shard of training pictures, by chance; whole again afterwards."""
    shard = trial.random.choice(sorted((Path(trial.shards) / "train").glob("*.tar")))
    whole = shard.read_bytes()
    try:
        yield shard
    finally:
        shard.unlink(missing_ok=True)
        shard.write_bytes(whole)


def refused(trial: Trial, shard: Path) -> None:
    """A start with a shard that is not as it was is refused by a line that names it."""
    trial.start()
    end = trial.ended()
    if end.status != 2 or shard.name not in end.output.splitlines()[-1]:
        raise Lost(f"status {end.status} with {shard.name} spoilt: {end.output[-300:]}")


def shard_deleted(trial: Trial) -> None:
    """A shard deleted while it is mapped: the run has it still; stopped and started, it says which is missing."""
    with a_shard(trial) as shard:
        shard.unlink()
        time.sleep(trial.random.uniform(*WHILE))
        trial.signal(signal.SIGTERM)
        if trial.ended().status:
            refused(trial, shard)


def shard_truncated(trial: Trial) -> None:
    """A shard made shorter in place while it is mapped: pictures beyond its end are named, and no signal kills."""
    with a_shard(trial) as shard:
        os.truncate(shard, trial.random.randrange(shard.stat().st_size))
        time.sleep(trial.random.uniform(*WHILE))
        trial.signal(signal.SIGTERM)
        if trial.ended().status:
            refused(trial, shard)


def bytes_flipped(trial: Trial) -> None:
    """Some bytes of a shard changed in place while it is mapped: no such picture is trained on."""
    with a_shard(trial) as shard, open(shard, "r+b") as file:
        for _ in range(trial.random.randrange(1, 20)):
            file.seek(place := trial.random.randrange(shard.stat().st_size))
            (byte,) = os.pread(file.fileno(), 1, place)
            file.write(bytes([byte ^ (1 << trial.random.randrange(8))]))
            file.flush()
        trial.ended()


def shard_replaced(trial: Trial) -> None:
    """A shard replaced by another file while it is mapped: the run has the old one still."""
    with a_shard(trial) as shard:
        other = shard.with_suffix(".new")
        other.write_bytes(trial.random.randbytes(shard.stat().st_size + trial.random.choice((0, 1, -512))))
        other.rename(shard)
        if (end := trial.ended()).status or trial.named_damage():
            raise Lost(f"status {end.status}: {end.output[-300:]}")


def store_fails(trial: Trial) -> None:
    """The data set in a store that is slow, fails, breaks off, and lies, each of which it is asked again for."""
    trial.kill()
    trial.ended()
    with faulty_store(Path(trial.shards), trial.random.randrange(2**30)) as url:
        folder, trial.shards = trial.shards, url
        trial.options = ("--data.cache", str(trial.folder / "cache"))
        trial.finish()
        trial.shards = folder


DISTURBANCES: Final = {
    "killed": Disturbance(killed),
    "killed again and again": Disturbance(killed_again_and_again, soaks=False),
    "stopped by a signal": Disturbance(stopped),
    "frozen": Disturbance(frozen),
    "a rank killed": Disturbance(rank_killed, "two ranks", soaks=False),
    "a rank hangs": Disturbance(rank_hangs, "two ranks", options=("--stall-seconds", str(STALLED)), soaks=False),
    "all ranks stopped": Disturbance(stopped, "two ranks", soaks=False),
    "server killed": Disturbance(server_killed),
    "clock set": Disturbance(clock_set),
    "memory limit": Disturbance(out_of_memory),
    "disk full": Disturbance(disk_fails(("write", "ENOSPC"), ("mkdir", "ENOSPC"), ("open_to_write", "ENOSPC"))),
    "disk errors": Disturbance(disk_fails(("write", "EIO"), ("fsync", "EIO"), ("fsync_folder", "EIO"))),
    "read-only": Disturbance(disk_fails(*((call, "EROFS") for call in ("open_to_write", "mkdir", "rename", "unlink")))),
    "read-only for good": Disturbance(disk_fails_for_good, soaks=False),
    "disk hangs": Disturbance(disk_fails(("write", HANGS), ("fsync", HANGS), ("rename", HANGS))),
    "reads hang": Disturbance(reads_hang, unmapped=True, soaks=False),
    "sectors fail": Disturbance(sectors_fail, damages=True, unmapped=True, soaks=False),
    "shard deleted": Disturbance(shard_deleted, soaks=False),
    "shard truncated": Disturbance(shard_truncated, damages=True, soaks=False),
    "bytes flipped": Disturbance(bytes_flipped, damages=True, soaks=False),
    "shard replaced": Disturbance(shard_replaced, soaks=False),
    "store fails": Disturbance(store_fails, soaks=False),
}
