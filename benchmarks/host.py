"""What the thread that trains does in a step besides the device's work, and how many images/s that allows.

    python benchmarks/host.py [SHARDS] [--before FOLDER] [--batch-sizes 128 1024]

The worker, its loader and DALI's queue are the real ones, with log, metrics, curve and console. The device's part is
replaced by nothing: DALI's graph is fed the same files and gives back what it was drawn for them instead of pictures,
and the step returns at once. Time is the processor's, of the loop's thread: what other threads do beside it, such as
DALI's and those that check samples, is the column of all threads. Each measurement has a process of its own.

SHARDS: a data set of JPEG squares; without, one of random bytes is made, whose pictures are 26 kB.
--before: a folder with another state of this repository, as by `git archive REV | tar -x -C FOLDER`; the two take
turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, ParamSpec, TypeVar

import tyro

P = ParamSpec("P")
R = TypeVar("R")

APART: Final = "--apart"  # how a process is called that measures one window

PARTS: Final = {
    "rows": "what is drawn for positions, where the bytes lie, and asking for them",
    "feed": "the rest of DALI's run: files, their checks, and handing them over",
    "columns": "offset, scale, labels, positions, weights",
    "loader": "the rest of the loader",
    "step": "the worker's step: rates, events, results, log, metrics, curve, console",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    shards: Annotated[Path | None, tyro.conf.Positional] = None
    before: Path | None = None
    """Another state of the repository, measured in turn with this one."""
    batch_sizes: tuple[int, ...] = (128, 1024)
    rounds: int = 3
    warm_seconds: float = 11.0
    """Before each window; more than the ten seconds over which the worker reports its speed."""
    seconds: float = 5.0
    """Of a window."""
    samples: int = 20_000
    """Of the data set that is made."""
    json: Path | None = None
    """File for all figures."""


@dataclass(kw_only=True)
class Clock:
    """Seconds of the calling thread's processor time by part; a part's own time is without the parts within it."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _within: list[float] = field(default_factory=lambda: [0.0])  # seconds of the parts inside those that are open

    def timed(self, part: str, work: Callable[P, R]) -> Callable[P, R]:
        """The same, its time noted."""

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.thread_time()
            self._within.append(0.0)
            try:
                return work(*args, **kwargs)
            finally:
                whole = time.thread_time() - start
                self.seconds[part] += whole - self._within.pop()
                self._within[-1] += whole

        return run

    def timed_rows(self, rows: Iterator[Any]) -> Iterator[Any]:
        """The same rows, their making noted."""
        following = self.timed("rows", lambda: next(rows, None))
        while (row := following()) is not None:
            yield row


def hollow_loader(loader: Any, clock: Clock) -> None:
    """Make a loader use a DALI graph without pictures, as for a GPU, and note its parts' times."""
    from nvidia.dali import fn
    from nvidia.dali.types import DALIDataType

    from pipeline.load import batch_loader, graph

    asked_ahead, build_graph, normalize = batch_loader.asked_ahead, batch_loader.build_graph, fn.crop_mirror_normalize
    held: dict[str, Any] = {}

    def decoded(files: Any, region: Any, config: Any) -> Any:
        return fn.cast(files.shape(), dtype=DALIDataType.FLOAT)

    def scaled(pictures: Any, corner: Any, config: Any) -> Any:
        held["corner"] = corner
        return pictures, (0.5, 0.5)

    def without_pixels(pictures: Any, *, mirror: Any, mean: Any, **_: Any) -> Any:
        return fn.cat(pictures + mirror, held["corner"], mean)  # each input is used, else DALI would not take it

    def build(*args: Any) -> Any:
        made: Any
        fn.crop_mirror_normalize = without_pixels
        try:
            made = build_graph(*args)
        finally:
            fn.crop_mirror_normalize = normalize
        made.run = clock.timed("feed", made.run)
        return made

    graph._decoded, graph._scaled = decoded, scaled  # pyright: ignore[reportAttributeAccessIssue]
    batch_loader.build_graph = build  # pyright: ignore[reportAttributeAccessIssue]
    batch_loader.asked_ahead = lambda *args, **kwargs: clock.timed_rows(asked_ahead(*args, **kwargs))
    loader._only_crops = lambda varied: False
    loader._batch = clock.timed("columns", loader._batch)


