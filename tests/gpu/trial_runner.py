"""Trials one after another, each in a process of its own: which, for how long, and what became of them.

This file, `limits`, `trial_results` and `trials.plan` need nothing but Python, so that a package that is missing costs
the trials that need it, and no more.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from limits import run_limited
from trial_results import Outcome, line, write_report
from trials.plan import DATA, Trial, plan

HERE: Final = Path(__file__).parent
LEAST_SECONDS: Final = 10.0  # with less left, no trial is begun


def main(arguments: Sequence[str], description: str | None = None) -> int:
    """Run what the command line asks for; 1 if a trial failed, else 0."""
    options = parse(arguments, description)
    device = found_device() if options.device == "auto" else options.device
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        context = write_context(Path(folder), device, options.shards)
        for outcome in outcomes_of(chosen(device, options.only), context, options.out, options.minutes * 60):
            outcomes.append(outcome)
            print(line(outcome), flush=True)
            write_report(options.out, device, outcomes)
    counts = {
        state: sum(each.state == state for each in outcomes) for state in ("passed", "failed", "skipped", "not run")
    }
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + f"; {options.out / 'results.md'}")
    return 1 if counts["failed"] else 0


def parse(arguments: Sequence[str], description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--shards", type=Path, help="that python -m pipeline.shard made; generated ones if not given")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="trials whose names contain one of these")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for results and logs")
    parser.add_argument("--minutes", type=float, default=20, help="of all trials together")
    return parser.parse_args(arguments)


def found_device() -> str:
    """cuda where torch finds a GPU; asked in a process of its own, so that this one holds no memory of it."""
    ask = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    return "cuda" if said.stdout.strip() == "cuda" else "cpu"


def chosen(device: str, only: Sequence[str]) -> list[Trial]:
    """The device's trials that are asked for, and first the one that makes the data, if any of them needs it."""
    found = [trial for trial in plan(device) if not only or any(word in trial.name for word in only)]
    return [DATA, *found] if any(trial.data for trial in found) else found


def write_context(folder: Path, device: str, shards: Path | None) -> Path:
    """The file that tells a trial's process where it is; `trials.context.Context`."""
    path = folder / "context.json"
    path.write_text(
        json.dumps({"device": device, "folder": str(folder), "shards": str(shards.resolve()) if shards else ""})
    )
    return path


def outcomes_of(trials: Sequence[Trial], context: Path, out: Path, seconds: float) -> Iterator[Outcome]:
    """Each trial's outcome as it comes, within so many seconds altogether."""
    device, end, data = json.loads(context.read_text())["device"], time.monotonic() + seconds, True
    for trial in trials:
        left = end - time.monotonic()
        if trial.cuda and device != "cuda":
            yield Outcome(trial.name, "skipped", "needs CUDA")
        elif trial.data and not data:
            yield Outcome(trial.name, "skipped", "its data could not be made")
        elif left < LEAST_SECONDS:
            yield Outcome(trial.name, "not run", "no time was left")
        else:
            outcome = outcome_of(trial, context, out, min(trial.seconds, left))
            data = data and not (trial is DATA and outcome.state != "passed")
            if outcome.state == "failed" and outcome.timed_out and left < trial.seconds:
                outcome = replace(outcome, state="not run", words=f"no end within the {left:.0f} s that were left")
            yield outcome


def outcome_of(trial: Trial, context: Path, out: Path, seconds: float) -> Outcome:
    """Run one trial in a process of its own."""
    log, result = out / f"{re.sub('[^a-z0-9]+', '-', trial.name)}.log", context.with_name("result.json")
    result.unlink(missing_ok=True)
    call = [
        sys.executable,
        "-m",
        "trials.child",
        str(context),
        json.dumps([trial.module, trial.function, trial.options]),
    ]
    status, took = run_limited([*call, str(result)], log, seconds, environment(context))
    if status is None:
        return Outcome(trial.name, "failed", f"no end within {seconds:.0f} s", seconds=took, timed_out=True)
    if result.exists():
        return Outcome(trial.name, **json.loads(result.read_text()), seconds=took)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    ended = f"ended by signal {-status}" if status < 0 else f"ended with {status}"
    return Outcome(trial.name, "failed", f"{ended}: {last[:300]}", seconds=took)


def environment(context: Path) -> dict[str, str]:
    """A trial's variables: where the project is, and on a CPU one thread, because the trials' arithmetic there is small
    and threads that wait for one another, busily, take the cores from those that compute."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    threads = {} if json.loads(context.read_text())["device"] == "cuda" else {"OMP_NUM_THREADS": "1"}
    return threads | dict(os.environ) | {"PYTHONPATH": path}
