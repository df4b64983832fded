"""A training run that something is done to, and whether it came to what it would have come to without."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch

from failing_calls import Failing, rules
from processes import command, descendants, losses, rank_pids, weights
from service.run.checkpoint import FOLDER, LATEST, newest_checkpoint
from service.run.log import LOG_FILE

STEPS: Final = 30
EVERY: Final = 4  # steps from one checkpoint to the next
OPTIONS: Final = (
    *("--epochs", "8", "--checkpoint-every", str(EVERY), "--keep-checkpoints", "2", "--device", "cpu"),
    *("--model.precision", "float32"),
)
MOST_STARTS: Final = 6
PATIENCE: Final = 120.0  # seconds
WHY: Final = (
    "error: ",
    " failed (",
    "MemoryError",
    "Cannot allocate memory",
    "bad_alloc",
    "ChildFailedError",
)  # a line with one says why

Layout = Literal["one process", "two ranks"]


class End(NamedTuple):
    """How a start of a run ended."""

    status: int
    output: str


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing was done to: what all others must come to."""

    losses: dict[int, float]
    weights: dict[str, torch.Tensor]


class Lost(AssertionError):
    """Something that was promised did not hold."""


@dataclass(kw_only=True)
class Trial:
    """One round: a run of its own in `folder`, over `shards` that are its own too.

    library: the one that makes calls fail, whose rules are a file of `folder`. always: calls that always fail.
    """

    folder: Path
    shards: str
    layout: Layout
    library: Path
    random: random.Random
    options: tuple[str, ...] = ()
    always: tuple[Failing, ...] = ()
    ends: list[End] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None
    disturbed_at: int = 0  # the step that was logged when something was done

    @property
    def out(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @property
    def rules(self) -> Path:
        """The file of rules for calls that fail."""
        return self.folder / "rules"

    def start(self) -> None:
        """Start the run, or start it again."""
        assert self.process is None, "it runs already"
        self.fail()
        arguments = command(self.shards, self.out, *OPTIONS, *self.options)
        if self.layout == "two ranks":
            arguments = [sys.executable, "-m", "service.launch", "--nproc-per-node", "2", *arguments[3:]]
        environment = {
            "OMP_NUM_THREADS": "1",
            "LD_PRELOAD": str(self.library),
            "FAILING_CALLS_IN": str(self.rules),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with open(self.folder / f"output-{len(self.ends)}", "wb") as output:
            self.process = subprocess.Popen(
                # A run hears SIGHUP also where the tests were started by nohup.
                ["env", "--default-signal=HUP", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def output(self) -> str:
        """What this start has said so far."""
        return (self.folder / f"output-{len(self.ends)}").read_text(encoding="utf-8", errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        assert self.process
        self.process.send_signal(number)

    def ended(self, within: float = PATIENCE) -> End:
        """Wait for this start's end, which says why in a line unless it was asked for."""
        assert self.process
        try:
            status = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Lost(f"it had not ended after {within:.0f} s: {self.output()[-500:]}") from None
        self.kill()  # ranks that outlive their launcher
        self.ends.append(end := End(status, self.output()))
        self.process = None
        if status in (1, 2) and not any(why in end.output for why in WHY):
            raise Lost(f"status {status} without a reason: {end.output[-500:]}")
        return end

    def kill(self) -> None:
        """End all of its processes, whatever they do."""
        if self.process:
            for pid in (*descendants(self.process.pid), self.process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.wait()

    def wait_until(self, condition: Callable[[], Any], within: float = PATIENCE) -> Any:
        """The condition's first true value; None when the run ends before."""
        assert self.process
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if value := condition():
                return value
            if self.process.poll() is not None:
                return None
            time.sleep(0.01)
        raise Lost(f"waited {within:.0f} s in vain: {self.output()[-500:]}")

    def logged_step(self) -> int:
        """The last step of the log, of which only the end is read; 0 where there is none."""
        path = self.out / LOG_FILE
        if not path.exists():
            return 0
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2000))
            lines = [line for line in file.read().splitlines(keepends=True) if line[:1] == b"{" and line[-1:] == b"\n"]
        return max((json.loads(line)["step"] for line in lines if b"gradient_norm" in line), default=0)

    def reach(self, step: int) -> bool:
        """Wait until a step is logged; False when the run ends before."""
        return bool(self.wait_until(lambda: self.logged_step() >= step))

    def reach_some_step(self) -> None:
        """Wait until a step by chance is logged, and a moment by chance more."""
        self.reach(self.random.randrange(1, STEPS - 4))
        time.sleep(self.random.uniform(0, 0.1))
        self.disturbed_at = self.logged_step()

    def fail(self, *failing: Failing) -> None:
        """Have calls fail from now on, besides those that always do."""
        new = self.rules.with_suffix(".new")
        new.write_text(rules(*self.always, *failing), encoding="utf-8")
        new.rename(self.rules)  # so that nobody reads half of it

    def ranks(self) -> dict[int, int]:
        """Process of each rank."""
        assert self.process
        if self.layout == "one process":
            return {0: self.process.pid}
        return rank_pids(self.process)  # type: ignore[arg-type]

    def newest_step(self) -> int:
        """The step of the checkpoint that a start would go on from; 0 where there is none."""
        found = newest_checkpoint(self.out, lambda _: None) if (self.out / FOLDER).is_dir() else None
        return found.state.step if found else 0

    def promised_step(self) -> int:
        """The step of the last checkpoint that is said to be durable."""
        latest = self.out / FOLDER / LATEST
        return int(latest.read_text().strip().rpartition("-")[2]) if latest.exists() else 0

    def finish(self) -> None:
        """Start it until it is done; no start may end without a word or go back behind a durable checkpoint."""
        if self.process:
            self.ended()
        while not self.ends or self.ends[-1].status != 0:
            if len(self.ends) >= MOST_STARTS:
                raise Lost(f"not done after {MOST_STARTS} starts: {self.ends[-1].output[-500:]}")
            if self.newest_step() < (promised := self.promised_step()):
                raise Lost(f"the newest sound checkpoint is of step {self.newest_step()}, promised was {promised}")
            self.start()
            self.ended()

    def faults(self, expected: Undisturbed, damaged: bool) -> Iterator[str]:
        """What differs from the undisturbed run; damaged: from some step on, as it said, it had other pictures."""
        found, last = losses(self.out), weights(self.out, STEPS)
        if list(found) != list(expected.losses):
            yield f"the log has steps {list(found)}"
        elif different := [step for step in found if found[step] != expected.losses[step]]:
            if not damaged or different[0] < self.disturbed_at:
                yield f"losses differ from step {different[0]}"
        if not damaged and (names := [name for name in last if not torch.equal(last[name], expected.weights[name])]):
            yield f"{len(names)} of {len(last)} tensors differ"
        left = {path.name for path in (self.out / FOLDER).iterdir() if path.name.startswith(".")}
        if left:
            yield f"left over: {sorted(left)}"

    def named_damage(self) -> bool:
        """Whether it has said that it trained on other pictures than those that are damaged."""
        return any("damaged sample (" in end.output for end in self.ends)


def undisturbed(trial: Trial) -> Undisturbed:
    """Train without any fault."""
    trial.finish()
    if trial.ends[-1].status:
        raise Lost(trial.ends[-1].output)
    return Undisturbed(losses(trial.out), weights(trial.out, STEPS))
