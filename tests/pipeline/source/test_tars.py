import io
import tarfile
from pathlib import Path

import pytest

from layouts import tar_of
from pipeline.command import InputError
from pipeline.source.tars import Member, tar_members

LONG = f"{'folder/' * 40}{'x' * 150}.JPEG"
FILES = {"a.JPEG": b"a" * 700, LONG: b"bb", "ö \udcff.JPEG": b"", "./c.JPEG": b"c" * 512}


def found_in(path: Path, start: int = 0, size: int | None = None) -> dict[str, bytes]:
    """What the walk finds, read back from where it says."""
    data = path.read_bytes()
    found = list(tar_members(path, start, size))
    return {
        each.name.decode("utf-8", "surrogateescape"): data[each.offset : each.offset + each.bytes] for each in found
    }


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_the_walk_says(tmp_path: Path, format: int) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(FILES, format))
    assert found_in(path) == FILES


def test_an_old_short_format_and_prefixes_are_read(tmp_path: Path) -> None:
    files = {f"{'p' * 80}/{'n' * 90}": b"1", "a": b"2"}
    (tmp_path / "x.tar").write_bytes(tar_of(files, tarfile.USTAR_FORMAT))
    assert found_in(tmp_path / "x.tar") == files


def test_a_tar_in_a_tar_is_walked_in_place(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    path.write_bytes(tar_of({"first.tar": tar_of({"z": b"z"}), "inner.tar": tar_of(FILES), "last": b"9" * 3000}))
    inner = list(tar_members(path))[1]
    assert found_in(path, start=inner.offset, size=inner.bytes) == FILES


def test_a_tar_in_a_tar_ends_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    path.write_bytes(tar_of({"inner.tar": WHOLE[:SECOND], "z": b"z"}))
    inner = next(tar_members(path))
    with pytest.raises(InputError, match=r"^n\.tar in .*outer\.tar ends at byte 2,048 without an end mark"):
        list(tar_members(path, inner.offset, inner.bytes, "n.tar"))


def test_a_size_in_pax_records_counts(tmp_path: Path) -> None:
    data = bytearray(tar_of({"a.JPEG": b"12345", "b.JPEG": b"6"}))
    info = tarfile.TarInfo("a.JPEG")
    # tarfile writes such a record for sizes of 8 GiB and more, where the header's own field is too small.
    extended = info.create_pax_global_header({"comment": "of all"}) + _pax({"size": "5"})
    info.size = 0
    data[: tarfile.BLOCKSIZE] = extended + info.tobuf()
    (tmp_path / "x.tar").write_bytes(data)
    assert found_in(tmp_path / "x.tar") == {"a.JPEG": b"12345", "b.JPEG": b"6"}


def _pax(records: dict[str, str]) -> bytes:
    body = b"".join(f"{len(key) + len(value) + 5} {key}={value}\n".encode() for key, value in records.items())
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(body)
    return info.tobuf() + body.ljust(tarfile.BLOCKSIZE, b"\0")


def _with(member: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(member)
    return stream.getvalue()


def link(type: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("link.JPEG")
    info.type, info.linkname = type, "a.JPEG"
    return info


WHOLE = tar_of({"a.JPEG": b"a" * 700, "b.JPEG": b"b"})
SECOND = 512 + 1024  # the header of b.JPEG


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no tar"),
        (b"hello world\n" * 100, "is no tar"),
        (b"\x1f\x8b" + WHOLE, r"is compressed \(gzip\)"),
        (b"\x28\xb5\x2f\xfd" + WHOLE, r"is compressed \(zstd\)"),
        (WHOLE[:700], "ends within a.JPEG at byte 700"),
        (WHOLE[: SECOND + 100], "is damaged at byte 1,536"),
        (WHOLE[:SECOND], "ends at byte 1,536 without an end mark"),
        (WHOLE[: SECOND + 30] + b"?" + WHOLE[SECOND + 31 :], "is damaged at byte 1,536"),
        (WHOLE[: SECOND + 1024] + bytes(5 << 20), "ends at byte 2,560 of its 5,24"),
        (_with(link(tarfile.SYMTYPE)), r"holds a link \(link.JPEG\)"),
        (_with(link(tarfile.LNKTYPE)), r"holds a link \(link.JPEG\)"),
        (_pax({"GNU.sparse.major": "1"}) + WHOLE, r"holds a sparse file \(a.JPEG\)"),
        (_pax({"size": "-5"}) + WHOLE, "a member's size"),
        (_pax({"size": "5"}).replace(b"10 size", b"99 size") + WHOLE, "pax records"),
    ],
)
def test_a_tar_that_is_not_whole_is_named_and_never_taken_for_one(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        list(tar_members(tmp_path / "x.tar"))
    assert "expected" in str(raised.value) and "\n" not in str(raised.value)


def test_a_tar_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    end = WHOLE.rindex(b"b") + 512  # padding and end mark lie behind
    for length in range(0, end - 511, 37):
        (tmp_path / "x.tar").write_bytes(WHOLE[:length])
        with pytest.raises(InputError):
            list(tar_members(tmp_path / "x.tar"))


def test_folders_and_devices_are_no_members(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    (tmp_path / "x.tar").write_bytes(folder.tobuf() + link(tarfile.FIFOTYPE).tobuf() + tar_of({"a": b"1"}))
    assert list(tar_members(tmp_path / "x.tar")) == [Member(b"a", 1, 3 * 512)]
