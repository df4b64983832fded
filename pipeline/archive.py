"""Make one shard: pictures in, a WebDataset tar and its DALI index out.

A pure task in the sense of executors: everything it needs is in its argument, everything it finds in its result, and
making it again writes the same bytes.
"""

import hashlib
import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.ilsvrc import Picture
from pipeline.manifest import SAMPLE_DTYPE, Shard, replacing, write_atomic
from pipeline.picture import STATISTICS_SIZE, UnusablePicture, to_jpeg
from pipeline.stats import PixelSums, add_picture, empty_sums

INDEX_VERSION: Final = "v1.2"  # of the format that DALI's own wds2idx writes and fn.readers.webdataset reads


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What one shard is made of, and how."""

    source: Path
    split: str
    path: Path  # of the tar
    first_key: int
    pictures: tuple[Picture, ...]
    size: int  # pixels a side; 0 keeps each picture's own
    quality: int  # JPEG, 1..100


class Reject(NamedTuple):
    """A source file left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MadeShard:
    """What came of a task; `shard` is None, and no file is there, when every picture was rejected."""

    split: str
    shard: Shard | None
    rows: NDArray[np.void]  # (samples,) of SAMPLE_DTYPE; the column `shard` is still 0
    rejects: tuple[Reject, ...]


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


class _Sample(NamedTuple):
    picture: _Member
    label: _Member
    row: tuple[int, int, int, int, int]


def make_shard(task: ShardTask) -> tuple[MadeShard, PixelSums]:
    """Write the tar and index of `task`, and measure its pictures.

    InputError when a source file cannot be read, OSError when writing fails.
    """
    sums = empty_sums(task.size or STATISTICS_SIZE)
    with replacing(task.path) as stream:
        samples, rejects = _write_tar(stream, task, sums)
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size = stream.seek(0, io.SEEK_END)
    if samples:
        write_atomic(task.path.with_suffix(".idx"), _index(samples))
        shard = Shard(name=task.path.name, samples=len(samples), bytes=size, sha256=sha256)
    else:
        task.path.unlink()
        shard = None
    rows = np.array([sample.row for sample in samples], SAMPLE_DTYPE)
    return MadeShard(split=task.split, shard=shard, rows=rows, rejects=tuple(rejects)), sums


def _write_tar(stream: BinaryIO, task: ShardTask, sums: PixelSums) -> tuple[list[_Sample], list[Reject]]:
    samples: list[_Sample] = []
    rejects: list[Reject] = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, picture in enumerate(task.pictures, start=task.first_key):
            data = _read(task.source / picture.path)
            try:
                jpeg, pixels = to_jpeg(data, task.size, task.quality)
            except UnusablePicture as unusable:
                rejects.append(Reject(picture.path, str(unusable)))
                continue
            samples.append(_append_sample(tar, stream, f"{key:08d}", jpeg, picture.label))
            add_picture(sums, pixels)
    return samples, rejects


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected a picture; mend or remove it") from error


def _append_sample(tar: tarfile.TarFile, stream: BinaryIO, key: str, jpeg: bytes, label: int) -> _Sample:
    picture = _append(tar, stream, f"{key}.jpg", jpeg)
    row = (0, picture.offset, picture.size, label, zlib.crc32(jpeg))
    return _Sample(picture, _append(tar, stream, f"{key}.cls", str(label).encode("ascii")), row)


def _append(tar: tarfile.TarFile, stream: BinaryIO, name: str, data: bytes) -> _Member:
    # A fresh TarInfo has owner 0, time 0 and mode 0644: the bytes depend on nothing else. A ustar header is one block.
    member = _Member(name, stream.tell() + tarfile.BLOCKSIZE, len(data))
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return member


def _index(samples: list[_Sample]) -> bytes:
    lines = [" ".join(_column(member) for member in (sample.picture, sample.label)) for sample in samples]
    return "".join(f"{line}\n" for line in [f"{INDEX_VERSION} {len(samples)}", *lines]).encode("ascii")


def _column(member: _Member) -> str:
    return f"{member.name.partition('.')[2]} {member.offset} {member.size} {member.name}"
