"""COMMAND  The worker: trains, validates, checkpoints, resumes, stops when asked, and says how it is doing."""

import fcntl
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from pipeline.command import DONE, FAULTS, InputError, run_command
from pipeline.memory import keep_freed_memory
from service.api import COMPILE_FACTOR, Heart, application, listen, serving
from service.checkpoint import clear_unfinished
from service.config import parse_run, write_run
from service.console import Display
from service.metrics import Metrics
from service.worker import NonFinite, Stop, Worker, set_up


def train(worker: Worker, stop: Stop) -> int:
    """The training loop; the process's exit status."""
    try:
        worker.validate_if_due(stop)
        worker.heart.beat("compiling", COMPILE_FACTOR)
        for batch in worker.batches(stop):
            worker.step(batch)
            worker.validate_if_due(stop)
            worker.save_if_due()
        worker.save()
    except NonFinite as error:
        worker.close()
        kept = worker.saver.last_good or "none yet"
        remedy = "train again with a lower --optim.lr into another --out"
        worker.display.say(f"error: {error}; last good checkpoint: {kept}; {remedy}")
        return FAULTS
    if not worker.close():
        return FAULTS
    if worker.state.step < worker.total_steps and stop.signal is not None:
        worker.display.say(f"stopped by {signal.Signals(stop.signal).name} at step {worker.state.step}, saved")
        return 128 + stop.signal
    worker.display.say(f"done at step {worker.state.step}: {worker.saver.last_good}")
    return DONE


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder alone; InputError when another worker does, or when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}), expected a folder; set --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another worker is training in {folder}, expected none; stop it first") from error
        clear_unfinished(folder)
        yield


def say(message: str) -> None:
    """A line on stderr, before there is a display."""
    sys.stderr.write(message + "\n")


def main() -> int:
    """Train as the command line says."""
    run = parse_run(sys.argv[1:])
    keep_freed_memory()
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.request)
    metrics, heart = Metrics(CollectorRegistry()), Heart(run.stall_seconds)
    with ExitStack() as stack:
        listener = stack.enter_context(listen(run.port))
        stack.enter_context(locked(run.out))
        stack.enter_context(serving(application(metrics, heart), listener))
        setup = set_up(run, say)
        write_run(run.out, setup.fields)
        metrics.restarts.set(setup.state.restarts)
        display = Display(setup.state.step, setup.total_steps)
        stack.callback(display.close)
        host, port = listener.getsockname()
        display.say(f"serving http://{host}:{port}/metrics and /healthz")
        return train(Worker(run, display, metrics, heart, setup), stop)


if __name__ == "__main__":
    run_command(main)
