"""What a process does to a folder, call by call: recorded by a library that is preloaded into it."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from failing_calls import compiled

SOURCE = Path(__file__).with_suffix(".c")


def library(folder: Path) -> Path:
    """The library that records, compiled into a folder unless it is there."""
    return compiled(SOURCE, folder)


def record(command: Sequence[str], below: Path, calls: Path, made: Path, **more: str) -> list[list[str]]:
    """Run a command that ends well; its calls on `below`, each as the fields of its line, and what it wrote to `calls`.

    `calls` is a file that the command may append marks to, whose name is in RECORDED_IN. made: the library.
    """
    variables = {"LD_PRELOAD": str(made), "RECORDED_BELOW": str(below), "RECORDED_IN": str(calls)}
    done = subprocess.run(command, env=os.environ | variables | more, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("\t") for line in calls.read_text(encoding="utf-8").splitlines()]
