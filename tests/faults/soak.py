"""A run that is disturbed again and again for half an hour, watched by Prometheus, beside one that nothing is done to.

The undisturbed run follows the other: it trains only where that has a durable checkpoint already, so that both can end
after the same step. Every loss and gradient norm that either ever logged is compared, and the last weights.
"""

import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from crashes import place
from disturbances import DISTURBANCES
from failing_calls import library
from pictures import write_tree
from pipeline.shard import ShardOptions, shard
from processes import descendants, records, weights
from prometheus import Prometheus, prometheus
from trial import Lost, Trial

MINUTES: Final = 30.0
PAUSE: Final = (5.0, 20.0)  # seconds between two disturbances
DOWN: Final = 150.0  # seconds that it is down once, which TrainerDown is for
BEHIND: Final = 60  # steps that the undisturbed run stays behind, at least
PORT: Final = 18_700
OPTIONS: Final = ("--epochs", "100000", "--checkpoint-every", "50", "--port", str(PORT))
OFTEN: Final = 3  # what a worker has said so often Prometheus has seen too, whenever the worker was killed
# What must have fired after which words of a worker's, and what must never.
EXPECTED: Final = {" failed ([Errno": "TrainerCheckpointFailing", "log.jsonl cannot be written": "TrainerWritesFailing"}
NEVER: Final = ("TrainerStalled", "TrainerNonFinite", "TrainerSamplesReplaced", "TrainerCheckpointOld")


@dataclass
class Soak:
    """What came of it."""

    seconds: float = 0.0
    steps: int = 0
    starts: int = 0
    repeated: int = 0  # steps that were trained again after a crash, with the same loss
    rounds: Counter[str] = field(default_factory=Counter)
    moments: list[tuple[float, str]] = field(default_factory=list)  # seconds, what was done
    progress: list[tuple[float, int, float]] = field(default_factory=list)  # seconds, step, MiB of the worker
    alerts: list[tuple[float, str]] = field(default_factory=list)  # seconds, each that was firing
    faults: list[str] = field(default_factory=list)


