"""How long a run takes on this machine, from a few steps of one."""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.command import InputError
from pipeline.files import make_folders, write_output
from pipeline.host.machine import this_machine
from pipeline.manifest import Dataset
from pipeline.progress import spinner
from service.ablation.experiments import Base, Experiment
from service.ablation.measures import history_of
from service.ablation.plan import plan
from service.ablation.training import Work, last_line, start

STEPS: Final = 60  # of the trial
PASS: Final = 1 / 3  # of a training step's time, for a picture that only goes forward
VIEWS: Final = 10  # on which a finished run is measured


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of a base's runs, alone on a machine."""

    start_seconds: float  # that a run takes besides its steps: imports, compiling
    images_per_second: float  # of training

    def seconds(self, dataset: Dataset, epochs: int) -> float:
        """Of one run, its start and its measurements included."""
        validation = dataset.splits["val"].samples
        pictures = epochs * (dataset.splits["train"].samples + PASS * validation) + VIEWS * PASS * validation
        return self.start_seconds + pictures / self.images_per_second


def file_of(base: Base, out: Path) -> Path:
    """Where the trial is kept."""
    return out / f"speed-{base.name}.json"


def speed_here(base: Base, work: Work, out: Path) -> Speed:
    """Of this machine; the trial is kept in `out` for the next time on a machine of this kind."""
    kept = file_of(base, out)
    here = {"machine": asdict(this_machine()), "options": list(work.options)}
    try:
        known = json.loads(kept.read_bytes())
        if {name: known[name] for name in here} == here:
            return Speed(**known["speed"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another version
        pass
    speed = trial(base, work)
    make_folders(out)
    write_output(kept, (json.dumps({**here, "speed": asdict(speed)}, indent=1) + "\n").encode(), "--out")
    return speed


def trial(base: Base, work: Work) -> Speed:
    """STEPS steps of a run: the median speed of their last half, and what else the run took."""
    nothing, begun = Experiment(name="", section="", question="", paper="", base=base), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, spinner(f"{STEPS} steps of a run, to see how long one takes"):
        (run,) = plan(nothing, out=Path(folder), seeds=[0], epochs=base.epochs)
        options = (*work.options, "--max-steps", str(STEPS))
        worker = start(run, Work(shards=work.shards, samples=work.samples, options=options))
        try:
            status = worker.wait()
        finally:
            worker.terminate()
            worker.wait()
        took, history = time.monotonic() - begun, history_of(run)
        if status or not history:
            raise InputError(f"a trial of {STEPS} steps ended with status {status}: {last_line(run)}")
    speed = float(np.median(history.images_per_second[history.step // 2 :]))
    return Speed(start_seconds=max(0.0, took - history.epoch * work.samples / speed), images_per_second=speed)
