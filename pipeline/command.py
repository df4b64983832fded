"""The edge that every command shares: one line for a wrong call, and honest exit codes."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

DONE: Final = 0
FAULTS: Final = 1  # the work found faults
WRONG_CALL: Final = 2


class InputError(Exception):
    """The call or its input is wrong; the message is one line: what, expected, remedy.

    Not a ValueError, so that tyro lets it through from a dataclass's `__post_init__` to the one line of `run_command`.
    """


def run_command(main: Callable[[], int]) -> NoReturn:
    """Exit with main's status; a wrong call is one line on stderr and status 2, Ctrl-C is status 130."""
    try:
        status = main()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        status = WRONG_CALL
    except KeyboardInterrupt:
        # At once: what is left has been cleaned up on the way here, and an orderly exit would wait for threads that
        # may wait for workers that are gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + signal.SIGINT)
    sys.exit(status)
