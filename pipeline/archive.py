"""Make one shard: pictures in, a WebDataset tar and its DALI index out.

A pure task in the sense of executors: everything it needs is in its argument, everything it finds in its result, and
making it again writes the same bytes. What it finds is also written beside the tar, so that a shard that is there,
sound, is not made again.
"""

import io
import json
import socket
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.folder import Folder, folder_at
from pipeline.listing import Picture, UnreadablePicture, read_picture
from pipeline.manifest import SAMPLE_DTYPE, Shard, stream_sha256
from pipeline.picture import STATISTICS_SIZE, UnusablePicture, encoder, to_jpeg
from pipeline.stats import PixelSums, add_picture, empty_sums, place_sums, sums_of
from pipeline.ustar import BLOCK, ending, padding, ustar_header

INDEX_VERSION: Final = "v1.2"  # of the format that DALI's own wds2idx writes and fn.readers.webdataset reads
RECORD_SUFFIX: Final = ".made.npz"

# A picture is read whole into memory; ImageNet's largest has 15 MB.
MOST_SOURCE_BYTES: Final = 256 * 2**20


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
    encoder: str  # another one would write other bytes
    reject_unreadable: bool  # a file that cannot be read is left out, as one that does not decode; else it is an error

    @property
    def name(self) -> str:
        """The tar's, in `out`."""
        return f"{self.split}/{self.number:06d}.tar"

    def __str__(self) -> str:
        """How messages name it."""
        return f"shard {self.name}"


