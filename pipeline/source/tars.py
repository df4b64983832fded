"""Where each member of a tar lies, found by reading the headers, so that members can be read without unpacking.

`tarfile`'s own iteration is not used because it stops silently at a damaged header, as if the archive were complete;
here only the end mark ends an archive. `tarfile.TarInfo` still parses each header.
"""

import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.command import InputError

_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(_BLOCK)
_REMEDY: Final = "expected a whole tar; download it again, or unpack it if that works"
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK": "zip",
}

_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS: Final = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_WITHOUT_BYTES: Final = (*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_LONG_NAME: Final = tarfile.GNUTYPE_LONGNAME
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_ABOUT_NEXT: Final = (_LONG_NAME, tarfile.GNUTYPE_LONGLINK, *_PAX)
_MOST_EXTRA_BYTES: Final = 1 << 20  # of a long name or of pax records

# tar pads its output to a multiple of its record, 10 KiB unless asked otherwise. More than this after the end mark are
# the zeros of a preallocated file whose download is not finished.
_MOST_PADDING: Final = 4 << 20


class Member(NamedTuple):
    """A file in a tar; `offset` is where its bytes start, counted from the start of the whole file."""

    name: bytes
    bytes: int
    offset: int


class _Tar(NamedTuple):
    descriptor: int
    where: str  # for messages
    start: int
    stop: int


class _Entry(NamedTuple):
    type: bytes
    member: Member


def tar_members(path: Path, start: int = 0, size: int | None = None, within: str = "") -> Iterator[Member]:
    """The files in the tar at `path`, in its order; or in an inner tar, named `within`, `size` bytes from `start` on.

    Names are as written. InputError when it is damaged, cut short or compressed, or holds links or sparse files.
    """
    where = f"{within} in {path}" if within else str(path)
    with open(path, "rb", buffering=0) as stream:
        end = os.fstat(stream.fileno()).st_size
        stop = end if size is None else min(start + size, end)
        for type, member in _entries(_Tar(stream.fileno(), where, start, stop)):
            if type in _FILES:
                yield member
            elif type in _LINKS or type == tarfile.GNUTYPE_SPARSE:
                kind = "a link" if type in _LINKS else "a sparse file"
                name = os.fsdecode(member.name)
                raise InputError(f"{where} holds {kind} ({name}), expected only whole files; unpack it into a folder")


def _entries(tar: _Tar) -> Iterator[_Entry]:
    position = tar.start
    extra: dict[bytes, bytes] = {}  # what extension headers said of the entry that comes
    while (header := _header(tar, position)) is not None:
        is_extension = header.type in _ABOUT_NEXT
        size = header.size if is_extension else _size(extra, header, tar, position)
        stored = 0 if header.type in _WITHOUT_BYTES else size
        offset = position + _BLOCK
        if size < 0 or offset + stored > tar.stop:
            raise InputError(f"{tar.where} ends within {_name(header)} at byte {tar.stop:,}, {_REMEDY}")
        if is_extension:
            extra |= _extension(tar, header.type, offset, size)
        elif header.type != tarfile.XGLTYPE:  # what pax says of all entries is comments and dates
            sparse = any(key.startswith(b"GNU.sparse.") for key in extra)
            type = tarfile.GNUTYPE_SPARSE if sparse else header.type
            yield _Entry(type, Member(extra.get(b"path") or os.fsencode(header.name), size, offset))
            extra = {}
        position = offset + -(-stored // _BLOCK) * _BLOCK
    if tar.stop - position > _MOST_PADDING:
        raise InputError(f"{tar.where} ends at byte {position:,} of its {tar.stop:,}, {_REMEDY}")


def _header(tar: _Tar, position: int) -> tarfile.TarInfo | None:
    """The header at `position`, or None for the end mark."""
    block = os.pread(tar.descriptor, _BLOCK, position) if position < tar.stop else b""
    if block == _END:
        return None
    if position == tar.start:
        for magic, name in _COMPRESSED.items():
            if block.startswith(magic):
                raise InputError(f"{tar.where} is compressed ({name}), expected a plain tar; decompress or unpack it")
    try:
        return tarfile.TarInfo.frombuf(block, sys.getfilesystemencoding(), "surrogateescape")
    except tarfile.HeaderError as error:
        if not block and position > tar.start:
            raise InputError(f"{tar.where} ends at byte {position:,} without an end mark, {_REMEDY}") from error
        fault = "is no tar" if position == tar.start else f"is damaged at byte {position:,}"
        raise InputError(f"{tar.where} {fault} ({error}), {_REMEDY}") from error


def _extension(tar: _Tar, type: bytes, offset: int, size: int) -> dict[bytes, bytes]:
    if size > _MOST_EXTRA_BYTES:
        raise InputError(f"{tar.where} is damaged at byte {offset - _BLOCK:,} (a name of {size:,} bytes), {_REMEDY}")
    data = os.pread(tar.descriptor, size, offset)
    if type == _LONG_NAME:
        return {b"path": data.partition(b"\0")[0]}
    return dict(_pax_records(tar, data, offset)) if type in _PAX else {}


def _pax_records(tar: _Tar, data: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    # A record is "27 path=n01440764/x.JPEG\n", where 27 is its own length (POSIX.1-2001, pax).
    position = 0
    while position < len(data) and data[position]:
        digits = data[position : position + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[position + len(digits) + 1 : position + length - 1].partition(b"=")
        if not equals or position + length > len(data):
            raise InputError(f"{tar.where} is damaged at byte {offset + position:,} (its pax records), {_REMEDY}")
        yield key, value
        position += length


def _size(extra: dict[bytes, bytes], header: tarfile.TarInfo, tar: _Tar, position: int) -> int:
    digits = extra.get(b"size")
    if digits is None:
        return header.size
    if not digits.isdigit() or len(digits) > 20:
        raise InputError(f"{tar.where} is damaged at byte {position:,} (a member's size), {_REMEDY}")
    return int(digits)


def _name(header: tarfile.TarInfo) -> str:
    return "a name" if header.type in _ABOUT_NEXT else header.name
