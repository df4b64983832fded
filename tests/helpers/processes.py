"""Real training processes for tests: small pictures, a small head, real signals."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pictures import write_tree
from pipeline.shard import ShardOptions, shard
from service.run.checkpoint import FOLDER

PATIENCE = 240.0  # seconds; only a failing test waits so long


def small_shards(folder: Path, val: bool = True) -> Path:
    """Shards of 30 training and 9 validation pictures in three classes, 72 pixels."""
    splits = {"train": {"a": 10, "b": 10, "c": 10}} | ({"val": {"a": 3, "b": 3, "c": 3}} if val else {})
    source = write_tree(folder / "source", splits, 90, 80)
    assert shard(ShardOptions(source=source, out=str(folder / "shards"), size=72, workers=1, shard_samples=8)) == 0
    return folder / "shards"


def command(shards: Path | str, out: Path, *options: str) -> list[str]:
    """The command line of a small run at one rate, eager and on a free port unless `options` say otherwise."""
    base = ["demo", "--data.shards", str(shards), "--out", str(out), "--data.crop", "67", "--model.fc-width", "64"]
    base += ["--optim.lr", "0.01", "--optim.drop-epochs", "1e9", "--no-compile", "--batch-size", "8", "--port", "0"]
    return [sys.executable, "-m", "service.train", *base, *options]


# All that a modern recipe adds, in a run of 12 steps of 10 over `small_shards`.
MODERN = (
    "--optim.schedule cosine --optim.warmup-epochs 1 --optim.trust-ratio 0.01 --optim.lr 0.5 "
    "--optim.label-smoothing 0.1 --optim.average-decay 0.9 --data.augment.crop resized --batch-size 10 --epochs 4"
).split()


def torchrun(arguments: list[str], ranks: int, *options: str) -> list[str]:
    """The same command by so many ranks of torchrun, on this machine alone unless `options` say otherwise."""
    where = () if "--rdzv-endpoint" in options else ("--standalone",)
    launcher = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "torch.distributed.run"]  # else it warns of doing so
    return [*launcher, *where, "--nproc-per-node", str(ranks), *options, *arguments[1:]]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a worker with its output piped."""
    env = os.environ | environment
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def run(arguments: list[str], **environment: str) -> tuple[int, str]:
    """Run a worker to its end: exit status and output."""
    env = os.environ | environment
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, env=env)
    return done.returncode, done.stdout + done.stderr


CALLED_IN_TURN = """
import contextlib, io, json, sys
from pipeline.command import run_command
from importlib import import_module

main = import_module(sys.argv[1]).main

for sys.argv[1:] in json.loads(sys.stdin.read()):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        try:
            run_command(main)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, said.getvalue()]))
"""


def wrong_in_turn(*calls: list[str]) -> list[str]:
    """The error lines of wrong calls of a command, by one process: to start one for each takes long."""
    given = json.dumps([arguments[3:] for arguments in calls])
    done = subprocess.run(
        [sys.executable, "-c", CALLED_IN_TURN, calls[0][2]], input=given, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = []
    for status, output in map(json.loads, done.stdout.splitlines()):
        assert status == 2, output
        (line,) = output.splitlines()
        assert line.startswith("error: "), output
        found.append(line)
    return found


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, theirs too."""
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    try:
        children = [int(child) for path in paths for child in path.read_text().split()]
    except OSError:  # it has just ended
        return []
    return [each for child in children for each in (child, *descendants(child))]


def is_server(pid: int) -> bool:
    """Whether a process is a worker's that answers HTTP."""
    try:
        return b"service.web.api" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def rank_pids(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """The ranks that a torchrun has started, by number."""
    found = {}
    for pid in descendants(launcher.pid):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")]
        if ranks and b"--out" in words:  # not the compiler's helpers, which inherit the variables
            found[ranks[0]] = pid
    return found


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """The condition's first true value; fails when the worker ends before, or after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        if process.poll() is not None:
            raise AssertionError(f"the worker ended with {process.returncode}:\n{process.communicate()[0]}")
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"waited {PATIENCE} s in vain:\n{process.communicate()[0]}")


def records(out: Path) -> list[dict[str, Any]]:
    """The complete records of log.jsonl."""
    path = out / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(out: Path) -> dict[int, float]:
    """Loss by step."""
    return {r["step"]: r["loss"] for r in records(out) if "gradient_norm" in r}


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and momentum of both towers at a step."""
    folder = out / FOLDER / f"step-{step:08d}"
    return {name: t for tower in (0, 1) for name, t in load_file(folder / f"towers-{tower}.safetensors").items()}
