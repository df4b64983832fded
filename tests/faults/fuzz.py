"""A mutation fuzzer of all that reads files which may come from elsewhere; each execution is repeated by its number.

    make fuzz SEED=3 SECONDS=600

A reader may read what a mutation left, or refuse it by an InputError of one line. Another exception, more than SECONDS
and more than MEMORY are findings.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import torch

from damaged import make_data_set
from model.network import Network, make_network
from model.optim import MomentumSGD, OptimConfig
from networks import copy_tensors, small_run
from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset, load_mean, pictures_sha256
from pipeline.verify import verify
from service.network.export import export, facts_of
from service.network.read import MEAN, WEIGHTS_SHA256, facts_file, load
from service.results.curves import curves_figure
from service.results.history import read_histories
from service.results.table import table_rows
from service.run.checkpoint import (
    RunState,
    Validation,
    read_checkpoint,
    read_tensors,
    read_weights,
    restore,
    save_checkpoint,
)
from service.run.config import run_fields
from service.run.preprocessing import preprocessing_of, read_preprocessing
from service.training.fork import start_from

SECONDS: Final = 5.0  # of an execution
MEMORY: Final = 2**30  # bytes more than before the first
RESEALED: Final = 0.6  # of executions: hashes and sizes are made to fit again
INTEGERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
WORDS: Final = ("", "../../x", "/dev/zero", "/etc/passwd", ".", "a\nb", "\0", "\udcff", "x" * 5000, "1", "skip", "raw")


@dataclass(frozen=True)
class Fuzzed:
    """What came of it."""

    executions: int
    refused: int
    read: int
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """What is read: a folder by name of which a copy is mutated."""

    make: Callable[[Path], None]
    read: Callable[[Path, Random], None]
    reseal: Callable[[Path], None] = lambda root: None


class TooSlow(BaseException):
    """Raised by the alarm; no InputError, nor anything that a reader catches."""


def fuzz(target: str, executions: int = 10**9, seed: int = 0, seconds: float | None = None, first: int = 0) -> Fuzzed:
    """Mutate and read a target so many times, or for so long; `first`: the number of the first execution."""
    torch.set_num_threads(1)
    chosen, counts, findings = TARGETS[target], {True: 0, False: 0}, list[str]()
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    end = time.monotonic() + (seconds if seconds is not None else float("inf"))
    with tempfile.TemporaryDirectory(dir=place) as temporary, _limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        number = first
        while number < first + executions and time.monotonic() < end:
            random, root = Random(f"{seed} {target} {number}"), Path(temporary) / "it"
            _copy(seed_of(target), root)
            try:
                mutate(root, random, chosen.reseal)
                counts[_is_read(chosen, root, random)] += 1
            except Exception as error:
                findings.append(f"{target}, seed {seed}, number {number}: {type(error).__name__}: {error}"[:1000])
            except TooSlow:
                findings.append(f"{target}, seed {seed}, number {number}: takes longer than {SECONDS} s")
            shutil.rmtree(root, ignore_errors=True)
            number += 1
    return Fuzzed(number - first, counts[False], counts[True], tuple(findings))


def _is_read(target: Target, root: Path, random: Random) -> bool:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            target.read(root, random)
    except InputError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"no line: {str(error)[:200]!r}") from error
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    def too_slow(number: int, frame: object) -> None:
        raise TooSlow

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def _copy(source: Path, root: Path) -> None:
    """A copy whose files are the seed's own, by hard links; a mutation puts a new file in place of one."""
    shutil.copytree(source, root, copy_function=os.link)


def files_of(root: Path) -> list[Path]:
    """All files below, in the same order everywhere."""
    return sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())