def measure(options: Options, batch_size: int) -> dict[str, float]:
    """Seconds of a window by part, of all threads and by the clock on the wall, and its images."""
    import torch

    from model.alexnet import ModelConfig
    from model.step import StepResult
    from pipeline.load.config import DataConfig
    from service.run.config import Run
    from service.train import build_worker
    from service.training.graceful_stop import GracefulStop
    from service.training.ranks import join_ranks

    clock, fine = Clock(), torch.tensor(True)
    loss = torch.tensor(6.9)

    def no_step(training: Any, controls: Any, inputs: Any) -> StepResult:
        return StepResult(loss, loss, fine, controls.local_flags)

    with tempfile.TemporaryDirectory() as folder, join_ranks("cpu", 600.0) as ranks, ExitStack() as stack:
        data = DataConfig(shards=str(options.shards), output="float16", threads=1, tuned=False)
        model = ModelConfig(precision="float32", layout="torchvision", fc_width=64)  # for any number of classes
        run = Run(data=data, model=model, out=Path(folder) / "run", batch_size=batch_size, epochs=10**6, port=0)
        worker, _ = build_worker(run, "cpu", ranks, GracefulStop(), stack)
        hollow_loader(worker.loader, clock)
        worker.train_step = no_step
        worker.preview.requested = False  # there are no pictures
        batches = worker.loader.train(batch_size, 0)
        following, step = clock.timed("loader", lambda: next(batches)), clock.timed("step", worker.step)

        def run_for(seconds: float) -> int:
            until, images = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                start = time.monotonic()
                batch = following()
                worker.waited = time.monotonic() - start
                step(batch)
                images += batch_size
            return images

        run_for(options.warm_seconds)
        clock.seconds.clear()
        wall, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
        images = run_for(options.seconds)
        found = {
            **clock.seconds,
            "loop": time.thread_time() - thread,
            "all threads": time.process_time() - process,
            "wall": time.perf_counter() - wall,
            "images": float(images),
        }
        batches.close()
    return found


def measured_apart(options: Options, repository: Path, batch_size: int) -> dict[str, float]:
    """The same by a process that runs the code of a repository."""
    seconds = str(options.warm_seconds), str(options.seconds)
    command = [sys.executable, __file__, APART, str(options.shards), str(batch_size), *seconds]
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repository, check=False)
    if ended.returncode:
        raise SystemExit(f"{repository}: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def table(batch_size: int, windows: dict[str, list[dict[str, float]]]) -> str:
    """Microseconds an image by part, and images/s, medians of the rounds."""

    def middle(side: str, of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(of(window) for window in windows[side])

    lines = [f"batch {batch_size}, microseconds of processor time an image" + "".join(f"{s:>14}" for s in windows)]
    for part in (*PARTS, "loop", "all threads"):
        cells = (middle(side, lambda w, part=part: w.get(part, 0.0) / w["images"] * 1e6) for side in windows)
        lines.append(f"{part:53}" + "".join(f"{cell:14.2f}" for cell in cells))
    for name, part in (("images/s of the loop's thread", "loop"), ("images/s by the clock on the wall", "wall")):
        for label, choose in (("", statistics.median), (", least", min), (", most", max)):
            cells = (choose([w["images"] / w[part] for w in windows[side]]) for side in windows)
            lines.append(f"{name + label:53}" + "".join(f"{cell:14,.0f}" for cell in cells))
    return "\n".join(lines)


def with_data(options: Options, folder: Path) -> Path:
    """The data set asked for, or one that is made in the folder."""
    if options.shards:
        return options.shards.absolute()
    import callback

    print(f"writing {options.samples:,} pictures of about 26,000 bytes", flush=True)
    callback.write_data_set(folder, callback.Options(samples=options.samples))
    return folder


def main() -> None:
    """Measure all sides in turn and print the tables."""
    if sys.argv[1:2] == [APART]:
        shards, size, warm_seconds, seconds = sys.argv[2:]
        asked = Options(shards=Path(shards), warm_seconds=float(warm_seconds), seconds=float(seconds))
        print(json.dumps(measure(asked, int(size))))
        return
    options = tyro.cli(Options, description=__doc__)
    here = Path(__file__).absolute().parent.parent
    sides = {**({"before": options.before.absolute()} if options.before else {}), "now": here}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        asked = Options(
            shards=with_data(options, Path(folder)), warm_seconds=options.warm_seconds, seconds=options.seconds
        )
        for size in options.batch_sizes:
            windows: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side, repository in sides.items():
                    windows[side].append(measured_apart(asked, repository, size))
            figures[str(size)] = windows
            print(table(size, windows), f"n = {options.rounds}, load {os.getloadavg()[0]:.1f}", sep="\n", flush=True)
    for part, what in PARTS.items():
        print(f"{part}: {what}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
