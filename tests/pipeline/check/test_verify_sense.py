import shutil
from pathlib import Path

import numpy as np
import pytest

from damaged import SIZE, lines, members, named, seal, swap, write_fields, write_split
from pictures import encoded, photo
from pipeline.manifest import SAMPLE_DTYPE, array_bytes, load_dataset, load_samples

# All hashes are right, and the files disagree


def test_tars_swapped_with_their_hashes_are_found(out: Path) -> None:
    swap(out / "train/000000.tar", out / "train/000001.tar")
    seal(out)
    tars, indexes = ({f"train/00000{number}.{suffix}" for number in (0, 1)} for suffix in ("tar", "idx"))
    assert named(out) == tars | indexes
    write_fields(out, ["splits", "train", "shards", 0, "samples"], 9)
    write_fields(out, ["splits", "train", "shards", 1, "samples"], 10)
    assert named(out) == {"train/samples.npy", "train/000001.tar"} | indexes
    assert not any("SHA-256" in line for line in lines(out))


def test_two_tars_whose_samples_trade_places_are_found(out: Path) -> None:
    """Equal in all but the JPEG's bytes: only table against tar tells."""
    samples = [(encoded(photo(seed, SIZE, SIZE)), 1) for seed in (0, 1)]
    longest = max(len(jpeg) for jpeg, _ in samples)
    padded = [(jpeg.ljust(longest, b"\0"), label) for jpeg, label in samples]
    write_split(out, "val", padded)
    assert lines(out) == []
    table = (out / "val/samples.npy").read_bytes()
    write_split(out, "val", padded[::-1])
    (out / "val/samples.npy").write_bytes(table)
    seal(out)
    assert [line.partition(", expected")[0] for line in lines(out)] == [
        f"val/000000.tar: 0000000{key}.jpg, CRC-32" for key in (0, 1)
    ]


def test_labels_that_trade_places_are_found(out: Path) -> None:
    pictures = [encoded(photo(seed, SIZE, SIZE)) for seed in (0, 1)]
    write_split(out, "val", [(pictures[0], 0), (pictures[1], 2)])
    path = out / "val/000000.tar"
    data = bytearray(path.read_bytes())
    first, second = (info.offset_data for info in members(path) if info.name.endswith(".cls"))
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)
    seal(out)
    assert lines(out) == [
        "val/000000.tar: 00000000.cls, expected 0, found b'2'",
        "val/000000.tar: 00000001.cls, expected 2, found b'0'",
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([(4, 4), (7, 7)], []),
        ([(4, 4), (3, 3)], ["val/000000.tar: 00000003.jpg, key, expected one above 00000004, found 00000003"]),
        ([(4, 4), (4, 4)], ["val/000000.tar: 00000004.jpg, key, expected one above 00000004, found 00000004"]),
        ([(4, 5), (6, 6)], ["val/000000.tar: 00000005.cls, key, expected 00000004, found 00000005"]),
        ([(4, 4), (10**8, 10**8)], []),
    ],
)
def test_keys_within_a_tar(out: Path, keys: list[tuple[int, int]], expected: list[str]) -> None:
    write_split(out, "val", [(encoded(photo(seed, SIZE, SIZE)), 1) for seed in (0, 1)], keys)
    assert lines(out) == expected


def test_a_tar_that_is_longer_than_its_samples_need_is_found(out: Path) -> None:
    path = out / "val/000000.tar"
    path.write_bytes(path.read_bytes() + bytes(10240))
    seal(out)
    assert lines(out) == ["val/000000.tar: bytes by its own form, expected 20,480, found 30,720"]


def test_other_numbers_of_bytes_and_samples_are_found(out: Path) -> None:
    write_fields(out, ["splits", "val", "shards", 0, "bytes"], 1024)
    assert lines(out) == ["val/000000.tar: bytes, expected 1,024, found 20,480"]
    seal(out)
    write_fields(out, ["splits", "val", "shards", 0, "samples"], 8)
    write_fields(out, ["splits", "val", "samples"], 8)
    assert lines(out)[1:] == ["val/000000.tar: samples, expected 8, found 7"]
    assert lines(out)[0].startswith("val/samples.npy: header, expected ((8,)")


