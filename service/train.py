"""COMMAND python -m service.train: train in one process, or in one of torchrun's.

The worker trains, validates, checkpoints, resumes, stops when asked, and reports how it is doing.
"""

import errno
import os
import sys
import tempfile
from contextlib import ExitStack
from socket import gethostname, socket
from typing import Final

import torch
from prometheus_client import CollectorRegistry
from torch.distributed import is_torchelastic_launched

from model.parallel import Layout, choose_layout, make_parallel
from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, run_command, say
from pipeline.host.address import host_and_port
from pipeline.host.memory import keep_freed_memory
from pipeline.load.batch_loader import Device, choose_device
from service.evaluation.finished import evaluate_finished
from service.faults.recovery import recover
from service.faults.replay import replay
from service.run.config import Run, parse_run, write_run
from service.run.lock import DOCTOR, lock_run
from service.run.starts import count_start, forget_starts
from service.telemetry.console import ProgressDisplay
from service.telemetry.heartbeat import COMPILE_FACTOR, Heartbeat
from service.telemetry.metrics import Metrics
from service.telemetry.watchdog import Watchdog
from service.training.control_queue import ControlQueue
from service.training.graceful_stop import GracefulStop
from service.training.ranks import Ranks, RanksLost, join_ranks
from service.training.setup import set_up
from service.training.step_result import StepFault
from service.training.worker import Worker
from service.web.listener import listen
from service.web.responses import Responses
from service.web.server_process import ServerProcess, check_tls
from service.web.tokens import read_tokens

# How long a worker that torchrun has just replaced, perhaps on another host, may take to release the run's folder.
REPLACED_SECONDS: Final = 60.0


def train_on(worker: Worker) -> bool:
    """Train to the end; False after a fault of the numbers that the run has recovered from, to be called again."""
    try:
        for batch in worker.batches():
            worker.step(batch)
            worker.validate_if_due()
            worker.save_if_due()
            worker.act()
        worker.save()
    except StepFault as fault:
        recover(worker, fault)
        return False
    return True


def train(worker: Worker) -> int:
    """Run the training loop; returns the process's exit status."""
    try:
        worker.validate_if_due()
        worker.announce_compiling()
        worker.save_start()
        while not train_on(worker):
            pass
        evaluate_finished(worker)
    except StepFault as error:
        worker.close()
        remedy = "go on with --on-fault skip, or train again with a lower --optim.lr into another --out"
        worker.display.say(f"error: {error}; last good checkpoint: {worker.writer.last_good}; {remedy}")
        return EXIT_FAULTS
    except InputError:
        # Of the data set, damaged or gone: the network is sound. Other ranks do not know, and cannot save with this.
        if worker.state.step and not worker.ranks.is_distributed:
            worker.save()
        raise
    except RuntimeError as error:
        if fault := compile_fault(error):
            raise InputError(fault) from error
        raise
    if not worker.close():
        return EXIT_FAULTS
    if worker.ranks.is_leader:
        forget_starts(worker.run.out)
    if worker.ended_by:
        worker.display.say(f"stopped by {worker.ended_by} at step {worker.state.step}, saved")
        return EXIT_DONE
    if not worker.finished:
        worker.display.say(f"stopped by {worker.stop.name} at step {worker.state.step}, saved")
        return worker.stop.status
    worker.display.say(f"done at step {worker.state.step}: {worker.writer.last_good}")
    return EXIT_DONE


def layout_of(run: Run, ranks: Ranks) -> Layout | None:
    """How the ranks share the work; InputError where they cannot as --parallel asks."""
    try:
        return choose_layout(run.parallel, ranks.world_size)
    except ValueError as error:
        raise InputError(str(error)) from error


