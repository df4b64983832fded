"""A lease on a prefix of an object store: an object that its owner rewrites every RENEW_SECONDS.

Clocks are not compared: a lease has expired when another run has watched it for EXPIRY_SECONDS without a change.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from pipeline.command import InputError
from pipeline.folder import Folder

LEASE_FILE: Final = "unfinished.lease"
RENEW_SECONDS: float = 10.0
EXPIRY_SECONDS: float = 60.0  # long enough that a few failed renewals do not lose the lease


@contextmanager
def hold_lease(folder: Folder) -> Iterator[Callable[[], None]]:
    """Hold the lease of `folder`; yields a check that raises InputError once another run has it.

    InputError when another run holds it. The lease of a killed run expires: this waits EXPIRY_SECONDS to see that.
    """
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
    _acquire(folder, owner)
    ended, lost = threading.Event(), threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder, owner, ended, lost), daemon=True)
    renewing.start()

    def check() -> None:
        if lost.is_set():
            raise InputError(f"{folder.place} is now written by another run, expected to be alone; wait for that one")

    try:
        yield check
    finally:
        ended.set()
        renewing.join()
        if _read(folder).get("token") == owner["token"]:
            folder.remove(LEASE_FILE)


def _acquire(folder: Folder, owner: dict[str, object]) -> None:
    if folder.create(LEASE_FILE, _content(owner, 0)):
        return
    if _is_expired(folder):
        folder.write(LEASE_FILE, _content(owner, 0))
        time.sleep(RENEW_SECONDS / 5)  # another run may have done the same: the last to write has the lease
    elif folder.create(LEASE_FILE, _content(owner, 0)):  # it was given back
        return
    if _read(folder).get("token") != owner["token"]:
        raise InputError(f"another run is writing {folder.place}, expected to be alone; wait for it")


def _is_expired(folder: Folder) -> bool:
    """Whether the present lease has expired; False if it is released, InputError if it is renewed."""
    first = _read(folder)
    described = f"{folder.place} is held by process {first.get('pid')} of {first.get('host')}"
    sys.stderr.write(f"notice: {described}; watching for {EXPIRY_SECONDS:.0f} s whether it still runs\n")
    deadline = time.monotonic() + EXPIRY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(RENEW_SECONDS / 5)
        now = _read(folder)
        if not now:
            return False
        if now != first:
            raise InputError(f"another run is writing {described}, which lives; expected to be alone; wait for it")
    return True


def _renew(folder: Folder, owner: dict[str, object], ended: threading.Event, lost: threading.Event) -> None:
    renewals = 0
    while not ended.wait(RENEW_SECONDS):
        renewals += 1
        try:
            if _read(folder).get("token", owner["token"]) != owner["token"]:
                lost.set()
                return
            folder.write(LEASE_FILE, _content(owner, renewals))
        except OSError as error:  # the store may be away for a while: the next renewal tries again
            sys.stderr.write(f"notice: the lease of {folder.place} could not be renewed: {error}\n")


def _read(folder: Folder) -> dict[str, object]:
    try:
        return json.loads(folder.read(LEASE_FILE))
    except (FileNotFoundError, ValueError):
        return {}


def _content(owner: dict[str, object], renewals: int) -> bytes:
    return json.dumps({**owner, "renewals": renewals}).encode("ascii")
