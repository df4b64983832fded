"""Crash-safe checkpoints: written aside, fsynced, listed with their hashes, then renamed; verified when read.

RUN/checkpoints/step-00001000/  towers-0.safetensors towers-1.safetensors (or network.safetensors) state.json run.json
                                preprocessing.json mean.npy manifest.json
RUN/checkpoints/LATEST          a hint for people and scripts; loading trusts only a manifest that verifies
"""

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Annotated, Any, Final

import torch
from pydantic import FailFast, Field
from safetensors import safe_open
from safetensors.torch import load as deserialise
from torch import Tensor

from model.network import Network
from model.optim import MomentumSGD
from pipeline.command import InputError, say
from pipeline.files import (
    atomic_writer,
    fsync_folder,
    is_temporary,
    make_folders,
    open_regular,
    remove_each,
    sha256_of,
    write_atomic,
)
from pipeline.foreign import FORBID_UNKNOWN, Count, FileName, Measured, Sha256, checked, read_json
from service.run.event_fields import check_event

FOLDER: Final = "checkpoints"
MANIFEST: Final = "manifest.json"
LATEST: Final = "LATEST"
SCHEMA_VERSION: Final = 1
NETWORK_FILE: Final = "network.safetensors"
# Bytes that are read at most: of manifest.json; of a safetensors file's header, which says where each tensor lies, and
# in an exported one what the classes are called; of any file.
MOST_MANIFEST: Final = 2**20
_MOST_HEADER: Final = 16 * 2**20
_MOST_FILE: Final = 64 * 2**30
_LACKS_MEMORY: Final = re.compile("not enough memory|Cannot allocate memory")  # in torch's errors
_DTYPES: Final = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
_LEFT: Final = ("tmp", "replaced", "removed")  # with a dot before: what is no checkpoint yet, or no more
# Before a velocity's name in a tower's file, and before an averaged weight's; weights have their plain names.
MOMENTUM: Final = "momentum."
AVERAGE: Final = "average."

Tensors = dict[str, dict[str, Tensor]]  # by file name, then by tensor name


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The error on the whole validation set after an epoch."""

    __pydantic_config__ = FORBID_UNKNOWN

    epoch: Count
    step: Count
    loss: Measured
    top1: Measured  # error, 0..1
    top5: Measured


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The error of a finished network on the validation set, averaged over the paper's ten views of each picture."""

    __pydantic_config__ = FORBID_UNKNOWN

    epoch: Count
    step: Count
    views: Count
    samples: Count
    top1: Measured  # error, 0..1
    top5: Measured
    interval: tuple[Measured, Measured]  # 95% of the top-1 error


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands; with its tensors all that a resume needs (there is no random state)."""

    __pydantic_config__ = FORBID_UNKNOWN

    step: Count = 0
    position: Count = 0  # the next training position
    restarts: Count = 0
    history: Annotated[tuple[Validation, ...], FailFast()] = ()
    events: Annotated[tuple[dict[str, Any], ...], FailFast()] = ()
    evaluation: Evaluation | None = None  # of the finished network
    recent_losses: Annotated[
        tuple[tuple[Count, Measured], ...], FailFast()
    ] = ()  # by step, where a limit is made of them


@dataclass
class _Manifest:
    """What manifest.json holds: the size and the SHA-256 of each file."""

    schema_version: int
    files: Annotated[dict[FileName, tuple[Annotated[Count, Field(le=_MOST_FILE)], Sha256]], Field(max_length=1000)]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    state: RunState
    run: dict[str, Any]


def tower_file(tower: int | str) -> str:
    """The file with a tower's weights, velocities and averaged weights."""
    return f"towers-{tower}.safetensors"


def file_of(parameter: str) -> str:
    """The file that holds a parameter: its tower's, or that of a network that has none."""
    first, second, *_ = parameter.split(".")
    return tower_file(second) if first == "towers" else NETWORK_FILE


