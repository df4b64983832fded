"""Check one shard: the tar's hash, form and samples, the DALI index, and the rows of the sample table, in one pass.

A pure task for pipeline.executors, as pipeline.write.shard is: its argument says everything, its result is small.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.check.faults import Fault, Faults
from pipeline.check.tar import LABEL, ExpectedMember, FoundMember, HashingReader, check_members
from pipeline.folder import Folder, folder_at
from pipeline.manifest import SUFFIXES, Shard, Store, index_name
from pipeline.picture.jpeg import verified_header
from pipeline.picture.raw import npy_bytes, npy_square
from pipeline.picture.unusable import UnusablePicture
from pipeline.write.shard import MAX_SOURCE_BYTES, TarMember, index_bytes

_Members = tuple[TarMember, ...]

_MOST_INDEX_LINE: Final = 100


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What one shard should be."""

    folder: str  # what folder_at opens, in any process
    split: str
    shard: Shard
    rows: NDArray[np.void] | None  # its rows of the sample table; None where the table is damaged
    classes: int
    size: int  # pixels a side; 0 where each picture has its own
    store: Store
    decode: bool  # JPEGs; of raw squares the header and the size are always looked at
    indexed: bool  # whether the index exists; a missing one has been reported already

    @property
    def tar(self) -> str:
        """Its name in the data set."""
        return f"{self.split}/{self.shard.name}"

    @property
    def suffix(self) -> str:
        """Of the pictures' files."""
        return SUFFIXES[self.store]

    @property
    def keep(self) -> int:
        """Bytes of a picture's file that are looked at when all of it is read."""
        if self.store == "raw":
            return npy_bytes(self.size)
        return MAX_SOURCE_BYTES if self.decode else 0

    def __str__(self) -> str:
        """How messages name it."""
        return f"verifying {self.tar}"


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """The result of a check; the first and the last key are to compare with those of neighbouring shards."""

    faults: tuple[Fault, ...]
    bytes: int
    first_key: int  # -1 where no key was legible
    last_key: int


@dataclass
class _ReadSamples:
    """The samples read so far; members are None where a name is lost in a damaged header."""

    members: list[_Members | None] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)  # samples that are not what the table says
    keys: list[int] = field(default_factory=list)

    def index(self, samples: int, sound: bool) -> list[_Members | None]:
        """What the index should hold for each sample; None where a damaged tar does not tell."""
        if sound:
            return self.members
        known = [None if number in self.doubtful else each for number, each in enumerate(self.members[:samples])]
        return known + [None] * (samples - len(known))


class _Sample(NamedTuple):
    picture: FoundMember
    label: FoundMember | None


def check_shard(task: ShardCheck) -> ShardReport:
    """Read the tar and the index of `task` once, and report all faults."""
    folder = folder_at(task.folder)
    whole, faults = Faults(task.tar), Faults(task.tar)
    walked = _ReadSamples()
    try:
        with folder.open_reader(task.tar) as stream:
            reader = HashingReader(stream)
            for sample in _samples(reader, task, faults):
                _check_sample(task, walked, sample, faults)
            sha256 = reader.sha256()
    except OSError as error:
        whole.report("cannot be read", found=error.strerror or error)
        return ShardReport(faults=whole.listed(), bytes=0, first_key=-1, last_key=-1)
    whole.require("SHA-256", task.shard.sha256, sha256)
    whole.require("bytes", f"{task.shard.bytes:,}", f"{reader.position:,}")
    whole.require("samples", f"{task.shard.samples:,}", f"{len(walked.members):,}")
    expected = walked.index(task.shard.samples, sha256 == task.shard.sha256)
    index_faults = _check_index(folder, index_name(task.tar), expected) if task.indexed else ()
    return ShardReport(
        faults=(*whole.listed(), *faults.listed(), *index_faults),
        bytes=reader.position,
        first_key=min(walked.keys, default=-1),
        last_key=max(walked.keys, default=-1),
    )


def _samples(reader: HashingReader, task: ShardCheck, faults: Faults) -> Iterator[_Sample]:
    """A picture and the label that follows it."""
    pending: _Sample | None = None
    expected = _expected_members(task.rows, task.suffix)
    for member in check_members(reader, task.suffix, expected, 2 * task.shard.samples, task.keep, faults):
        if member.suffix == task.suffix:
            if pending:
                yield pending
            pending = _Sample(member, None)
        elif pending is None or pending.label:
            faults.report(f"{member}", "a picture before its label", "none")
        else:
            pending = _Sample(pending.picture, member)
    if pending:
        yield pending


