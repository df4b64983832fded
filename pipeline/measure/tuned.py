"""tuned.json, beside a data set: the loading options that were fastest there, by type of machine.

`pipeline.bench --tune` writes it and the worker reads it. It holds nothing that changes a picture: what a run computes
does not depend on a file that may come and go.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline.command import InputError, printable
from pipeline.files import write_atomic
from pipeline.foreign import checked, read_json
from pipeline.host.machine import Machine
from pipeline.load.config import MOST_PADDING, MOST_SIDE, DataConfig
from pipeline.manifest import DATASET_FILE

VERSION: Final = 1
NOT_GIVEN: Final[dict[str, Any]] = {  # what may be taken
    "threads": 0,
    "prefetch": 0,
    "hw_decoder_load": None,
    "decoder_hint": None,
    "decoder_padding": None,
}
_MOST_BYTES: Final = 2**20
_MOST: Final = 1024  # threads, and batches ahead


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The options that were fastest on a type of machine."""

    threads: int
    prefetch: int
    hw_decoder_load: float | None = None
    decoder_hint: int | None = None
    decoder_padding: int | None = None
    decoding: str = "exact"  # "fast" changes pixels: it is named to the user, who may give it, and never taken
    images_per_second: float = 0.0
    gain: float = 1.0  # times what the options' defaults gave in the same rounds
    batch_size: int = 0  # with which it was measured

    def __post_init__(self) -> None:
        whole = [(self.threads, 1, _MOST), (self.prefetch, 1, _MOST), (self.batch_size, 0, 2**31)]
        whole += [(self.decoder_hint or 0, 0, MOST_SIDE), (self.decoder_padding or 0, 0, MOST_PADDING)]
        if any(type(value) is not int or not least <= value <= most for value, least, most in whole):
            raise ValueError(
                f"threads {self.threads!r}, prefetch {self.prefetch!r}, batch_size {self.batch_size!r} or memory"
            )
        shares = [(self.hw_decoder_load or 0, 1.0), (self.images_per_second, 1e9), (self.gain, 1e9)]
        if any(type(value) not in (int, float) or not 0 <= value <= most for value, most in shares):
            raise ValueError(f"hw_decoder_load {self.hw_decoder_load!r} or a speed")
        if self.decoding not in ("exact", "fast"):
            raise ValueError(f"decoding {self.decoding!r}")


def read_tuned(path: Path) -> dict[Machine, Tuned]:
    """What a tuned.json holds, nothing where there is none; InputError where it is not one."""
    try:
        fields = read_json(path, _MOST_BYTES)
        if fields["version"] != VERSION:
            raise ValueError(f"version {fields['version']!r}")
        return {checked(Machine, each["machine"]): Tuned(**each["tuned"]) for each in fields["machines"]}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected options by pipeline.bench") from error
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path} is damaged or another program's ({error!r:.80}), expected options by pipeline.bench"
        raise InputError(f"{what}; remove it and tune again") from error


def save_tuned(path: Path, machine: Machine, tuned: Tuned) -> None:
    """Put a machine's options into a tuned.json, in place of those it had; the other machines' stay.

    InputError where it cannot be written. A file that is not one is replaced.
    """
    try:
        with _one_writer(path.parent):
            try:
                machines = read_tuned(path)
            except InputError:
                machines = {}
            machines[machine] = tuned
            entries = [{"machine": asdict(m), "tuned": asdict(t)} for m, t in machines.items()]
            write_atomic(path, (json.dumps({"version": VERSION, "machines": entries}, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}), {_REMEDY}") from error


_REMEDY: Final = "expected a folder that is writable; give --save FILE, or the options to the worker as printed"


def check_writable(path: Path) -> None:
    """InputError, before anything is measured, where a tuned.json cannot be written."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EISDIR if path.is_dir() else errno.EROFS if folder.is_dir() else errno.ENOENT)
        raise InputError(f"{path} cannot be written ({reason}), {_REMEDY}")


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Hosts that share a data set write one after another, where its file system has locks."""
    with (folder / DATASET_FILE if (folder / DATASET_FILE).exists() else Path(os.devnull)).open("rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def apply_tuned(config: DataConfig, path: Path, machine: Machine, *, share: float = 1.0) -> tuple[DataConfig, str]:
    """The options with what a tuned.json has for this machine where they are not given, and that in a line.

    share: of the machine's cores that this process has; it gets as large a share of the threads. The line is empty
    where nothing was taken, and says why where a file cannot be used.
    """
    if not config.tuned:
        return config, ""
    try:
        tuned = read_tuned(path).get(machine)
    except InputError as error:
        return config, printable(f"notice: {error}; its options are not taken")
    if tuned is None:
        return config, ""
    values = {**asdict(tuned), "threads": max(1, round(tuned.threads * share))}
    taken = {
        name: values[name]
        for name, missing in NOT_GIVEN.items()
        if getattr(config, name) == missing and values[name] is not None
    }
    said = [f"{name} {value}" for name, value in taken.items()]
    fast = tuned.decoding == "fast" and config.decoding == "exact"
    hint = "; --data.decoding fast is faster and changes pixels" if fast else ""
    words = f"{path}: {', '.join(said) if said else 'nothing to take'}{hint}"
    return replace(config, **taken), printable(words) if taken or fast else ""


def flags_of(tuned: Tuned) -> str:
    """The same as flags of service.train."""
    values = asdict(tuned)
    given = [name for name in NOT_GIVEN if values[name] is not None]
    flags = [f"--data.{name.replace('_', '-')} {values[name]}" for name in given]
    return " ".join([*flags, *(["--data.decoding fast"] if tuned.decoding == "fast" else [])])
