"""What is done to a training run from outside while it runs, each by a function of a Trial.

A disturbance starts the run, disturbs it at a moment by chance, and checks what holds at once; Trial.finish and
Trial.faults check what holds of every one: that the run ends with the very numbers of one that nothing was done to.
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
from processes import descendants, is_server, losses
from trial import EVERY, Layout, Lost, Trial

STALLED: Final = 2  # seconds; a rank that hangs ends itself after three times that
WHILE: Final = (0.3, 1.5)  # seconds that a disturbance lasts


@dataclass(frozen=True)
class Disturbance:
    """One kind of fault."""

    disturb: Callable[[Trial], None]
    layout: Layout = "one process"
    damages: bool = False  # whether pictures may be lost, and others stand in for them


def killed(trial: Trial) -> None:
    """SIGKILL at any moment of the run, its start and its saves too."""
    trial.start()
    if trial.random.random() < 0.3:
        time.sleep(trial.random.uniform(0, 4))
    else:
        trial.reach_some_step()
    trial.kill()
    trial.ended()


def killed_again_and_again(trial: Trial) -> None:
    """SIGKILL of three starts in a row, the second and third soon after they have gone on."""
    for start in range(3):
        trial.start()
        trial.reach(trial.newest_step() + trial.random.randrange(1, EVERY + 3))
        trial.kill()
        if trial.ended().status == 0:
            return
        assert start or trial.ends[-1].status == -signal.SIGKILL


def stopped(trial: Trial) -> None:
    """SIGTERM, SIGINT or SIGHUP: what was trained is saved to the last step, and the status says so."""
    number = trial.random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    trial.start()
    trial.reach_some_step()
    assert trial.process
    os.kill(trial.process.pid, number)
    status, output = trial.ended()
    if status not in (0, 128 + number):
        raise Lost(f"{number.name} gives status {status}: {output[-300:]}")
    if (last := max(losses(trial.out))) != trial.newest_step():
        raise Lost(f"after {number.name} the checkpoint is of step {trial.newest_step()}, the log of {last}")


def frozen(trial: Trial) -> None:
    """SIGSTOP of all its processes for a while."""
    trial.start()
    trial.reach_some_step()
    assert trial.process
    pids = [trial.process.pid, *descendants(trial.process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(trial.random.uniform(*WHILE))
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def rank_killed(trial: Trial) -> None:
    """SIGKILL of one rank of two."""
    trial.start()
    trial.reach_some_step()
    if pid := trial.ranks().get(trial.random.randrange(2)):
        os.kill(pid, signal.SIGKILL)
        if (end := trial.ended()).status == 0:
            raise Lost(f"status 0 though a rank was killed: {end.output[-300:]}")


def rank_hangs(trial: Trial) -> None:
    """SIGSTOP of one rank of two, for longer than the other waits: the watchdog ends it and writes where it waited."""
    trial.options = ("--stall-seconds", str(STALLED))
    trial.start()
    trial.reach_some_step()
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
    trial.start()
    trial.reach(1)
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
    """The clock set to another hour or year, and back, or further."""
    trial.start()
    trial.reach_some_step()
    for _ in range(2):
        trial.fail(Failing("clock", trial.random.choice((-(10**9), -3600, -5, 5, 3600, 10**8)), "/"))
        time.sleep(trial.random.uniform(0, 0.3))
    if trial.random.random() < 0.5:
        trial.fail()


def out_of_memory(trial: Trial) -> None:
    """No more memory than it has at that moment, but for so much by chance."""
    trial.start()
    trial.reach_some_step()
    (pid,) = trial.ranks().values()
    try:
        now = 4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        more = trial.random.choice((0, 1, 5, 20)) * 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))
    except (OSError, ProcessLookupError):  # it has just ended
        pass
    trial.ended()


def disk_fails(*failing: tuple[str, str | int]) -> Callable[[Trial], None]:
    """Calls on the run's folder fail for a while: the run goes on, or ends and says why."""

    def disturb(trial: Trial) -> None:
        trial.start()
        trial.reach_some_step()
        trial.fail(*(Failing(call, error, trial.out) for call, error in failing))
        time.sleep(trial.random.uniform(*WHILE))
        trial.fail()
        end = trial.ended()
        if end.status not in (0, 1) or (end.status and "failed (" not in end.output):
            raise Lost(f"status {end.status}: {end.output[-300:]}")

    return disturb


def disk_fails_for_good(trial: Trial) -> None:
    """Nothing can be written any more: status 1 and why, and the last checkpoint is sound."""
    trial.start()
    trial.reach_some_step()
    trial.fail(*(Failing(call, "EROFS", trial.out) for call in ("write", "open_to_write", "mkdir", "rename", "unlink")))
    end = trial.ended()
    trial.fail()
    if end.status != 1 or "Read-only file system" not in end.output:
        raise Lost(f"status {end.status}: {end.output[-300:]}")


