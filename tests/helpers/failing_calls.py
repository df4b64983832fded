"""Processes whose system calls fail as on file systems that lack something: locks, mapping, a flush to the disk."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
WHY_NOT = "needs a C compiler"
ALWAYS = -1
UNKNOWN_SIZE = -1  # in place of an error's number, of statvfs
HANGS = -2  # in place of an error's number: the call returns when the rule is gone

IN_TURN = """
import contextlib, io, json, os, sys
from importlib import import_module
from pipeline.command import run_command

for module, rules, sys.argv[1:] in json.loads(sys.stdin.read()):
    main = import_module(module).main
    os.environ["FAILING_CALLS"] = rules
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        try:
            run_command(main)
        except SystemExit as end:
            status = end.code
    os.environ["FAILING_CALLS"] = ""
    print(json.dumps([status, said.getvalue()]))
"""


class Failing(NamedTuple):
    """A call that fails at a path and below it: `times` times, or always.

    call: fsync (of files), fsync_folder, open_folder, open_to_write, flock, mmap, write, pread, rename, mkdir, unlink,
    statvfs, sem_open; or clock, which is then set by `error` seconds.
    """

    call: str
    error: str | int  # its name, UNKNOWN_SIZE or HANGS
    path: Path | str
    times: int = ALWAYS

    def __str__(self) -> str:
        number = getattr(errno, self.error) if isinstance(self.error, str) else self.error
        return f"{self.call} {number} {self.times} {self.path}"


class Call(NamedTuple):
    """A command of the project, by its module, and what fails meanwhile."""

    module: str
    arguments: tuple[str, ...]
    failing: tuple[Failing, ...] = ()


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    output: str  # stdout and stderr

    @property
    def last(self) -> str:
        """The last line of the output."""
        return self.output.splitlines()[-1]


def rules(*failing: Failing) -> str:
    """What the library reads from FAILING_CALLS."""
    return "\n".join(map(str, failing))


def library(folder: Path) -> Path:
    """The library that makes calls fail, compiled into a folder unless it is there."""
    return compiled(SOURCE, folder)


def compiled(source: Path, folder: Path) -> Path:
    """A library to preload, compiled into a folder unless it is there."""
    made = folder / source.with_suffix(".so").name
    if not made.exists():
        assert COMPILER, WHY_NOT
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl", "-lpthread"], check=True)
    return made


def environment(made: Path, *failing: Failing) -> dict[str, str]:
    """Variables of a process in which these calls fail; made: the library."""
    return os.environ | {"LD_PRELOAD": str(made), "FAILING_CALLS": rules(*failing)}


def call_in_turn(made: Path, calls: Mapping[str, Call]) -> dict[str, Ended]:
    """How each of some calls ends, by name, all in one process: to start one for each takes long."""
    given = json.dumps([(call.module, rules(*call.failing), call.arguments) for call in calls.values()])
    command = [sys.executable, "-c", IN_TURN]
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment(made), timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    ended = [Ended(*json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(calls, ended, strict=True))
