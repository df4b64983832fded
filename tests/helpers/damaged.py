"""Data sets for tests of pipeline.verify: damaged, or forged so that all hashes are right and only sense is not."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pictures import write_tree
from pipeline.folder import folder_at
from pipeline.manifest import SAMPLE_DTYPE, Dataset, Shard, Split, array_bytes, encode_dataset, load_dataset
from pipeline.shard import ShardOptions, shard
from pipeline.verify import verify
from pipeline.write.shard import TarMember, index_bytes

SIZE = 32
Sample = tuple[bytes, int]  # JPEG, label

# Files of every kind.
KINDS = [
    "dataset.json",
    "mean.npy",
    "mean.png",
    "rejects.jsonl",
    "contact-sheet.png",
    "train/samples.npy",
    "train/000001.tar",
    "train/000001.idx",
    "test/000000.tar",
]


def make_data_set(parent: Path, **options: Any) -> Path:
    """Sharded by the command: train in three tars, val in one, a test split without labels in one, one reject."""
    source = write_tree(parent / "source", {"train": {"a": 9, "b": 8, "c": 6}, "val": {"a": 3, "b": 2, "c": 2}})
    (source / "train/b/notes.txt").write_text("not a picture")
    (source / "test").mkdir()
    for number in range(5):
        shutil.copy(source / f"train/a/0{number}.JPEG", source / f"test/t{number}.JPEG")
    given = {"size": SIZE, "workers": 1, "shard_samples": 10, **options}
    assert shard(ShardOptions(source=source, out=str(parent / "out"), **given)) == 0
    return parent / "out"


def lines(root: Path | str, **options: Any) -> list[str]:
    """What pipeline.verify says of a data set."""
    return [str(fault) for fault in verify(folder_at(root), **options).faults]


def named(root: Path | str, **options: Any) -> set[str]:
    """The files that it finds at fault."""
    return {fault.file for fault in verify(folder_at(root), **options).faults}


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command, as a process."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.verify", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def members(path: Path) -> list[tarfile.TarInfo]:
    """The files of a tar, by the standard library."""
    with tarfile.open(path) as tar:
        return tar.getmembers()


@contextmanager
def flipped(path: Path, position: int, mask: int) -> Iterator[None]:
    """One byte of a file changed, for a while."""
    with open(path, "r+b", buffering=0) as stream:
        stream.seek(position)
        (before,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([before ^ mask]))
        yield
        stream.seek(position)
        stream.write(bytes([before]))


def swap(one: Path, other: Path) -> None:
    """Let two files trade their contents."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def seal(root: Path, **changes: Any) -> None:
    """Write a dataset.json with the hashes of what is there, as somebody would who has tampered with the rest."""
    dataset = load_dataset(root)
    splits = {
        name: replace(split, shards=tuple(_sealed(root / name, each) for each in split.shards))
        for name, split in dataset.splits.items()
    }
    files = {name: _sha256((root / name).read_bytes()) for name in dataset.files}
    write_description(root, replace(dataset, **{"splits": splits, "files": files, **changes}))


def write_description(root: Path, dataset: Dataset) -> None:
    """Write a dataset.json."""
    (root / "dataset.json").write_bytes(encode_dataset(dataset))


def write_fields(root: Path, path: Sequence[str | int], value: object) -> None:
    """Put a value anywhere into dataset.json, whatever its type, and give it the hash that fits."""
    fields = json.loads((root / "dataset.json").read_bytes())
    del fields["sha256"]
    at = fields
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    plain = (json.dumps(fields, indent=1) + "\n").encode("ascii")
    sealed = json.dumps({**fields, "sha256": _sha256(plain)}, indent=1) + "\n"
    (root / "dataset.json").write_text(sealed)


def write_split(root: Path, split: str, samples: Sequence[Sample], keys: Sequence[tuple[int, int]] = ()) -> None:
    """Replace a split by one tar of these samples, in agreement; `keys` of picture and label, else 0, 1, 2."""
    for path in (root / split).iterdir():
        path.unlink()
    rows: list[tuple[int, int, int, int, int]] = []
    members: list[tuple[TarMember, ...]] = []
    with (
        open(root / split / "000000.tar", "wb") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for (key, label_key), (jpeg, label) in zip(keys or [(i, i) for i in range(len(samples))], samples, strict=True):
            files = {f"{key:08d}.jpg": jpeg} | ({f"{label_key:08d}.cls": b"%d" % label} if label >= 0 else {})
            members.append(tuple(_append(tar, name, data) for name, data in files.items()))
            rows.append((0, members[-1][0].offset, len(jpeg), label, zlib.crc32(jpeg)))
    (root / split / "000000.idx").write_bytes(index_bytes(members))
    (root / split / "samples.npy").write_bytes(array_bytes(np.array(rows, SAMPLE_DTYPE)))
    dataset = load_dataset(root)
    shard = Shard(name="000000.tar", samples=len(samples), bytes=0, sha256="0" * 64)
    made = Split(samples=len(samples), shards=(shard,))
    write_description(root, replace(dataset, splits={**dataset.splits, split: made}))
    seal(root)


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> TarMember:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    member = TarMember(name, tar.offset + tarfile.BLOCKSIZE, len(data))
    tar.addfile(info, io.BytesIO(data))
    return member


def _sealed(folder: Path, each: Shard) -> Shard:
    data = (folder / each.name).read_bytes()
    return replace(each, bytes=len(data), sha256=_sha256(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