def _expected_members(rows: NDArray[np.void] | None, suffix: str) -> dict[int, ExpectedMember]:
    """The members that the sample table expects, by the offset of their data."""
    members: dict[int, ExpectedMember] = {}
    for _, offset, size, label, _ in [] if rows is None else rows.tolist():
        members[offset] = ExpectedMember(suffix, size)
        if label >= 0:
            members[offset + -(-size // 512) * 512 + 512] = ExpectedMember(LABEL, len(str(label)))
    return members


def _check_sample(task: ShardCheck, walked: _ReadSamples, sample: _Sample, faults: Faults) -> None:
    picture, label = sample
    number = len(walked.members)
    walked.members.append(_members(sample))
    if picture.stem:
        if walked.keys and int(picture.stem) <= walked.keys[-1]:
            faults.report(f"{picture}, key", f"one above {walked.keys[-1]:08d}", picture.stem)
        walked.keys.append(int(picture.stem))
        if label and label.stem and label.stem != picture.stem:
            faults.report(f"{label}, key", picture.stem, label.stem)
    if task.rows is not None and number < len(task.rows):
        _, offset, size, expected_label, checksum = task.rows[number].tolist()
        if (offset, size, checksum) != (picture.offset, picture.size, picture.crc32):
            walked.doubtful.add(number)
            faults.require(f"{picture}, first byte by the sample table", offset, picture.offset)
            faults.require(f"{picture}, bytes by the sample table", size, picture.size)
            faults.require(f"{picture}, CRC-32", f"{checksum:08x}", f"{picture.crc32:08x}")
        _check_label(sample, expected_label, faults)
    elif label and not _in_classes(label.data, task.classes):
        faults.report(f"{label}", f"a class from 0 to {task.classes - 1:,}", _content(label))
    if task.store == "raw":
        if fault := _raw_fault(picture, task.size):
            faults.report(f"{picture}", *fault)
    elif task.decode and (fault := _decoding_fault(picture, task.size)):
        faults.report(f"{picture}, decoded", *fault)


def _check_label(sample: _Sample, expected: int, faults: Faults) -> None:
    picture, label = sample
    if label is None:
        if expected >= 0:
            faults.report(f"{picture}, label", expected, "none")
    elif expected < 0:
        faults.report(f"{label}", "no label, as the sample table has it", _content(label))
    elif label.data != b"%d" % expected:
        faults.report(f"{label}", expected, _content(label))


def _content(label: FoundMember) -> str:
    return f"{label.size:,} bytes" if label.data is None else repr(label.data)


def _in_classes(content: bytes | None, classes: int) -> bool:
    return content is not None and content.isdigit() and content == b"%d" % int(content) and int(content) < classes


def _decoding_fault(picture: FoundMember, size: int) -> tuple[str, str] | None:
    """What was expected and what was found, where a JPEG does not decode whole to what it should be."""
    if picture.data is None:
        return f"at most {MAX_SOURCE_BYTES:,} bytes", f"{picture.size:,}"
    try:
        width, height, colours = verified_header(picture.data)
    except UnusablePicture as unusable:
        return "a whole JPEG", str(unusable)
    sound = (width, height, colours) == (size, size, "YCbCr") if size else colours in ("YCbCr", "RGB", "Gray")
    expected = f"{size} x {size} YCbCr" if size else "YCbCr, RGB or Gray"
    return None if sound else (expected, f"{width} x {height} {colours}")


def _raw_fault(picture: FoundMember, size: int) -> tuple[str, str] | None:
    """What was expected and what was found, where a file is not that of a square's pixels."""
    expected = f"an .npy file of {size} x {size} RGB pixels, {npy_bytes(size):,} bytes"
    if picture.data is None:
        return expected, f"{picture.size:,} bytes"
    try:
        npy_square(picture.data, size)
    except ValueError as error:
        return expected, str(error)
    return None


def _members(sample: _Sample) -> tuple[TarMember, ...] | None:
    """What the index should say of a sample; None where a name is lost in a damaged header."""
    found = [each for each in sample if each]
    if any(each.stem is None for each in found):
        return None
    return tuple(TarMember(f"{each.stem}{each.suffix}", each.offset, each.size) for each in found)


def _check_index(folder: Folder, name: str, samples: Sequence[_Members | None]) -> tuple[Fault, ...]:
    """Compare the index with the one that the tar should have, except for samples whose members are None."""
    faults = Faults(name)
    expected = index_bytes(members or () for members in samples)
    most = len(expected) + 1 + _MOST_INDEX_LINE * samples.count(None)  # no more can be right, whatever the file holds
    try:
        with folder.open_reader(name) as stream:
            found = stream.read(most)
    except OSError as error:
        faults.report("cannot be read", found=error.strerror or error)
        return faults.listed()
    if found == expected:
        return ()
    unknown = {number for number, members in enumerate(samples, start=1) if members is None}
    lines, found_lines = (data.split(b"\n") for data in (expected, found))
    faults.require("lines", f"{len(lines) - 1:,}", f"{len(found_lines) - 1:,}" if len(found) < most else "more")
    for number, (line, found_line) in enumerate(zip(lines, found_lines, strict=False)):
        if number not in unknown and line != found_line:
            faults.report(f"line {number + 1:,}", repr(line), repr(found_line[:_MOST_INDEX_LINE]))
    return faults.listed()
