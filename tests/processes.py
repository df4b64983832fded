"""Real training processes for tests: small pictures, a small head, real signals."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pictures import write_tree
from pipeline.shard import ShardOptions, shard

PATIENCE = 240.0  # seconds; only a failing test waits so long


def small_shards(folder: Path, val: bool = True) -> Path:
    """Shards of 30 training and 9 validation pictures in three classes, 72 pixels."""
    splits = {"train": {"a": 10, "b": 10, "c": 10}} | ({"val": {"a": 3, "b": 3, "c": 3}} if val else {})
    source = write_tree(folder / "source", splits, 90, 80)
    assert shard(ShardOptions(source=source, out=folder / "shards", size=72, workers=1, shard_samples=8)) == 0
    return folder / "shards"


def command(shards: Path, out: Path, *options: str) -> list[str]:
    """The command line of a small run, eager and on a free port unless `options` say otherwise."""
    base = [
        "demo",
        "--data.shards",
        str(shards),
        "--out",
        str(out),
        "--data.crop",
        "67",
        "--model.fc-width",
        "64",
        "--no-compile",
    ]
    arguments = [*base, "--batch-size", "8", "--port", "0", *options]
    return [sys.executable, "-m", "service.train", *arguments]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a worker with its output piped."""
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(arguments: list[str]) -> tuple[int, str]:
    """Run a worker to its end: exit status and output."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


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
    return {r["step"]: r["loss"] for r in records(out) if "validation" not in r}