def test_keys_that_repeat_or_descend_are_found(out: Path) -> None:
    """The first shard once more, in place of the second one, with table and index to match."""
    table = load_samples(out, load_dataset(out), "train").copy()
    shutil.copy(out / "train/000000.tar", out / "train/000001.tar")
    shutil.copy(out / "train/000000.idx", out / "train/000001.idx")
    again = table[:10].copy()
    again["shard"] = 1
    (out / "train/samples.npy").write_bytes(array_bytes(np.concatenate([table[:10], again, table[19:]])))
    write_fields(out, ["splits", "train", "shards", 1, "samples"], 10)
    write_fields(out, ["splits", "train", "samples"], 24)
    seal(out)
    (line,) = lines(out)
    assert line.startswith("train/000001.tar: first key, expected one above 000000")


@pytest.mark.parametrize(
    ("column", "row", "value", "expected"),
    [
        (
            "offset",
            2,
            2**63,
            "000000.tar: 0000000{key}.jpg, first byte by the sample table, expected 9223372036854775808",
        ),
        ("size", 0, 2**32 - 1, "000000.tar: 0000000{key}.jpg, bytes by the sample table, expected 4294967295"),
        ("crc32", 1, 7, "000000.tar: 0000000{key}.jpg, CRC-32, expected 00000007"),
        ("label", 1, 3, "samples.npy: row 1, label, expected 0 to 2, found 3"),
        ("label", 1, -1, "samples.npy: row 1, label, expected 0 to 2, found -1"),
        ("shard", 1, 9, "samples.npy: row 1, shard, expected 0, found 9"),
    ],
)
def test_a_wrong_row_is_found(out: Path, column: str, row: int, value: int, expected: str) -> None:
    table = load_samples(out, load_dataset(out), "val").copy()
    table[column][row] = value
    (out / "val/samples.npy").write_bytes(array_bytes(table))
    seal(out)
    key = members(out / "val/000000.tar")[2 * row].name[7]
    (found,) = lines(out)
    assert found.startswith("val/" + expected.format(key=key))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "header, expected of an .npy file"),
        (b"garbage" * 20, "header, expected of an .npy file"),
        (b"\x93NUMPY\x01\x00v\x00" + b"-" * 118, "header, expected of an .npy file"),
        (array_bytes(np.zeros(6, SAMPLE_DTYPE)), "header, expected ((7,)"),
        (array_bytes(np.zeros((7, 1), SAMPLE_DTYPE)), "header, expected ((7,)"),
        (array_bytes(np.zeros(7)), "header, expected ((7,)"),
        (
            array_bytes(np.zeros(7, SAMPLE_DTYPE)).replace(b"(7,), }" + b" " * 10, b"(99999999999,), }"),
            "header, expected ((7,)",
        ),
        (array_bytes(np.zeros(7, SAMPLE_DTYPE))[:-1], "bytes of rows, expected 168, found 167"),
        (bytes(10**5), "bytes, expected at most "),
    ],
)
def test_a_file_that_is_no_sample_table_is_found(out: Path, data: bytes, expected: str) -> None:
    (out / "val/samples.npy").write_bytes(data)
    seal(out)
    (found,) = lines(out)
    assert found.startswith(f"val/samples.npy: {expected}")


@pytest.mark.parametrize("data", [b"", b"\xff" * 10**6, b"v1.2 7\n", b"v1.2 99999999999\n" + b"\n" * 10**4])
def test_an_index_of_garbage_is_found(out: Path, data: bytes) -> None:
    (out / "val/000000.idx").write_bytes(data)
    found = lines(out)
    assert {line.partition(":")[0] for line in found} == {"val/000000.idx"}
    assert max(map(len, found)) < 600


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize(
    ("at", "value"),
    [
        (124, b"77777777777"),  # 8 GiB
        (124, b"\xff" * 12),  # base 256, negative
        (124, b"\x80" + b"\0" * 3 + b"\x7f" * 8),  # base 256, huge
        (124, b"-0000000001"),
        (0, b"\xff\xfe.jpg"),
        (0, b"../../../.jpg"),
        (0, b"0" * 99 + b"1"),
        (156, b"2"),  # a link
        (156, b"x"),  # extended attributes
        (0, bytes(512)),
    ],
)
def test_hostile_headers_are_found(out: Path, at: int, value: bytes, with_table: bool) -> None:
    """Checksums and hashes are made to fit."""
    path = out / "val/000000.tar"
    data = bytearray(path.read_bytes())
    start = members(path)[4].offset
    header = data[start : start + 512]
    header[at : at + len(value)] = value
    if any(header):
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    data[start : start + 512] = header
    path.write_bytes(data)
    seal(out)
    assert lines(out)
    if not with_table:
        (out / "val/samples.npy").write_bytes(b"")
    assert "val/000000.tar" in named(out)


