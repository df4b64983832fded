"""Make one shard: pictures in, a WebDataset tar and its DALI index out.

A pure task for pipeline.executors: everything it needs is in its argument, and making it again writes the same bytes.
A shard that exists and is intact is not made again.
"""

import hashlib
import io
import json
import socket
import sys
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.files import sha256_of_stream
from pipeline.folder import folder_at
from pipeline.manifest import SAMPLE_DTYPE, SUFFIXES, Shard, Store, index_name
from pipeline.picture.jpeg import encoder_version, to_jpeg
from pipeline.picture.raw import to_npy
from pipeline.picture.unusable import STATISTICS_SIZE, UnusablePicture
from pipeline.source.listing import Picture, UnreadablePicture, read_picture
from pipeline.write.record import JpegTwin, Reject, ShardResult, is_shard_done, write_record
from pipeline.write.stats import PixelSums, add_picture, empty_sums
from pipeline.write.ustar import BLOCK, end_of_archive, padding, ustar_header

INDEX_VERSION: Final = "v1.2"  # of the format that DALI's own wds2idx writes and fn.readers.webdataset reads

# A picture is read whole into memory; ImageNet's largest has 15 MB.
MAX_SOURCE_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What one shard is made of, and how."""

    source: Path
    out: str  # what folder_at opens, in any process
    split: str
    number: int  # of the tar within its split
    first_key: int
    pictures: tuple[Picture, ...]
    size: int  # pixels a side; 0 keeps each picture's own
    quality: int  # JPEG, 1..100
    store: Store
    encoder: str  # another one would write other bytes
    reject_unreadable: bool  # a file that cannot be read is left out, as one that does not decode; else it is an error

    @property
    def name(self) -> str:
        """The tar's, in `out`."""
        return f"{self.split}/{self.number:06d}.tar"

    def __str__(self) -> str:
        """How messages name it."""
        return f"shard {self.name}"

    def digest(self) -> str:
        """SHA-256 of all that decides its bytes."""
        raw = [] if self.store == "jpeg" else [self.store]  # what earlier versions began goes on
        decisive = (self.split, self.number, self.first_key, self.size, self.quality, self.encoder, *raw)
        pictures = [(each.name, each.label, each.bytes) for each in self.pictures]
        return hashlib.sha256(json.dumps([decisive, pictures]).encode("ascii")).hexdigest()


class TarMember(NamedTuple):
    """One file in a tar: where its data starts, and how many bytes they are."""

    name: str
    offset: int
    size: int


class _Sample(NamedTuple):
    members: tuple[TarMember, ...]  # the picture, and its label where it has one
    row: tuple[int, int, int, int, int]


class _Tar(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes, /) -> int: ...
    def tell(self) -> int: ...


