"""COMMAND python -m service.launch: the worker on every GPU of this host.

One process, or torchrun's; the exit status says how the run has ended.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, hangup, run_command, say
from service.run.checkpoint import newest_checkpoint
from service.run.config import parse_run
from service.run.log import LOG_FILE, last_step


def parse_process_count(arguments: list[str]) -> tuple[int | None, list[str]]:
    """How many processes are asked for, and the worker's own arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--nproc-per-node", type=int)
    known, rest = parser.parse_known_args(arguments)
    if known.nproc_per_node is not None and known.nproc_per_node < 1:
        raise InputError(f"nproc-per-node is {known.nproc_per_node}, expected at least 1; leave it out for every GPU")
    return known.nproc_per_node, rest


def nothing_lost(out: Path) -> bool:
    """Whether the newest sound checkpoint has every step that was logged."""
    try:
        checkpoint = newest_checkpoint(out, say)
    except InputError as error:
        say(f"error: {error}")
        return False
    return last_step(out / LOG_FILE) <= (checkpoint.state.step if checkpoint else 0)


def run_torchrun(count: int, arguments: list[str], out: Path) -> int:
    """Run `count` workers under torchrun; returns an exit status, because torchrun's own is 1 for every failure.

    After a signal: 128 + its number, as for a single worker, or 1 where steps are lost. Otherwise: that of the
    first worker that failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own default; set here, torchrun prints no warning
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, *hangup())
    # Its own default has SIGHUP, where nohup has it ignored too.
    handled = ["--signals-to-handle", ",".join(signal.Signals(number).name for number in signals)]
    try:
        torchrun(["--standalone", "--nproc-per-node", str(count), *handled, "-m", "service.train", *arguments])
    except SignalException as error:
        for number in signals:  # it is stopping already; another one would end in a traceback
            signal.signal(number, signal.SIG_IGN)
        return 128 + error.sigval if nothing_lost(out) else EXIT_FAULTS
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else EXIT_FAULTS  # negative: killed by a signal
    return EXIT_DONE


def main() -> int:
    """Launch as the command line says; --nproc-per-node N before the worker's arguments, which are service.train's."""
    count, arguments = parse_process_count(sys.argv[1:])
    run = parse_run(
        arguments, "python -m service.launch [--nproc-per-node N]"
    )  # before any process starts: a wrong option is reported once, and --help works
    if count is None:
        count = 1 if run.device == "cpu" else max(1, torch.cuda.device_count())
    if count == 1:
        os.execv(sys.executable, [sys.executable, "-m", "service.train", *arguments])
    return run_torchrun(count, arguments, run.out)


if __name__ == "__main__":
    run_command(main)