def test_a_label_that_is_no_class_is_found_without_a_table(out: Path) -> None:
    write_split(out, "val", [(encoded(photo(0, SIZE, SIZE)), 12)])
    assert lines(out) == ["val/samples.npy: row 0, label, expected 0 to 2, found 12", *lines(out)[1:]]
    assert lines(out)[1:] == ["val/000000.tar: 00000000.cls, expected a class from 0 to 2, found b'12'"]


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_against_a_table_that_has_none_or_some(out: Path, labelled: bool) -> None:
    picture = encoded(photo(0, SIZE, SIZE))
    write_split(out, "test", [(picture, 1 if labelled else -1)])
    table = load_samples(out, load_dataset(out), "test").copy()
    table["label"] = -1 if labelled else 1
    (out / "test/samples.npy").write_bytes(array_bytes(table))
    seal(out)
    expected = {
        True: "00000000.cls, expected no label, as the sample table has it, found b'1'",
        False: "header of a .cls at byte 1,536, name, expected b'KEY.cls', found b''",
    }
    assert lines(out)[0] == f"test/000000.tar: {expected[labelled]}"
    assert named(out) == {"test/000000.tar"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["splits", "val", "shards", 0, "name"], "../../x.tar"),
        (["splits", "val", "shards", 0, "name"], 7),
        (["splits", "val", "shards", 0, "bytes"], "many"),
        (["splits", "val", "shards", 0, "samples"], True),
        (["splits", "val", "shards", 0, "samples"], -1),
        (["splits", "val", "shards", 0, "sha256"], None),
        (["splits", "val", "shards"], []),
        (["splits", "val", "samples"], 8),
        (["splits", "../val"], {"samples": 0, "shards": []}),
        (["splits"], {}),
        (["classes", 0, "index"], 1),
        (["classes", 0, "words"], None),
        (["size"], 1.5),
        (["rejected"], "1"),
        (["files"], {}),
        (["files", "mean.npy"], 3),
        (["files", "/etc/passwd"], "0" * 64),
    ],
)
def test_a_description_without_sense_is_found(out: Path, path: list[str | int], value: object) -> None:
    write_fields(out, path, value)
    assert named(out) == {"dataset.json"}


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 10**6, b"\xff", b"9" * 10**5])
def test_a_description_of_garbage_is_a_fault(out: Path, data: bytes) -> None:
    (out / "dataset.json").write_bytes(data)
    (found,) = lines(out)
    assert found.startswith("dataset.json: it ")


def test_a_wrong_number_of_rejects_is_found(out: Path) -> None:
    seal(out, rejected=2)
    assert lines(out) == ["rejects.jsonl: lines, expected 2, found 1"]


# Decoding


@pytest.mark.parametrize(
    ("jpeg", "expected"),
    [
        (b"not a picture", "expected a whole JPEG, found ValueError"),
        (encoded(photo(0, SIZE, SIZE))[:-100], "expected a whole JPEG, found "),
        (encoded(photo(0, SIZE, SIZE), "PNG"), "expected a whole JPEG, found ValueError"),
        (encoded(photo(0, SIZE, 16)), "expected 32 x 32 YCbCr, found 32 x 16 YCbCr"),
        (encoded(photo(0, SIZE, SIZE).convert("L")), "expected 32 x 32 YCbCr, found 32 x 32 Gray"),
    ],
)
def test_what_does_not_decode_is_found_if_asked_for(out: Path, jpeg: bytes, expected: str) -> None:
    write_split(out, "val", [(encoded(photo(1, SIZE, SIZE)), 0), (jpeg, 1)])
    assert lines(out) == []
    (found,) = lines(out, decode=True)
    assert found.startswith(f"val/000000.tar: 00000001.jpg, decoded, {expected}")
