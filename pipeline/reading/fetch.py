"""Ranges of a store's objects, asked for until they come: stores fail for a moment, every day."""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from pipeline.command import InputError, printable
from pipeline.folder import Folder

PATIENCE_SECONDS: float = 120.0  # for which a failing store is asked again
FIRST_PAUSE: Final = 0.1  # seconds; twice as long each time, so that a store that is overloaded recovers
LONGEST_PAUSE: Final = 10.0
_T = TypeVar("_T")


def read_range(folder: Folder, name: str, start: int, stop: int) -> bytes:
    """An object's bytes from start to before stop; fewer or others where the store sends such.

    InputError where there is no such object, or the store has failed for PATIENCE_SECONDS.
    """
    data = patiently(lambda: folder.read(name, start, stop), f"{folder.place}/{name}")
    # A server that does not know ranges sends all of it.
    return data[start:stop] if len(data) > stop - start else data


def patiently(ask: Callable[[], _T], place: str) -> _T:
    """What `ask` returns once it succeeds; InputError, naming `place`, where it does not."""
    deadline, pause, tries = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE, 0
    while True:
        try:
            return ask()
        except (FileNotFoundError, NotADirectoryError) as error:
            remedy = "copy the data set there whole, or give another --data.shards"
            raise InputError(f"{place} is not there, expected a file of the data set; {remedy}") from error
        except OSError as error:
            tries += 1
            wait = pause * random.uniform(0.5, 1.0)  # so that ranks that failed together do not come back together
            if time.monotonic() + wait > deadline:
                raise _given_up(place, error, tries) from error
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)


def _given_up(place: str, error: OSError, tries: int) -> InputError:
    reason = printable(str(error.strerror or error))
    remedy = "see to the store, its address (AWS_ENDPOINT_URL) and credentials, then start again"
    return InputError(f"{place} cannot be read ({reason}; {tries} tries), expected a file of the data set; {remedy}")
