"""How long a run takes on this machine, from a few steps of one."""

import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.command import InputError
from pipeline.files import write_output
from pipeline.host.machine import this_machine
from pipeline.manifest import load_dataset
from pipeline.progress import spinner
from pipeline.reading.place import open_place
from service.ablation.experiments import Base, Experiment
from service.ablation.measures import history_of
from service.ablation.plan import plan
from service.ablation.training import last_line, start

STEPS: Final = 60  # of the trial
PASS: Final = 1 / 3  # of a training step's time, for a picture that only goes forward
VIEWS: Final = 10  # on which a finished run is measured


def expected_seconds(base: Base, shards: Path, out: Path, epochs: int) -> float:
    """Of one run of so many epochs, alone on this machine, its start and its measurements included.

    The trial is kept in `out` for the next time on a machine of this kind.
    """
    splits = load_dataset(open_place(shards)).splits
    kept, machine = out / f"speed-{base.name}.json", asdict(this_machine())
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if known.get("machine") != machine:
        start_seconds, images_per_second = trial(base, shards)
        known = {"machine": machine, "start_seconds": start_seconds, "images_per_second": images_per_second}
        write_output(kept, (json.dumps(known, indent=1) + "\n").encode(), "--out")
    validation = splits["val"].samples if "val" in splits else 0
    pictures = epochs * (splits["train"].samples + PASS * validation) + VIEWS * PASS * validation
    return known["start_seconds"] + pictures / known["images_per_second"]


def trial(base: Base, shards: Path) -> tuple[float, float]:
    """Seconds that a run takes besides its steps, and the median speed of the last half of STEPS steps, images/s."""
    nothing, begun = Experiment(section="", question="", paper=""), time.monotonic()
    what = f"{STEPS} steps of a run, to see how long one takes"
    with tempfile.TemporaryDirectory() as folder, spinner(what):
        (run,) = plan(nothing, base, shards=str(shards), out=Path(folder), seeds=[0], epochs=base.epochs)
        run = replace(run, arguments=(*run.arguments, "--max-steps", str(STEPS)))
        worker = start(run, jobs=1)
        try:
            status = worker.wait()
        finally:
            worker.terminate()
            worker.wait()
        history = history_of(run)
        if status or not history:
            raise InputError(f"a trial of {STEPS} steps ended with status {status}: {last_line(run)}")
    speed = float(np.median(history.images_per_second[STEPS // 2 :]))
    samples = load_dataset(open_place(shards)).splits["train"].samples
    steps_seconds = history.epoch * samples / speed
    return max(0.0, time.monotonic() - begun - steps_seconds), speed