def state_tensors(model: Network, optimizer: MomentumSGD) -> Tensors:
    """Each tower's weights, velocities and, where kept, averaged weights themselves, which the next step changes."""
    files: Tensors = {}
    for name, weight in model.named_parameters():
        file = files.setdefault(file_of(name), {})
        file[name] = weight.detach()
        if name in optimizer.velocities:
            file[MOMENTUM + name] = optimizer.velocities[name]
        if name in optimizer.averages:
            file[AVERAGE + name] = optimizer.averages[name]
    return files


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A verified checkpoint's weights, velocities and averaged weights, of both towers."""
    return read_named(checkpoint.path, lambda name: True)


def read_named(checkpoint: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors whose names are wanted, of the files that a checkpoint's manifest lists; others are not its own."""
    found: dict[str, Tensor] = {}
    for file_name in sorted(_manifest(checkpoint).files):
        if file_name.endswith(".safetensors"):
            found |= read_tensor_file(checkpoint / file_name, wanted)
    return found


def read_tensor_file(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names are wanted; InputError where it is none."""
    try:
        tensor_header(path)
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}
        except (OSError, MemoryError, RuntimeError):  # the file system, or a limit, which torch reports
            return {name: tensor for name, tensor in deserialise(path.read_bytes()).items() if wanted(name)}
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a .safetensors file; mend that"
        ) from error
    except Exception as error:  # a type that torch does not know is an error of any type
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _LACKS_MEMORY.search(str(error))):
            raise  # this machine's fault, not the file's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} is damaged ({reason}), expected a .safetensors file; copy it again") from error


def tensor_header(path: Path) -> bytes:
    """The JSON that a safetensors file begins with; ValueError where that cannot be, whatever its length says."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"its header has {length:,} bytes, expected at most {_MOST_HEADER:,}")
        return file.read(length)


def read_weights(checkpoint: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The weights with which a checkpoint's network is used, by name: the averaged ones where it has them."""
    found = read_named(checkpoint, lambda name: not name.startswith(MOMENTUM) and wanted(name.removeprefix(AVERAGE)))
    averages = {name.removeprefix(AVERAGE): each for name, each in found.items() if name.startswith(AVERAGE)}
    return averages or found


@torch.no_grad()
def restore(
    tensors: Iterable[tuple[str, Tensor]], model: Network, optimizer: MomentumSGD, *, complete: bool = True
) -> None:
    """Copy named tensors, as `state_tensors` names them, into what this process holds; the rest is skipped.

    complete: all weights and velocities that it holds must be among them. An average that is not among them, as where
    a fork begins to average, starts from its weight.
    """
    held: dict[str, Tensor] = dict(model.named_parameters())
    held |= {MOMENTUM + name: velocity for name, velocity in optimizer.velocities.items()}
    averages = {AVERAGE + name: average for name, average in optimizer.averages.items()}
    for name, tensor in tensors:
        if (place := held.pop(name, averages.pop(name, None))) is not None:
            check_tensor("the checkpoint", name, tensor, place)
            place.copy_(tensor)
    for name, average in averages.items():
        average.copy_(optimizer.parameters[name.removeprefix(AVERAGE)])
    if complete and held:
        lacking = ", ".join(sorted(held)[:5])
        raise InputError(f"the checkpoint lacks {lacking}, expected all of the same run's; choose another one")


def check_tensor(path: Path | str, name: str, tensor: Tensor | None, place: Tensor | None) -> None:
    """InputError unless a tensor that `path` holds can be copied to a place of the network's."""
    have, want = ("nothing" if each is None else tuple(each.shape) for each in (tensor, place))
    if have != want:
        raise InputError(f"{path} holds {have} as {name[:100]}, expected {want}; give this network's weights")
    if tensor is not None and not tensor.is_floating_point():
        raise InputError(f"{path} holds {tensor.dtype} as {name}, expected floating point; give another one")


def save_checkpoint(
    run_folder: Path, state: RunState, tensors: Tensors, run: dict[str, Any], files: Mapping[str, bytes] | None = None
) -> Path:
    """Write a checkpoint: until the rename its name is one that loading ignores; after it the checkpoint is durable.

    files: what else it holds, by name. OSError where it cannot be written; what cannot be removed is no failure.
    """
    parent = run_folder / FOLDER
    final = parent / f"step-{state.step:08d}"
    attempt = f"{final.name}-{secrets.token_hex(4)}"  # what an earlier one has left may be there for good
    temporary = parent / f".tmp-{attempt}"
    make_folders(parent)
    temporary.mkdir()
    try:
        for name, file in tensors.items():
            with atomic_writer(temporary / name) as stream:
                _write_tensors(stream, file)
        _write_json(temporary / "state.json", asdict(state))
        _write_json(temporary / "run.json", run)
        for name, data in (files or {}).items():
            write_atomic(temporary / name, data)
        listed = {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(temporary.iterdir())}
        _write_json(temporary / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": listed})
        fsync_folder(temporary)
        # The same step again: its checkpoint did not verify, or lacks a validation that was done since.
        replaced = parent / f".replaced-{attempt}"
        if final.exists():
            final.rename(replaced)
        try:
            temporary.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(parent)  # and only then: a crash may undo the renames, but not what is removed
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def _write_tensors(stream: IO[bytes], tensors: Mapping[str, Tensor]) -> None:
    """Write the bytes that safetensors.torch.save gives, without holding them: a second copy of half a gigabyte.

    Its save_file holds none either, but says what the system's error was only in words, and lets nobody else read.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    ends = list(accumulate((tensors[name].nbytes for name in names), initial=0))
    header = {
        name: {"dtype": _DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        for name, begin, end in zip(names, ends, ends[1:], strict=False)
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        stream.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_latest(checkpoint: Path) -> None:
    """Name the newest checkpoint in LATEST, beside it."""
    write_atomic(checkpoint.parent / LATEST, f"{checkpoint.name}\n".encode())


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def checkpoints(run_folder: Path) -> list[Path]:
    """The folders of finished checkpoints, newest first, not yet verified; others beside them are not the run's."""
    folders = [path for path in (run_folder / FOLDER).glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(folders, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def checkpoint_faults(path: Path) -> Iterator[str]:
    """What is wrong with a checkpoint: nothing, if every file is there as the manifest lists it."""
    name = MANIFEST
    try:
        manifest = _manifest(path)
        if manifest.schema_version != SCHEMA_VERSION or not {"state.json", "run.json"} <= manifest.files.keys():
            yield f"its manifest is of another kind, expected schema version {SCHEMA_VERSION}"
        for name, (size, sha256) in manifest.files.items():
            if (path / name).stat().st_size != size:
                yield f"{name} has another size than its manifest says"
            elif sha256_of(path / name) != sha256:
                yield f"{name} is damaged"
    except OSError as error:
        yield f"{name} cannot be read ({error.strerror})"
    except ValueError as error:
        yield f"its manifest does not hold ({error!r})"


def _manifest(path: Path) -> _Manifest:
    return checked(_Manifest, read_json(path / MANIFEST, MOST_MANIFEST))


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint's folder and read its state; InputError says what is wrong with it."""
    wrong = list(checkpoint_faults(path))
    if wrong:
        raise InputError(f"{path} is no sound checkpoint: {'; '.join(wrong)}; choose another one")
    try:
        return Checkpoint(path, _read_state(path), checked(dict[str, Any], read_json(path / "run.json")))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected a checkpoint; mend that") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no sound checkpoint: its state is of another kind ({error!r:.300}); choose another one"
        ) from error


def _read_state(path: Path) -> RunState:
    state: RunState = checked(RunState, read_json(path / "state.json"))
    for event in state.events:
        check_event(event)
    return state


def identity_of(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint: of its manifest, which lists the hashes of all that is in it."""
    return sha256_of(checkpoint / MANIFEST)


def newest_checkpoint(run_folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where there is none; `warn` is called for each that does not.

    InputError when there are some and none verifies: a fresh start would then lose what could be repaired.
    """
    paths = checkpoints(run_folder)
    found = first_sound(paths, warn)
    if paths and not found:
        raise InputError(f"{run_folder} holds {len(paths)} checkpoints, none sound; restore one or give another --out")
    return found


def first_sound(paths: Iterable[Path], warn: Callable[[str], None]) -> Checkpoint | None:
    """The first that verifies, None where none does; `warn` is called for each before it."""
    for path in paths:
        try:
            return read_checkpoint(path)
        except InputError as error:
            warn(str(error))
    return None


def find_checkpoint(path: Path) -> Checkpoint:
    """The verified checkpoint at `path`, or the newest one of the run at `path`; InputError where there is none."""
    if (path / MANIFEST).exists():
        return read_checkpoint(path)
    checkpoint = newest_checkpoint(path, say)
    if not checkpoint:
        raise InputError(f"{path} holds no sound checkpoint, expected one or a run with one; train first")
    return checkpoint


def clear_unfinished(run_folder: Path) -> None:
    """Remove what interrupted saves left behind; only for the worker that holds the lock on the run's folder."""
    for path in (run_folder / FOLDER).glob(".replaced-*"):
        if (final := _replaced_by(path)) and not final.exists():  # interrupted between two renames
            try:
                path.rename(final)
            except OSError as error:
                reason = f"{path} cannot be renamed to {final.name} ({error.strerror}), expected to put it back"
                raise InputError(f"{reason}; mend the rights of its folder, or its disk") from error
    for path, error in remove_leftovers(run_folder).items():
        say(describe_unremoved(path, error))


def remove_leftovers(run_folder: Path) -> dict[Path, OSError]:
    """Remove what saves and removals have left, while no save is under way; returns what cannot be, and why."""
    folder = run_folder / FOLDER
    left = [path for kind in _LEFT for path in folder.glob(f".{kind}-step-*") if not path.is_symlink()]
    folders = [path for path in left if not (final := _replaced_by(path)) or final.exists()]
    pointers = [path for path in folder.glob(f".{LATEST}.*") if is_temporary(path.name)]
    return remove_each(folders, shutil.rmtree) | remove_each(pointers, Path.unlink)


def _replaced_by(path: Path) -> Path | None:
    """The checkpoint in whose place a replaced one was; None where a path is no such one."""
    replaced = re.match(r"\.replaced-(step-\d{8,})", path.name)
    return path.with_name(replaced[1]) if replaced else None


def describe_unremoved(path: Path, error: OSError) -> str:
    """One line about what cannot be removed."""
    return f"{path} cannot be removed ({error.strerror}); it is left, and tried again after the next checkpoint"


def prune_checkpoints(
    run_folder: Path, keep: int, resumed_from: Path | None, verified: set[Path]
) -> tuple[list[Path], dict[Path, OSError]]:
    """Remove old checkpoints, and what was left of earlier ones; returns those removed, and what cannot be, with why.

    The newest `keep` that verify, the best and the one resumed from stay. verified: those that this process has already
    read in full, kept up to date.
    """
    sound = [path for path in checkpoints(run_folder) if path in verified or not any(checkpoint_faults(path))]
    verified.update(sound)
    best = min(sound, key=_error_measured, default=None)
    stay = {*sound[:keep], best, resumed_from}
    old = [path for path in sound if path not in stay]
    unremoved = remove_each(old, _hide)
    if old:
        fsync_folder(run_folder / FOLDER)  # a crash may else undo the renames, but not all of what is removed then
    return [path for path in old if path not in unremoved], unremoved | remove_leftovers(run_folder)


def _hide(path: Path) -> None:
    # A removal that fails half-way must not leave half a checkpoint under a checkpoint's name.
    path.rename(path.with_name(f".removed-{path.name}-{secrets.token_hex(4)}"))


def _error_measured(path: Path) -> float:
    """The validation error of exactly this checkpoint's weights; infinite where they were not measured."""
    try:
        state = _read_state(path)
    except (OSError, ValueError, KeyError, TypeError):  # it is being removed by somebody else, or is of no use
        return float("inf")
    measured = [entry.top1 for entry in state.history if entry.step == state.step]
    return measured[-1] if measured else float("inf")