def build_worker(
    run: Run, device: Device, ranks: Ranks, stop: GracefulStop, stack: ExitStack
) -> tuple[Worker, Responses]:
    """A worker ready to train, and its HTTP responses; what they hold open is closed with the stack."""
    metrics, heartbeat, control_queue = Metrics(CollectorRegistry()), Heartbeat(run.stall_seconds), ControlQueue()
    stack.callback(Watchdog(heartbeat, run.out / f"stacks-rank{ranks.rank}.txt", say).close)
    gpu = torch.cuda.current_device() if device == "gpu" else None  # read here: torch's current device is per thread
    metrics.watch(heartbeat, run.out if ranks.is_leader else None, gpu)

    def acquire() -> tuple[Layout | None, socket]:
        layout = layout_of(run, ranks)
        check_access(run, ranks)
        if ranks.is_leader:
            stack.enter_context(lock_run(run.out, REPLACED_SECONDS if ranks.is_distributed else 0.0))
        return layout, listen(run.host, run.port + ranks.local_rank if run.port else 0)

    mine, listener = ranks.on_all_ranks(acquire)
    # Rank 0's on all ranks: ranks started with other options would otherwise wait for each other before that is found.
    layout: Layout | None = ranks.broadcast(mine)
    responses = Responses(run, ranks, layout, device, metrics, heartbeat)
    server = serve(run, ranks, listener, responses, control_queue)
    stack.callback(server.close)
    stack.callback(control_queue.close, "the run has ended, expected it to go on; start it again")
    responses.targets = ranks.all_gather(address(listener))
    parallel = make_parallel(layout, ranks.rank, ranks.world_size, ranks.patience)
    setup = set_up(run, device, ranks, parallel, say if ranks.is_leader else lambda message: None)
    ranks.on_all_ranks(lambda: count_start(run.out, setup.state.step, run.most_restarts) if ranks.is_leader else None)
    if ranks.is_leader:
        write_run(run.out, setup.fields)
    metrics.restarts.set(setup.state.restarts)
    display = ProgressDisplay(setup.state.step, setup.total_steps, quiet=not ranks.is_leader)
    stack.callback(display.close)
    scheme, at = "https" if run.tls_key else "http", host_and_port(*listener.getsockname()[:2])
    name = f"rank {ranks.rank} of {ranks.world_size}, {layout}, " if layout else ""
    (display.say if ranks.is_leader else say)(f"{name}serving {scheme}://{at}/, /metrics and /healthz")
    stop.listen()
    worker = Worker(display, metrics, heartbeat, stop, control_queue, setup)
    responses.worker = worker
    stack.callback(worker.saver.close)  # before the folder's lock is released, whatever happens
    return worker, responses


def device_of(run: Run) -> Device:
    """The device to train on; InputError when it is not there."""
    try:
        return choose_device(run.device)
    except InputError as error:
        raise InputError(f"{error}; {DOCTOR}") from error


def compile_fault(error: RuntimeError) -> str:
    """The compiler's error in one line, of many; empty where it is not the compiler that failed."""
    # An attribute of torch's BackendCompilerFailed, whose import takes a second that most runs need not spend.
    inner = getattr(error, "inner_exception", None)
    if inner is None or ("compile" not in str(inner) and not isinstance(inner, OSError)):
        return ""
    lines = str(inner).splitlines() or [type(inner).__name__]
    reason = next((line.strip() for line in lines if "error: " in line), lines[0])
    full = os.strerror(errno.ENOSPC) in str(inner)
    mend = f"make room in {tempfile.gettempdir()}" if full else "install a C++ compiler"
    remedy = f"{mend} or use --no-compile; {DOCTOR}"
    return f"the step cannot be compiled ({reason}), expected torch.compile to work; {remedy}"


def check_access(run: Run, ranks: Ranks) -> None:
    """InputError where the token file, the TLS files, or a folder for what is compiled cannot be used."""
    if run.token_file and ranks.is_leader:
        read_tokens(run.token_file)
    if run.tls_certificate and run.tls_key:
        check_tls(run.tls_certificate, run.tls_key)
    if run.compile:
        try:
            tempfile.gettempdir()
        except OSError as error:
            what = f"no folder for temporary files can be written ({error.strerror}), expected one to compile in"
            raise InputError(f"{what}; set TMPDIR or use --no-compile") from error


def serve(run: Run, ranks: Ranks, listener: socket, responses: Responses, control_queue: ControlQueue) -> ServerProcess:
    """The HTTP server; only rank 0's takes acts."""
    tls = (run.tls_certificate, run.tls_key) if run.tls_certificate and run.tls_key else None
    return ServerProcess(
        listener,
        responses,
        control_queue,
        token_file=run.token_file if ranks.is_leader else None,
        is_leader=ranks.is_leader,
        tls=tls,
        say=say,
    )


def address(listener: socket) -> str:
    """Where others reach a listening socket, HOST:PORT: by this machine's name where it listens on all addresses."""
    bound, port = listener.getsockname()[:2]
    return host_and_port(gethostname() if bound in ("0.0.0.0", "::") else bound, port)


def main() -> int:
    """Train as the command line says."""
    run = parse_run(sys.argv[1:])
    keep_freed_memory()
    if run.replay:
        end_on_signals()
        if is_torchelastic_launched():
            raise InputError("--replay is given to several processes, expected one; call it without torchrun")
        return replay(run, device_of(run))
    stop = GracefulStop()
    if not is_torchelastic_launched():  # until training starts, SIGTERM must end a rank that waits for others
        stop.listen()
    device = device_of(run)
    try:
        with join_ranks(device, run.stall_seconds * COMPILE_FACTOR) as ranks, ExitStack() as stack:
            try:
                worker, responses = build_worker(run, device, ranks, stop, stack)
            except torch.AcceleratorError as error:
                reason = str(error).partition("\n")[0]
                remedy = f"use --device cpu; {DOCTOR}"
                raise InputError(f"the GPU does not start ({reason}), expected it to compute; {remedy}") from error
            status = train(worker)
            if stop.signal is None:  # after a signal, its sender waits for this process to end
                responses.wait_for_last_scrape()
    except RanksLost as error:
        say(f"error: {error}")
        return EXIT_FAULTS
    stop.ignore()
    return status


if __name__ == "__main__":
    run_command(main)
