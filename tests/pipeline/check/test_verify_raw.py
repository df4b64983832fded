"""Raw squares are verified as JPEGs are: every byte, and that each file is that of a square's pixels."""

import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from damaged import SIZE, flipped, lines, seal, write_description
from pictures import encoded, photo, write_tree
from pipeline.folder import folder_at
from pipeline.manifest import array_bytes, load_dataset, load_samples
from pipeline.picture.raw import HEADER_BYTES
from pipeline.shard import ShardOptions, shard
from pipeline.verify import verify

FLIPS = 150


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    source = write_tree(root / "source", {"train": {"a": 6, "b": 5}, "val": {"a": 2, "b": 1}})
    options = ShardOptions(source=source, out=str(root / "out"), size=SIZE, store="raw", shard_samples=4, workers=1)
    assert shard(options) == 0
    return root / "out"


@pytest.fixture
def out(raw: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(raw, tmp_path / "out"))


@pytest.mark.parametrize("decode", [False, True])
def test_raw_shards_as_written_have_no_faults(raw: Path, decode: bool) -> None:
    report = verify(folder_at(raw), decode=decode)
    assert report.faults == () and report.samples == 14


def test_each_change_of_a_byte_is_found_in_its_tar(out: Path) -> None:
    generator = np.random.default_rng(1)
    tars = sorted(out.rglob("*.tar"))
    for _ in range(FLIPS // len(tars)):
        for tar in tars:
            place = int(generator.integers(tar.stat().st_size))
            with flipped(tar, place, 0x10):
                assert any(str(fault).startswith(str(tar.relative_to(out))) for fault in verify(folder_at(out)).faults)
    assert lines(out) == []


def sealed_with(out: Path, change: bytes, at: int) -> list[str]:
    """The faults of a data set in which all hashes and checksums fit, and bytes of its first validation file differ."""
    dataset = load_dataset(out)
    rows = np.array(load_samples(out, dataset, "val"))
    tar = out / "val" / dataset.splits["val"].shards[0].name
    data = bytearray(tar.read_bytes())
    start, size = int(rows["offset"][0]), int(rows["size"][0])
    data[start + at : start + at + len(change)] = change
    tar.write_bytes(data)
    rows["crc32"][0] = zlib.crc32(data[start : start + size])
    (out / "val/samples.npy").write_bytes(array_bytes(rows))
    seal(out)
    return lines(out)


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (b"\x93NUMPZ", 0),
        (b"\x02", 6),  # a format of numpy's that others do not read
        (b"|i1", 21),
        (b" " * 40 + b"(1, 1, 3)", HEADER_BYTES - 60),
        (encoded(photo(1, SIZE, SIZE)), 0),
    ],
)
def test_a_file_that_is_no_such_square_is_found_whatever_the_hashes_say(out: Path, change: bytes, at: int) -> None:
    (found,) = sealed_with(out, change, at)
    assert found.startswith(f"val/000000.tar: 0000000{found[22]}.npy, expected an .npy file of {SIZE} x {SIZE} RGB")


def test_other_pixels_that_are_sealed_are_sound(out: Path) -> None:
    """The check of a file's form does not stand in for its checksum."""
    assert sealed_with(out, b"\1\2\3", HEADER_BYTES) == []


def test_squares_of_another_size_than_the_description_says_are_found(out: Path) -> None:
    write_description(out, replace(load_dataset(out), size=SIZE // 2))
    found = lines(out)
    assert sum(".npy, expected an .npy file of" in line for line in found) == 14


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"size": 0}, "size is not that of raw squares"), ({"jpeg_sha256": "0"}, "jpeg_sha256 is no SHA-256")],
)
def test_a_description_without_sense_is_found(out: Path, changes: dict[str, object], named: str) -> None:
    write_description(out, replace(load_dataset(out), **changes))  # type: ignore[arg-type]
    (found,) = lines(out)
    assert named in found


def test_jpegs_among_squares_and_squares_among_jpegs_are_found(out: Path) -> None:
    """A description that names the other store: no member has the suffix that it should have."""
    dataset = load_dataset(out)
    write_description(out, replace(dataset, store="jpeg", jpeg_sha256=""))
    assert any("expected a header of KEY.jpg or KEY.cls" in line or "b'KEY.jpg'" in line for line in lines(out))