def mutate(root: Path, random: Random, reseal: Callable[[Path], None]) -> None:
    """One to three changes; then perhaps hashes that fit."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        files = [path for path in files_of(root) if path.is_file() and not path.is_symlink()]
        if not files:
            return
        path, kind = random.choice(files), random.random()
        if kind < 0.1:
            _replace(path, random)
        elif kind < 0.75 and path.suffix in (".json", ".jsonl"):
            _write(path, mutated_json(path.read_bytes(), random, lines=path.suffix == ".jsonl"))
        elif kind < 0.6 and path.suffix == ".safetensors":
            _write(path, _mutated_header(path.read_bytes(), random))
        else:
            _write(path, mutated_bytes(path.read_bytes(), random))
    if random.random() < RESEALED:
        # What cannot be sealed stays as it is, which is a case of its own.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            reseal(root)


def _write(path: Path, data: bytes) -> None:
    path.unlink()  # it is a hard link to the seed's
    path.write_bytes(data)


def _replace(path: Path, random: Random) -> None:
    """Something else under a file's name."""
    path.unlink()
    match random.randrange(6):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            os.mkfifo(path)
        case 4:
            path.write_bytes(b"")
        case _:
            pass


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """Flipped, cut, doubled, removed, or with a number in it that is at an edge; mostly near the beginning."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        end = len(changed) if random.random() < 0.5 else min(len(changed), 512)
        at = random.randrange(end) if end else 0
        length = random.choice((1, 2, 8, 64, 512, 5000))
        match random.randrange(6):
            case 0 if changed:
                changed[at] ^= 1 << random.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                size = random.choice((1, 2, 4, 8))
                number = random.choice(INTEGERS) % 256**size
                changed[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
            case _:
                changed[at : at + length] = random.randbytes(length)
    return bytes(changed)


def mutated_json(data: bytes, random: Random, *, lines: bool = False) -> bytes:
    """Another value, key or type somewhere in a JSON text, or in a line of it."""
    try:
        if lines:
            rows = data.splitlines(keepends=True)
            at = random.randrange(len(rows))
            rows[at] = mutated_json(rows[at].strip(), random) + b"\n"
            return b"".join(rows)
        values = [json.loads(data)]  # so that the whole can be another one too
        for _ in range(random.choice((1, 1, 2))):
            _mutate_value(values, random)
        return json.dumps(values[0], indent=1 if b"\n" in data else None).encode() + b"\n"
    except (ValueError, IndexError, RecursionError):
        return mutated_bytes(data, random)


def _mutate_value(values: Any, random: Random) -> None:
    holder: Any = values
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = random.choice(keys)
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner) or random.random() < 0.15:
            break
        holder = inner
    match random.randrange(8):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(WORDS)] = inner
        case 2 if isinstance(holder, dict):
            holder[random.choice(WORDS)] = holder.pop(key)
        case 3 if isinstance(holder, list) and holder is not values:
            holder.insert(0, inner)
        case 4 if isinstance(inner, int | float) and abs(inner) < 1e300:
            holder[key] = random.choice((-inner, inner + 1, inner * 2, inner * 10**9, float(inner), str(inner)))
        case _:
            holder[key] = _odd_value(random)


def _odd_value(random: Random) -> Any:
    match random.randrange(8):
        case 0:
            return random.choice((None, True, False, [], {}, [[]], {"a": 1}, [1, 2, 3]))
        case 1:
            return random.choice((float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, -0.0))
        case 2 | 3:
            return random.choice(INTEGERS) * random.choice((1, -1))
        case 4:
            return 10 ** random.choice((20, 400, 4000))
        case 5:
            deep: Any = 1
            for _ in range(random.choice((30, 400))):
                deep = random.choice(([deep], {"a": deep}))
            return deep
        case _:
            return random.choice(WORDS)


def _mutated_header(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = mutated_json(data[8 : 8 + length], random).strip()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


# Targets


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


@cache
def seed_of(target: str) -> Path:
    """The folder that is mutated, made by our own writers."""
    root = Path(_folder().name) / target.replace(" ", "-")
    TARGETS[target].make(root)
    return root


@cache
def _shards() -> Path:
    """A data set of 72 pixels, without the source that it was made of."""
    parent = Path(_folder().name) / "shards"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        root = make_data_set(parent, size=72)
    shutil.rmtree(parent / "source")
    return root


def _data_set(root: Path) -> None:
    shutil.copytree(_shards(), root)


def _read_as_loader(root: Path, random: Random) -> None:
    dataset = load_dataset(root)
    load_mean(root, dataset)
    for split in dataset.splits:
        store = SampleStore(root, dataset, split)
        for location in store.locate(np.arange(len(store))):
            with contextlib.suppress(ValueError):  # a damaged sample: another takes its place
                store.read_intact(location)
        with contextlib.suppress(InputError):
            store.keys()


def _verify(root: Path, random: Random) -> None:
    for fault in verify(folder_at(root), decode=random.random() < 0.3).faults:
        assert "\n" not in str(fault)


def _reseal_data_set(root: Path) -> None:
    fields = json.loads(_plain(root / "dataset.json"))
    fields.pop("sha256", None)
    for name in list(fields["files"]):
        with contextlib.suppress(OSError, ValueError):
            fields["files"][name] = _sha256(_plain(root / name))
    for split, described in fields["splits"].items():
        for shard in described["shards"]:
            with contextlib.suppress(OSError, ValueError, TypeError):
                data = _plain(root / split / shard["name"])
                shard |= {"bytes": len(data), "sha256": _sha256(data)}
    plain = (json.dumps(fields, indent=1) + "\n").encode()
    _write(root / "dataset.json", (json.dumps({**fields, "sha256": _sha256(plain)}, indent=1) + "\n").encode())


def _plain(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ValueError("no file to hash")
    return path.read_bytes()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


EVENT: Final = {"step": 2, "epoch": 0.5, "time": 1.0, "author": "a", "reason": ""}
RATES: Final = {"base": 0.01, "conv1": 0.01}
EVENTS: Final = (
    {**EVENT, "kind": "learning-rate", "manual": True, "old": RATES, "new": RATES},
    {**EVENT, "kind": "skip", "positions": [8, 16]},
    {**EVENT, "kind": "precision", "old": "float32", "new": "mixed"},
)


SMALL: Final[dict[str, Any]] = {"layout": "cifar", "cifar": "18pct", "crop": 32}  # a megabyte, which takes no time


def _network() -> tuple[Network, MomentumSGD]:
    run = small_run(_shards(), **SMALL)
    model = make_network(run.model, classes=3, crop=run.data.crop, seed=0)
    return model, MomentumSGD(OptimConfig(average_decay=0.9), dict(model.named_parameters()))


@cache
def _small_network() -> tuple[Network, MomentumSGD]:
    return _network()


def _checkpoint(root: Path) -> None:
    dataset = load_dataset(_shards())
    state = RunState(
        step=3,
        position=24,
        history=(Validation(epoch=1, step=2, loss=1.0, top1=0.5, top5=0.1),),
        events=EVENTS,
        recent_losses=((1, 2.0), (2, 1.5)),
    )
    run = small_run(_shards(), **SMALL)
    path = save_checkpoint(
        root.parent / "run",
        state,
        copy_tensors(*_network()),
        run_fields(run, pictures_sha256(dataset)),
        preprocessing_of(dataset, _shards()).files(),
    )
    path.rename(root)


def _read_checkpoint(root: Path, random: Random) -> None:
    checkpoint = read_checkpoint(root)
    restore(read_tensors(checkpoint).items(), *_small_network())
    read_weights(root)
    read_preprocessing(root)
    if random.random() < 0.1:  # it builds a network, which takes longest
        load(root, "cpu")


def _reseal_checkpoint(root: Path) -> None:
    manifest = json.loads(_plain(root / "manifest.json"))
    for name in list(manifest["files"]):
        with contextlib.suppress(OSError, ValueError):
            data = _plain(root / name)
            manifest["files"][name] = [len(data), _sha256(data)]
    _write(root / "manifest.json", json.dumps(manifest, indent=1).encode())


def _run(root: Path) -> None:
    root.mkdir()
    speeds = {"gradient_norm": 1.0, "learning_rate": 0.01, "images_per_second": 100.0, "data_wait_ratio": 0.0}
    records: list[dict[str, Any]] = [{"step": n, "epoch": n / 4, "loss": 2.0, **speeds} for n in range(1, 9)]
    measured = {"epoch": 1, "step": 4, "loss": 1.0, "top1": 0.5, "top5": 0.1}
    records[4:4] = [{"validation": True, **measured}]
    records += [{"evaluation": True, **measured}]
    (root / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (root / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in EVENTS))
    (root / "run.json").write_text(json.dumps(run_fields(small_run(_shards()), "0" * 64)))


def _compare(root: Path, random: Random) -> None:
    histories = read_histories([root])
    table_rows(histories)
    if random.random() < 0.1:
        curves_figure(histories)


def _weights(root: Path) -> None:
    _checkpoint(checkpoint := root.parent / "exported")
    root.mkdir()
    export(load(checkpoint, "cpu"), "safetensors", root / "w.safetensors")


def _read_weights(root: Path, random: Random) -> None:
    load(root / "w.safetensors", "cpu")


def _pickled(root: Path) -> None:
    _checkpoint(checkpoint := root.parent / "pickled")
    network, path = load(checkpoint, "cpu"), root / "w.pth"
    root.mkdir()
    mean = torch.from_numpy(network.preprocessing.mean)
    torch.save({**dict(network.model.named_parameters()), MEAN: mean}, path)
    facts_file(path).write_text(json.dumps({**facts_of(network), WEIGHTS_SHA256: _sha256(path.read_bytes())}))


def _read_pickled(root: Path, random: Random) -> None:
    load(root / "w.pth", "cpu")


def _reseal_pickled(root: Path) -> None:
    facts = json.loads(_plain(root / "w.pth.json"))
    facts[WEIGHTS_SHA256] = _sha256(_plain(root / "w.pth"))
    _write(root / "w.pth.json", json.dumps(facts).encode())


def _fork(root: Path, random: Random) -> None:
    dataset = load_dataset(_shards())
    run = replace(small_run(_shards(), **SMALL), parent=root, keep="weights" if random.random() < 0.1 else "all")
    start_from(run, run_fields(run, pictures_sha256(dataset)), dataset)


TARGETS: Final[dict[str, Target]] = {
    "checkpoint": Target(_checkpoint, _read_checkpoint, _reseal_checkpoint),
    "checkpoint forked": Target(_checkpoint, _fork, _reseal_checkpoint),
    "data set": Target(_data_set, _read_as_loader, _reseal_data_set),
    "data set verified": Target(_data_set, _verify, _reseal_data_set),
    "run compared": Target(_run, _compare),
    "weights": Target(_weights, _read_weights),
    "pickled weights": Target(_pickled, _read_pickled, _reseal_pickled),
}


def main() -> int:
    """Fuzz all targets in turn, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target")
    parser.add_argument("--targets", nargs="*", default=[*TARGETS], choices=[*TARGETS])
    options = parser.parse_args()
    found = 0
    for target in options.targets:
        start = time.monotonic()
        result = fuzz(target, seed=options.seed, seconds=options.seconds)
        took = time.monotonic() - start
        counts = f"{result.executions:,} executions, {result.refused:,} refused, {result.read:,} read"
        sys.stdout.write(f"{target}, seed {options.seed}: {counts}, {len(result.findings)} findings, {took:.0f} s\n")
        sys.stdout.write("".join(f"FOUND: {each}\n" for each in result.findings))
        sys.stdout.flush()
        found += len(result.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
