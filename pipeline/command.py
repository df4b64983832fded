"""What every command shares: exit codes, one-line error messages, signals, standard streams, and UTF-8."""

import errno
import io
import os
import select
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn, TextIO

EXIT_DONE: Final = 0
EXIT_FAULTS: Final = 1  # the work found faults
EXIT_WRONG_CALL: Final = 2


class InputError(Exception):
    """The call or its input is wrong; the message is one line: what, expected, remedy.

    Names in it may come from files of others: what cannot be printed is escaped, which also keeps it one line.

    Not a ValueError, so that tyro lets it through from a dataclass's `__post_init__` to the one line of `run_command`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class _Ended(KeyboardInterrupt):
    """A signal that ends the command, taken as Ctrl-C is."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.status = 128 + number


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the command as Ctrl-C does, so that workers, locks and temporary folders go.

    The status is 128 and the signal's number. SIGHUP, which comes when a terminal is closed, stays ignored where it was
    when the process started: by `nohup`.
    """
    for number in (signal.SIGTERM, *hangup()):
        signal.signal(number, _end)


def hangup() -> tuple[int, ...]:
    """SIGHUP, unless this process was started with it ignored."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


def run_command(main: Callable[[], int], *, results: bool = False) -> NoReturn:
    """Exit with main's status; a wrong call is one line on stderr and status 2, Ctrl-C is status 130.

    Standard streams may be closed, full, or without a reader: what is printed is then lost, and the command does its
    work all the same. results: what it prints on stdout is its work, so that to lose it for want of room is status 2.
    """
    _require_utf8()
    _open_streams()
    sys.argv[1:] = map(_expand_home, sys.argv[1:])
    sys.unraisablehook = _unraisable
    try:
        status = main()
        sys.stdout.flush()
        output = output_of(sys.stdout)
        if results and output and output.fault and not output.reader_gone:
            why = output.fault.strerror
            raise InputError(f"stdout cannot be written ({why}), expected room for the results; run the same again")
    except InputError as error:
        sys.stdout.flush()  # into a pipe it is buffered, and the error is to be the last line of both
        say(f"error: {error}")
        status = EXIT_WRONG_CALL
    except KeyboardInterrupt as stop:
        _exit_at_once(stop)
    sys.exit(status)


def _require_utf8() -> None:
    """Start this command anew in Python's UTF-8 mode where the locale has another encoding.

    Names of files and the bytes of a data set must not depend on a locale; processes that are started inherit it. Not
    where `-X utf8=0` forbids it.
    """
    if sys.getfilesystemencoding() == "utf-8" or "utf8" in sys._xoptions:
        return
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, os.environ | {"PYTHONUTF8": "1"})


def _expand_home(argument: str) -> str:
    """~ and ~user where a shell has not expanded them: in --out=~/x, in quotes, in YAML."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + os.path.expanduser(value)


class Output(io.FileIO):
    """Standard output or error that cannot fail: what cannot be written is lost, and counted."""

    lost = 0  # writes
    fault: OSError | None = None  # the first

    @property
    def reader_gone(self) -> bool:
        """Whether nobody reads on: `head` has enough, or the terminal is closed."""
        number = self.fault and self.fault.errno
        return number == errno.EPIPE or (number == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode))

    def write(self, data: Any, /) -> int:
        """Write, or lose, all or part of it; waits for a reader that is slow."""
        try:
            while (written := super().write(data)) is None:  # another program has made it not block
                select.select([], [self], [])
        except OSError as error:
            self.lost, self.fault = self.lost + 1, self.fault or error
            return len(data)
        return written


def _open_streams() -> None:
    """Give this process standard streams that are open, cannot fail, and escape what they cannot encode."""
    for number in (0, 1, 2):  # in this order: open takes the lowest number that is free
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)
    if sys.stdout is sys.__stdout__:  # else a caller has put its own there
        sys.stdout = _robust(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _robust(sys.stderr, 2)


def _robust(stream: TextIO | None, number: int) -> TextIO:
    # Unbuffered (python -u, as under torchrun and in containers) is by lines here: no line waits, as is meant.
    at_once = getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False)
    # Where there was none a library may have opened a file of its own under that number since.
    place = os.devnull if stream is None else number
    output = io.BufferedWriter(Output(place, "w", closefd=stream is None))
    encoding = getattr(stream, "encoding", "utf-8")
    return io.TextIOWrapper(output, encoding=encoding, errors="backslashreplace", line_buffering=at_once)


def output_of(stream: TextIO) -> Output | None:
    """What is below `sys.stdout` or `sys.stderr` under `run_command`; None elsewhere."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Output) else None


def _end(number: int, _frame: object) -> NoReturn:
    raise _Ended(number)


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # The signal came while a finaliser was running: Python would ignore the exception, and the command would go on. Its
    # workers end with it, and the next run removes files that are half-written.
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _exit_at_once(unraisable.exc_value)
    sys.__unraisablehook__(unraisable)


def _exit_at_once(stop: KeyboardInterrupt) -> NoReturn:
    # What is left has been cleaned up on the way here, and an orderly exit would wait for threads that may wait for
    # workers that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(stop.status if isinstance(stop, _Ended) else 128 + signal.SIGINT)


def printable(text: str) -> str:
    """`text` for a message of one line: what cannot be printed, as file names may hold, is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def say(message: str) -> None:
    """A line on stderr, before there is a display."""
    sys.stderr.write(message + "\n")
