"""Files that may come from elsewhere: their JSON and arrays are held against what is expected, before they are used.

What is wrong is a ValueError of one line, which each reader makes an InputError that names the file and the remedy.
"""

import json
import os
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import DTypeLike
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.command import printable
from pipeline.files import open_regular

MOST_JSON: Final = 32 * 2**20  # bytes of a file that is read whole; ImageNet's dataset.json has 0.3 MB
MOST_LINE: Final = 2**20  # bytes of a line of a log
MOST_DEPTH: Final = 24  # of lists and objects in one another; our own have 6 at most
MOST_NAMES: Final = 10_000  # of an object and those in it: each that is wrong costs a kilobyte

# A whole number that counts something; True is none, nor is 1.0.
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Measured = Annotated[float, Field(strict=True)]  # a run that diverged has measured NaN, or infinity
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Of a file that lies in a folder: no path, no hidden file, nothing that a line of text could not hold.
FileName = Annotated[str, Field(pattern=r"^[^./\x00-\x1f][^/\x00-\x1f]{0,254}$")]

# `__pydantic_config__` of a dataclass that is read whole: a field that it lacks is a later version's.
FORBID_UNKNOWN: Final = ConfigDict(extra="forbid")


def read_regular(path: Path, most: int) -> bytes:
    """A file's bytes; ValueError where they are more than `most`, OSError where it is none or cannot be read."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, expected at most {most:,}")
        return stream.read(size)


def parse_json(data: bytes | str) -> Any:
    """The values of a JSON text; ValueError also where they are too deep or too many to be walked through."""
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:  # which would hold, and show, all of it
        raise ValueError(f"it is no text: {error.reason} at byte {error.start:,}") from None
    _names(values, MOST_DEPTH)
    return values


def _names(values: Any, left: int) -> int:
    """How many names an object and those in it have; of a list, which is checked up to its first fault, an item."""
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    if inner and not left:
        raise ValueError("it is nested too deeply")
    found = (_names(each, left - 1) for each in inner if isinstance(each, dict | list))
    names = len(values) + sum(found) if isinstance(values, dict) else max(found, default=0)
    if names > MOST_NAMES:
        raise ValueError(f"it has more than {MOST_NAMES:,} names")
    return names


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The values of a JSON file of `most` bytes at most; ValueError or OSError as those of the two above."""
    return parse_json(read_regular(path, most))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: Any, values: Any) -> Any:
    """An object of a type, such as a dataclass, of values that JSON has; ValueError names the first that is wrong.

    Numbers that the type does not say are strict may be converted; fields that it does not know are passed over, but
    for FORBID_UNKNOWN.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = printable(".".join(map(str, first["loc"]))[:100])
        found = "" if first["type"] == "missing" else f", not {first['input']!r:.80}"
        raise ValueError(f"{place}: {first['msg']}{found}"[:300]) from None
    except OverflowError as error:  # a whole number in place of a float
        raise ValueError(str(error)) from None


def checked_whole(kind: Any, values: Any) -> Any:
    """The same, where a field that the dataclass does not know is wrong too: a later version's."""
    known = {each.name for each in fields(kind)}
    if unknown := checked(dict[str, Any], values).keys() - known:
        raise ValueError(f"unknown {', '.join(map(printable, sorted(unknown)))}"[:300])
    return checked(kind, values)


def require_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """ValueError unless a file is an .npy of just such an array, by its header and length.

    By itself numpy makes room for whatever a header asks for.
    """
    expected = shape, False, np.dtype(dtype)
    with open_regular(path) as stream:
        try:
            if np.lib.format.read_magic(stream) != (1, 0):  # the next has a header of up to 4 GiB
                raise ValueError("format")
            header = np.lib.format.read_array_header_1_0(stream)
        except Exception as error:  # it parses Python, and raises whatever that does
            raise ValueError(f"its header is none of an .npy file: {error!r:.80}") from None
        if header != expected:
            raise ValueError(f"its header is {header!r:.100}, not {expected!r:.150}")
        size = os.fstat(stream.fileno()).st_size - stream.tell()
    if size != (bytes_ := expected[2].itemsize * int(np.prod(shape, dtype=object))):
        raise ValueError(f"it has {size:,} bytes of values, not {bytes_:,}")