class Ledger:
    """Every step that a run has ever logged; a step that is logged again must be the same."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, float]] = {}
        self.repeated, self.faults = 0, list[str]()
        self._last = 0

    def read(self, out: Path) -> None:
        """Take in what is new."""
        for record in records(out):
            if "gradient_norm" not in record:
                continue
            step, found = record["step"], (record["loss"], record["gradient_norm"])
            if self.steps.setdefault(step, found) != found:
                self.faults.append(f"step {step} had {self.steps[step]}, and again {found}")
            self._last = max(step, self._last)

    def restarted(self, step: int) -> None:
        """The run goes on from an earlier step."""
        self.repeated += max(0, self._last - step)
        self._last = step


def resident(pid: int) -> float:
    """MiB of memory that a process and those that it has started have."""
    total = 0
    for each in (pid, *descendants(pid)):
        try:
            total += 4096 * int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return total / 2**20


def soak(minutes: float, seed: int) -> Soak:
    """Disturb a run for so long, then end both and compare."""
    found, draws = Soak(), random.Random(f"soak {seed}")
    with place() as folder:
        source = write_tree(folder / "source", {"train": {"a": 200, "b": 200}, "val": {"a": 4, "b": 4}}, 90, 80)
        assert shard(ShardOptions(source=source, out=str(folder / "shards"), size=72, workers=1)) == 0
        made = library(folder)
        disturbed, plain = (
            Trial(
                folder=folder / name,
                shards=str(folder / "shards"),
                layout="one process",
                library=made,
                random=draws,
                options=OPTIONS if name == "disturbed" else (*OPTIONS[:-1], "0"),
            )
            for name in ("disturbed", "undisturbed")
        )
        for trial in (disturbed, plain):
            trial.folder.mkdir()
        watched = shutil.which("prometheus")
        watch = prometheus(folder, f"http://127.0.0.1:{PORT}/api/targets") if watched else nullcontext()
        try:
            with watch as server, follower(disturbed, plain):
                disturb(disturbed, minutes, draws, found, server)
            compare(disturbed, plain, found)
        except (Lost, AssertionError) as error:
            found.faults.append(str(error) or repr(error))
        finally:
            disturbed.kill()
            plain.kill()
    if watched:
        fired = {name for _, name in found.alerts}
        found.faults += [f"{name} fired" for name in NEVER if name in fired]
        said = [end.output for end in disturbed.ends]
        expected = {alert for words, alert in EXPECTED.items() if sum(each.count(words) for each in said) >= OFTEN}
        expected |= {"TrainerDown"} if found.rounds["down"] else set()
        found.faults += [f"{name} did not fire" for name in sorted(expected - fired)]
    return found


@contextmanager
def follower(disturbed: Trial, plain: Trial) -> Iterator[None]:
    """The undisturbed run, stopped and continued so that it stays behind the other's durable checkpoint."""
    plain.start()
    done = threading.Event()

    def follow() -> None:
        stopped = False
        while not done.wait(0.1):
            wait = plain.logged_step() > max(0, disturbed.promised_step() - BEHIND)
            if wait != stopped:
                plain.signal(signal.SIGSTOP if wait else signal.SIGCONT)
                stopped = wait
        plain.signal(signal.SIGCONT)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def disturb(trial: Trial, minutes: float, draws: random.Random, found: Soak, server: Prometheus | None) -> None:
    """One disturbance after another, each start after an end; then a last one to the end."""
    kinds = [kind for kind, each in DISTURBANCES.items() if each.soaks]
    ledger, begun, order = Ledger(), time.monotonic(), list[str]()
    down_at = begun + 30 * minutes  # half of the time

    def note(seconds: float) -> None:
        """Let it train, and note how it goes."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            if trial.process is None:
                ledger.restarted(trial.newest_step())
                trial.start()
            ledger.read(trial.out)
            assert trial.process
            step = max(ledger.steps, default=0)
            found.progress.append((now - begun, step, resident(trial.process.pid)))
            if server:
                firing = server.get("alerts")["alerts"]
                found.alerts += [
                    (now - begun, each["labels"]["alertname"]) for each in firing if each["state"] == "firing"
                ]
            if trial.process.poll() is not None:
                trial.ended()
            time.sleep(1)

    trial.start()
    trial.reach(1)
    while time.monotonic() < begun + 60 * minutes:
        note(draws.uniform(*PAUSE))
        if trial.process is None:
            continue
        if minutes * 60 > 2 * DOWN and down_at and time.monotonic() > down_at:
            kind, down_at = "down", 0.0
            trial.kill()
            trial.ended()
            time.sleep(DOWN)
        else:
            order = order or draws.sample(kinds, len(kinds))
            kind = order.pop()
            DISTURBANCES[kind].disturb(trial)
        found.rounds[kind] += 1
        found.moments.append((time.monotonic() - begun, kind))
    note(5)
    if trial.process:
        trial.signal(signal.SIGTERM)
        trial.ended()
    ledger.read(trial.out)
    found.seconds, found.starts, found.repeated = time.monotonic() - begun, len(trial.ends), ledger.repeated
    found.faults += ledger.faults


def compare(disturbed: Trial, plain: Trial, found: Soak) -> None:
    """End the undisturbed run after the same step, and hold all losses, gradient norms and weights together."""
    found.steps = disturbed.newest_step()
    plain.signal(signal.SIGTERM)
    plain.ended()
    plain.options = (*plain.options, "--max-steps", str(found.steps))
    plain.start()
    if (end := plain.ended(within=600)).status:
        raise Lost(f"the undisturbed run: {end.output[-300:]}")
    ours, theirs = Ledger(), Ledger()
    ours.read(disturbed.out)
    theirs.read(plain.out)
    if list(ours.steps) != list(range(1, found.steps + 1)):
        found.faults.append(f"the log has {len(ours.steps)} steps, expected {found.steps}")
    different = [step for step in theirs.steps if ours.steps.get(step) != theirs.steps[step]]
    if different or ours.steps.keys() != theirs.steps.keys():
        found.faults.append(f"{len(different)} steps differ, from {min(different, default=0)}")
    one, other = weights(disturbed.out, found.steps), weights(plain.out, found.steps)
    if names := [name for name in one if not torch.equal(one[name], other[name])]:
        found.faults.append(f"{len(names)} of {len(one)} tensors differ")


def draw(found: Soak, path: Path) -> None:
    """Over minutes: steps, memory of the worker and its server, what was done to them, and which alerts were firing."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    minutes = [seconds / 60 for seconds, _, _ in found.progress]
    upper.plot(minutes, [step for _, step, _ in found.progress], color="black")
    upper.set_ylabel("step")
    upper.set_title(
        f"{found.steps:,} steps, {sum(found.rounds.values())} faults, {found.starts} starts, {len(found.faults)} lost"
    )
    kinds = sorted(found.rounds)
    colours = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for seconds, kind in found.moments:
        upper.axvline(seconds / 60, color=colours[kinds.index(kind) % 20], linewidth=0.8)
    for kind in kinds:
        upper.plot([], [], color=colours[kinds.index(kind) % 20], label=f"{kind}, {found.rounds[kind]}")
    upper.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    middle.plot(minutes, [memory for _, _, memory in found.progress], color="C0", linewidth=0.8)
    middle.set_ylabel("memory, MiB")
    middle.set_ylim(bottom=0)
    names = sorted({name for _, name in found.alerts})
    for row, name in enumerate(names):
        lower.plot(
            [at / 60 for at, each in found.alerts if each == name], [row] * sum(n == name for _, n in found.alerts), "|"
        )
    lower.set_yticks(range(len(names)), names, fontsize="small")
    lower.set_ylim(-0.5, max(0.5, len(names) - 0.5))
    lower.set_ylabel("alerts firing")
    lower.set_xlabel("minutes")
    for axes in (upper, middle, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