class _Discarded:
    """A file that is not kept: its length and its hash."""

    def __init__(self) -> None:
        self._size, self._sha256 = 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._size += len(data)
        self._sha256.update(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def sha256(self) -> str:
        return self._sha256.hexdigest()


def write_shard(task: ShardTask) -> bool:
    """Write tar, index and record of `task`, unless that was done before; returns whether it was.

    InputError when this process's encoder is not the task's, and would write other bytes, or file names are not UTF-8
    to it; UnreadablePicture; OSError when writing fails. The result goes into the record (record.py) and is not
    returned: if a worker were killed while it returns something large, the process that waits for it would get half of
    it and wait for ever.
    """
    if encoder_version() != task.encoder:
        raise InputError(
            f"{socket.gethostname()} has the encoder {encoder_version()}, "
            f"expected {task.encoder} as the run's own host; install the same versions on every worker"
        )
    if (encoding := sys.getfilesystemencoding()) != "utf-8":  # pipeline.shard sees to its own processes
        raise InputError(
            f"{socket.gethostname()} has file names in {encoding}, expected utf-8; start its worker with PYTHONUTF8=1"
        )
    warnings.filterwarnings("ignore", module="PIL")  # remarks on odd files; real faults are reported as rejects
    folder, digest = folder_at(task.out), task.digest()
    if is_shard_done(folder, task.name, digest):
        return True
    sums = empty_sums(task.size or STATISTICS_SIZE)
    jpeg_tar = _Discarded() if task.store == "raw" else None
    with folder.open_writer(task.name) as stream:
        samples, jpeg_samples, rejects = _write_tar(stream, jpeg_tar, task, sums)
        stream.seek(0)
        sha256 = sha256_of_stream(stream)
        size = stream.seek(0, io.SEEK_END)
    index = index_bytes(sample.members for sample in samples)
    twin = None
    if samples:
        folder.write(index_name(task.name), index)
        shard = Shard(name=task.name.rpartition("/")[2], samples=len(samples), bytes=size, sha256=sha256)
        if jpeg_tar:
            as_jpeg = replace(shard, bytes=jpeg_tar.tell(), sha256=jpeg_tar.sha256())
            twin = JpegTwin(as_jpeg, _table(jpeg_samples))
    else:
        folder.remove(task.name)
        shard = None
    made = ShardResult(
        digest=digest,
        shard=shard,
        rows=_table(samples),
        index=index,
        rejects=tuple(rejects),
        sums=sums,
        twin=twin,
    )
    write_record(folder, task.name, made)
    return False


def _table(samples: Sequence[_Sample]) -> NDArray[np.void]:
    return np.array([sample.row for sample in samples], SAMPLE_DTYPE)


def _write_tar(
    stream: IO[bytes], jpeg_tar: _Discarded | None, task: ShardTask, sums: PixelSums
) -> tuple[list[_Sample], list[_Sample], list[Reject]]:
    """Write the pictures of `task`, into `jpeg_tar` as JPEGs; the samples of both, and what was left out."""
    samples: list[_Sample] = []
    jpeg_samples: list[_Sample] = []
    rejects: list[Reject] = []
    for key, picture in enumerate(task.pictures, start=task.first_key):
        try:
            jpeg, pixels = to_jpeg(_read(task.source, picture), task.size, task.quality)
        except UnusablePicture as unusable:
            rejects.append(Reject(picture.label, picture.name, str(unusable), unreadable=False))
            continue
        except UnreadablePicture as unreadable:
            if not task.reject_unreadable:
                raise
            rejects.append(Reject(picture.label, picture.name, unreadable.reason, unreadable=True))
            continue
        data = jpeg if task.store == "jpeg" else to_npy(pixels)
        samples.append(_append_sample(stream, f"{key:08d}", SUFFIXES[task.store], data, picture.label))
        if jpeg_tar:
            jpeg_samples.append(_append_sample(jpeg_tar, f"{key:08d}", SUFFIXES["jpeg"], jpeg, picture.label))
        if task.split == "train":  # what a network subtracts is the training pictures'
            add_picture(sums, pixels)
    for tar in filter(None, (stream, jpeg_tar)):
        tar.write(end_of_archive(tar.tell()))
    return samples, jpeg_samples, rejects


def _read(source: Path, picture: Picture) -> bytes:
    if picture.bytes > MAX_SOURCE_BYTES:
        raise UnusablePicture(f"the file has {picture.bytes:,} bytes, expected at most {MAX_SOURCE_BYTES:,}")
    return read_picture(source, picture)


def _append_sample(stream: _Tar, key: str, suffix: str, data: bytes, label: int) -> _Sample:
    picture = _append(stream, f"{key}{suffix}", data)
    row = (0, picture.offset, picture.size, label, zlib.crc32(data))
    if label < 0:
        return _Sample((picture,), row)
    return _Sample((picture, _append(stream, f"{key}.cls", str(label).encode("ascii"))), row)


def _append(stream: _Tar, name: str, data: bytes) -> TarMember:
    member = TarMember(name, stream.tell() + BLOCK, len(data))
    stream.write(ustar_header(name.encode("ascii"), len(data)) + data + padding(len(data)))
    return member


def index_bytes(samples: Iterable[Sequence[TarMember]]) -> bytes:
    """The DALI index of a tar that holds these samples, a line each."""
    lines = [" ".join(_column(member) for member in members) for members in samples]
    return "".join(f"{line}\n" for line in [f"{INDEX_VERSION} {len(lines)}", *lines]).encode("ascii")


def _column(member: TarMember) -> str:
    return f"{member.name.partition('.')[2]} {member.offset} {member.size} {member.name}"
