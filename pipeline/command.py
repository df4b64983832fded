"""What every command shares: exit codes, one-line error messages, and how signals end it."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

EXIT_DONE: Final = 0
EXIT_FAULTS: Final = 1  # the work found faults
EXIT_WRONG_CALL: Final = 2


class InputError(Exception):
    """The call or its input is wrong; the message is one line: what, expected, remedy.

    Not a ValueError, so that tyro lets it through from a dataclass's `__post_init__` to the one line of `run_command`.
    """


class _Terminated(KeyboardInterrupt):
    """SIGTERM, taken as Ctrl-C is."""


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the command as Ctrl-C does, so that workers, locks and temporary folders go; status 143."""
    signal.signal(signal.SIGTERM, _terminate)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Exit with main's status; a wrong call is one line on stderr and status 2, Ctrl-C is status 130."""
    sys.unraisablehook = _unraisable
    try:
        status = main()
    except InputError as error:
        sys.stdout.flush()  # into a pipe it is buffered, and the error is to be the last line of both
        sys.stderr.write(f"error: {error}\n")
        status = EXIT_WRONG_CALL
    except KeyboardInterrupt as stop:
        _exit_at_once(type(stop))
    sys.exit(status)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # The signal came while a finaliser was running: Python would ignore the exception, and the command would go on. Its
    # workers end with it, and the next run removes files that are half-written.
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _exit_at_once(unraisable.exc_type)
    sys.__unraisablehook__(unraisable)


def _exit_at_once(stop: type[BaseException]) -> NoReturn:
    # What is left has been cleaned up on the way here, and an orderly exit would wait for threads that may wait for
    # workers that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + (signal.SIGTERM if issubclass(stop, _Terminated) else signal.SIGINT))


def printable(text: str) -> str:
    """`text` for a message of one line: what cannot be printed, as file names may hold, is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def say(message: str) -> None:
    """A line on stderr, before there is a display."""
    sys.stderr.write(message + "\n")