def reads_hang(trial: Trial) -> None:
    """Shards that cannot be mapped, and whose file system then does not answer for a while."""
    unmapped = Failing("mmap", "ENODEV", trial.shards)
    trial.fail(unmapped)
    trial.start()
    trial.reach_some_step()
    trial.fail(unmapped, Failing("pread", HANGS, trial.shards))
    time.sleep(trial.random.uniform(*WHILE))
    trial.fail(unmapped)


def sectors_fail(trial: Trial) -> None:
    """Reads of shards that cannot be mapped fail for a moment: those pictures are named."""
    unmapped = Failing("mmap", "ENODEV", trial.shards)
    trial.fail(unmapped)
    trial.start()
    trial.reach_some_step()
    trial.fail(unmapped, Failing("pread", "EIO", trial.shards, trial.random.randrange(1, 4)))


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
    trial.start()
    trial.reach_some_step()
    with a_shard(trial) as shard:
        shard.unlink()
        time.sleep(trial.random.uniform(*WHILE))
        assert trial.process
        trial.process.terminate()
        if trial.ended().status:
            refused(trial, shard)


def shard_truncated(trial: Trial) -> None:
    """A shard made shorter in place while it is mapped: pictures beyond its end are named, and no signal kills."""
    trial.start()
    trial.reach_some_step()
    with a_shard(trial) as shard:
        os.truncate(shard, trial.random.randrange(shard.stat().st_size))
        time.sleep(trial.random.uniform(*WHILE))
        assert trial.process
        trial.process.terminate()
        end = trial.ended()
        if end.status not in (0, 1, 143):
            raise Lost(f"status {end.status}: {end.output[-300:]}")
        if end.status:
            refused(trial, shard)


def bytes_flipped(trial: Trial) -> None:
    """Some bytes of a shard changed in place while it is mapped: no such picture is trained on."""
    trial.start()
    trial.reach_some_step()
    with a_shard(trial) as shard, open(shard, "r+b") as file:
        for _ in range(trial.random.randrange(1, 20)):
            file.seek(place := trial.random.randrange(shard.stat().st_size))
            (byte,) = os.pread(file.fileno(), 1, place)
            file.write(bytes([byte ^ (1 << trial.random.randrange(8))]))
            file.flush()
        trial.ended()


def shard_replaced(trial: Trial) -> None:
    """A shard replaced by another file while it is mapped: the run has the old one still."""
    trial.start()
    trial.reach_some_step()
    with a_shard(trial) as shard:
        other = shard.with_suffix(".new")
        other.write_bytes(trial.random.randbytes(shard.stat().st_size + trial.random.choice((0, 1, -512))))
        other.rename(shard)
        if (end := trial.ended()).status or trial.named_damage():
            raise Lost(f"status {end.status}: {end.output[-300:]}")


def store_fails(trial: Trial) -> None:
    """The data set in a store that is slow, fails, breaks off, and lies, each of which it is asked again for."""
    with faulty_store(Path(trial.shards), trial.random.randrange(2**30)) as url:
        folder, trial.shards = trial.shards, url
        trial.options = ("--data.cache", str(trial.folder / "cache"))
        trial.start()
        if trial.random.random() < 0.5:
            trial.reach_some_step()
            trial.kill()
            trial.ended()
        trial.finish()
        trial.shards = folder


DISTURBANCES: Final = {
    "killed": Disturbance(killed),
    "killed again and again": Disturbance(killed_again_and_again),
    "stopped by a signal": Disturbance(stopped),
    "frozen": Disturbance(frozen),
    "a rank killed": Disturbance(rank_killed, "two ranks"),
    "a rank hangs": Disturbance(rank_hangs, "two ranks"),
    "all ranks stopped": Disturbance(stopped, "two ranks"),
    "server killed": Disturbance(server_killed),
    "clock set": Disturbance(clock_set),
    "memory limit": Disturbance(out_of_memory),
    "disk full": Disturbance(disk_fails(("write", "ENOSPC"), ("mkdir", "ENOSPC"), ("open_to_write", "ENOSPC"))),
    "disk errors": Disturbance(disk_fails(("write", "EIO"), ("fsync", "EIO"), ("fsync_folder", "EIO"))),
    "read-only": Disturbance(disk_fails(*((call, "EROFS") for call in ("open_to_write", "mkdir", "rename", "unlink")))),
    "read-only for good": Disturbance(disk_fails_for_good),
    "disk hangs": Disturbance(disk_fails(("write", HANGS), ("fsync", HANGS), ("rename", HANGS))),
    "reads hang": Disturbance(reads_hang),
    "sectors fail": Disturbance(sectors_fail, damages=True),
    "shard deleted": Disturbance(shard_deleted),
    "shard truncated": Disturbance(shard_truncated, damages=True),
    "bytes flipped": Disturbance(bytes_flipped, damages=True),
    "shard replaced": Disturbance(shard_replaced),
    "store fails": Disturbance(store_fails),
}
