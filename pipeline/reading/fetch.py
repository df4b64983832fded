"""Ranges of a store's objects, asked for until they come: stores fail for a moment, every day."""

import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from pipeline.command import InputError, printable, say
from pipeline.folder import Folder

PATIENCE_SECONDS: float = 120.0  # for which a failing store is asked again
REFUSAL_SECONDS: float = 5.0  # for which one is that has never answered, and refuses or cannot be found
FIRST_PAUSE: Final = 0.1  # seconds; twice as long each time, so that a store that is overloaded recovers
LONGEST_PAUSE: Final = 10.0
_REFUSED: Final = (401, 403)  # of HTTP
_NO_HOST: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
# What the libraries of stores raise for want of credentials, by name: any of them may not be installed.
_NO_CREDENTIALS: Final = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),  # botocore
    *("DefaultCredentialsError", "ClientAuthenticationError"),  # Google, Azure
}
_T = TypeVar("_T")
_lock, _noticed, _answered = threading.Lock(), set[str](), set[str]()  # stores


def read_range(folder: Folder, name: str, start: int, stop: int) -> bytes:
    """An object's bytes from start to before stop; fewer or others where the store sends such.

    InputError where there is no such object, or the store has failed for PATIENCE_SECONDS.
    """
    data = patiently(lambda: folder.read(name, start, stop), folder.place, name)
    # A server that does not know ranges sends all of it.
    return data[start:stop] if len(data) > stop - start else data


def patiently(ask: Callable[[], _T], store: str, name: str) -> _T:
    """What `ask` returns once it succeeds; InputError, naming the object, where it does not.

    The first failure of a store is said on stderr. A refusal ends sooner than PATIENCE_SECONDS, unless this store has
    answered before: then a run is there to be lost, and credentials may just be renewed.
    """
    place, pause, tries = f"{store}/{name}", FIRST_PAUSE, 0
    begun, refused = time.monotonic(), None
    while True:
        try:
            answer = ask()
            _answered.add(store)
            return answer
        except (FileNotFoundError, NotADirectoryError) as error:
            remedy = "copy the data set there whole, or give another --data.shards"
            raise InputError(f"{place} is not there, expected a file of the data set; {remedy}") from error
        except OSError as error:
            tries += 1
            now, deadline = time.monotonic(), begun + PATIENCE_SECONDS
            refused = (refused or now) if _is_refusal(error) else None
            if refused is not None and store not in _answered:
                deadline = min(deadline, refused + REFUSAL_SECONDS)
            wait = pause * random.uniform(0.5, 1.0)  # so that ranks that failed together do not come back together
            if now + wait > deadline:
                raise _given_up(place, error, tries) from error
            _notice(store, error, deadline - now)
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)


def _notice(store: str, error: OSError, seconds: float) -> None:
    """Say once of a store that it fails: a wait of minutes without a word looks as if the process hung."""
    with _lock:
        if store in _noticed:
            return
        _noticed.add(store)
    say(f"notice: {store} fails ({_reason(error)}); it is asked again, for up to {seconds:.0f} seconds")


def _is_refusal(error: BaseException | None) -> bool:
    """Whether a store says no, credentials are missing, or its host does not exist: by this or what caused it."""
    while error is not None:
        said = getattr(error, "status", None) or getattr(error, "code", None)
        no_host = isinstance(error, socket.gaierror) and error.errno in _NO_HOST
        refused = isinstance(error, PermissionError) or said in _REFUSED or type(error).__name__ in _NO_CREDENTIALS
        if no_host or refused:
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: OSError) -> str:
    return printable(str(error.strerror or error))


def _given_up(place: str, error: OSError, tries: int) -> InputError:
    reason = _reason(error)
    remedy = "see to the store, its address (AWS_ENDPOINT_URL) and credentials, then start again"
    return InputError(f"{place} cannot be read ({reason}; {tries} tries), expected a file of the data set; {remedy}")
