import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damaged import members
from pipeline.check.faults import Faults
from pipeline.check.tar import ExpectedMember, FoundMember, HashingReader, check_members
from pipeline.write.ustar import ustar_header


class Trickle(io.BytesIO):
    """A stream that gives as many bytes as it likes, as a network does."""

    def __init__(self, data: bytes, generator: np.random.Generator):
        super().__init__(data)
        self.generator = generator

    def readinto(self, buffer: Any, /) -> int:
        return super().readinto(memoryview(buffer)[: int(self.generator.integers(1, 700))])


@pytest.fixture(scope="module")
def tar(made: Path) -> Path:
    return made / "train/000001.tar"


def walked(
    stream: io.BufferedIOBase, expected_members: dict[int, ExpectedMember], most: int = 100
) -> tuple[list[FoundMember], list[str], str]:
    """Members, faults and hash."""
    faults = Faults("tar")
    reader = HashingReader(stream)
    found = list(check_members(reader, ".jpg", expected_members, most, 10**6, faults))
    sha256 = reader.sha256()
    return found, [str(fault) for fault in faults.listed()], sha256


def test_headers_are_what_tarfile_writes() -> None:
    for name in ("00000000.jpg", "99999999.cls", "1234567890123.jpg"):
        for size in (0, 1, 511, 512, 513, 8**11 - 1):
            info = tarfile.TarInfo(name)
            info.size = size
            assert ustar_header(name.encode("ascii"), size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("seed", range(5))
def test_a_tape_gives_every_byte_once_however_it_comes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    data = generator.bytes(100_000)
    reader = HashingReader(Trickle(data, generator))
    read = b""
    while len(read) < 90_000:
        count = int(generator.integers(0, 2000))
        read += reader.take(count) if count % 2 else b"".join(bytes(piece) for piece in reader.pieces(count))
        assert reader.position == len(read)
    assert read + b"".join(bytes(piece) for piece in reader.rest()) == data
    assert reader.take(1) == b""
    assert reader.sha256() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("hinted", [True, False])
def test_a_walk_finds_what_tarfile_finds(tar: Path, hinted: bool) -> None:
    data = tar.read_bytes()
    expected_members = {info.offset_data: ExpectedMember(info.name[-4:], info.size) for info in members(tar)}
    found, faults, sha256 = walked(Trickle(data, np.random.default_rng(0)), expected_members if hinted else {})
    assert faults == []
    assert sha256 == hashlib.sha256(data).hexdigest()
    expected = [(info.name, data[info.offset_data : info.offset_data + info.size]) for info in members(tar)]
    assert [(str(each), each.data) for each in found] == expected
    assert [each.offset for each in found] == [info.offset_data for info in members(tar)]


def test_more_members_than_expected_end_the_walk(tar: Path) -> None:
    count = len(members(tar))
    assert walked(io.BytesIO(tar.read_bytes()), {}, most=count)[1] == []
    found, faults, sha256 = walked(io.BytesIO(tar.read_bytes()), {}, most=count - 1)
    assert faults == [f"tar: members, expected at most {count - 1}, found more"]
    assert len(found) == count
    assert sha256 == hashlib.sha256(tar.read_bytes()).hexdigest()


def test_every_byte_of_a_tar_outside_its_data_is_checked(tar: Path) -> None:
    """Without any hash: headers, padding and end alone."""
    data = bytearray(tar.read_bytes())
    expected_members = {info.offset_data: ExpectedMember(info.name[-4:], info.size) for info in members(tar)}
    inside = np.zeros(len(data), np.bool_)
    for info in members(tar):
        inside[info.offset_data : info.offset_data + info.size] = True
    missed: list[int] = []
    for position in np.flatnonzero(~inside).tolist():
        data[position] ^= 0x10
        if not walked(io.BytesIO(data), expected_members)[1]:
            missed.append(position)
        data[position] ^= 0x10
    assert missed == []