class Reject(NamedTuple):
    """A source picture left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MadeShard:
    """What came of a task; `shard` is None, and no file is there, when every picture was rejected."""

    shard: Shard | None
    rows: NDArray[np.void]  # (samples,) of SAMPLE_DTYPE; the column `shard` is still 0
    rejects: tuple[Reject, ...]
    sums: PixelSums  # over the training pictures as written
    again: bool = False  # it was there already


class Member(NamedTuple):
    """One file in a tar: where its data starts, and how many bytes they are."""

    name: str
    offset: int
    size: int


class _Sample(NamedTuple):
    members: tuple[Member, ...]  # the picture, and its label where it has one
    row: tuple[int, int, int, int, int]


def make_shard(task: ShardTask) -> MadeShard:
    """Write the tar and index of `task`, and measure its pictures; or find that done.

    InputError when this process would write other bytes than the task's owner; UnreadablePicture; OSError when writing
    fails.
    """
    if encoder() != task.encoder:
        raise InputError(
            f"{socket.gethostname()} has the encoder {encoder()}, expected {task.encoder} as the run's own host; "
            "install the same versions on every worker"
        )
    folder = folder_at(task.out)
    if made := _made_before(folder, task.name):
        return made
    sums = empty_sums(task.size or STATISTICS_SIZE)
    with folder.writing(task.name) as stream:
        samples, rejects = _write_tar(stream, task, sums)
        stream.seek(0)
        sha256 = stream_sha256(stream)
        size = stream.seek(0, io.SEEK_END)
    index = index_bytes(sample.members for sample in samples)
    if samples:
        folder.write(index_name(task.name), index)
        shard = Shard(name=task.name.rpartition("/")[2], samples=len(samples), bytes=size, sha256=sha256)
    else:
        folder.remove(task.name)
        shard = None
    rows = np.array([sample.row for sample in samples], SAMPLE_DTYPE)
    made = MadeShard(shard=shard, rows=rows, rejects=tuple(rejects), sums=sums)
    folder.write(record_name(task.name), _record(made, index))
    return made


def index_name(tar: str) -> str:
    """The DALI index of a tar."""
    return f"{tar.removesuffix('.tar')}.idx"


def record_name(tar: str) -> str:
    """Where it is written, while the data set is not finished, what came of a shard."""
    folder, _, name = tar.rpartition("/")
    return f"{folder}/.{name.removesuffix('.tar')}{RECORD_SUFFIX}"


def _made_before(folder: Folder, name: str) -> MadeShard | None:
    try:
        made, index = _from_record(folder.read(record_name(name)))
        if made.shard and not _sound(folder, name, made.shard, index):
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # not there, or damaged: what came of it is not known
    return made


def _sound(folder: Folder, name: str, shard: Shard, index: bytes) -> bool:
    if folder.size(name) != shard.bytes or folder.read(index_name(name)) != index:
        return False
    if folder.local is None:
        return True  # a store checks what comes; to read it all again would cost as much as to make it
    with folder.reading(name) as stream:
        return stream_sha256(stream) == shard.sha256


def _record(made: MadeShard, index: bytes) -> bytes:
    facts = {
        "shard": made.shard and asdict(made.shard),
        "rejects": made.rejects,
        "pictures": made.sums.pictures,
    }
    stream = io.BytesIO()
    # A zip file, whose CRCs np.load checks.
    np.savez(
        stream,
        facts=np.frombuffer(json.dumps(facts).encode("ascii"), np.uint8),
        index=np.frombuffer(index, np.uint8),
        rows=made.rows,
        pixels=place_sums(made.sums).astype(np.uint32),  # half the bytes; holds 16 million pictures
        moments=made.sums.moments,
    )
    return stream.getvalue()


def _from_record(data: bytes) -> tuple[MadeShard, bytes]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        sums = sums_of(facts["pictures"], arrays["pixels"].astype(np.int64), arrays["moments"])
        rows, index = arrays["rows"], arrays["index"].tobytes()
    shard = Shard(**facts["shard"]) if facts["shard"] else None
    rejects = tuple(Reject(*each) for each in facts["rejects"])
    return MadeShard(shard=shard, rows=rows, rejects=rejects, sums=sums, again=True), index


def _write_tar(stream: IO[bytes], task: ShardTask, sums: PixelSums) -> tuple[list[_Sample], list[Reject]]:
    samples: list[_Sample] = []
    rejects: list[Reject] = []
    for key, picture in enumerate(task.pictures, start=task.first_key):
        try:
            jpeg, pixels = to_jpeg(_read(task, picture), task.size, task.quality)
        except UnusablePicture as unusable:
            rejects.append(Reject(_where(picture), str(unusable)))
            continue
        samples.append(_append_sample(stream, f"{key:08d}", jpeg, picture.label))
        if task.split == "train":  # what a network subtracts is the training pictures'
            add_picture(sums, pixels)
    stream.write(ending(stream.tell()))
    return samples, rejects


def _read(task: ShardTask, picture: Picture) -> bytes:
    if picture.bytes > MOST_SOURCE_BYTES:
        raise UnusablePicture(f"the file has {picture.bytes:,} bytes, expected at most {MOST_SOURCE_BYTES:,}")
    try:
        return read_picture(task.source, picture)
    except UnreadablePicture as unreadable:
        if task.reject_unreadable:
            raise UnusablePicture(str(unreadable)) from unreadable
        raise


def _where(picture: Picture) -> str:
    return picture.file if picture.offset < 0 else f"{picture.file}/{picture.name}"


def _append_sample(stream: IO[bytes], key: str, jpeg: bytes, label: int) -> _Sample:
    picture = _append(stream, f"{key}.jpg", jpeg)
    row = (0, picture.offset, picture.size, label, zlib.crc32(jpeg))
    if label < 0:
        return _Sample((picture,), row)
    return _Sample((picture, _append(stream, f"{key}.cls", str(label).encode("ascii"))), row)


def _append(stream: IO[bytes], name: str, data: bytes) -> Member:
    member = Member(name, stream.tell() + BLOCK, len(data))
    stream.write(ustar_header(name.encode("ascii"), len(data)) + data + padding(len(data)))
    return member


def index_bytes(samples: Iterable[Sequence[Member]]) -> bytes:
    """The DALI index of a tar that holds these samples, a line each."""
    lines = [" ".join(_column(member) for member in members) for members in samples]
    return "".join(f"{line}\n" for line in [f"{INDEX_VERSION} {len(lines)}", *lines]).encode("ascii")


def _column(member: Member) -> str:
    return f"{member.name.partition('.')[2]} {member.offset} {member.size} {member.name}"
