"""The result of a shard, kept in a file beside its tar until the data set is finished.

The run reads it, and so does a run that resumes. It holds a digest of the shard's pictures and options, so that it is
never taken for the record of another shard.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import sha256_of_stream
from pipeline.folder import Folder
from pipeline.manifest import SAMPLE_DTYPE, Shard, index_name
from pipeline.write.stats import PixelSums, pixel_sums, restore_sums

RECORD_SUFFIX: Final = ".made.npz"


class Reject(NamedTuple):
    """A source picture left out, and why."""

    label: int  # -1 where it has none
    name: str  # within its class
    reason: str
    unreadable: bool  # its file could not be read: it may be readable the next time


class JpegTwin(NamedTuple):
    """The shard that the same pictures make as JPEGs: a raw data set is known by the one that these would be."""

    shard: Shard
    rows: NDArray[np.void]  # (samples,) of SAMPLE_DTYPE


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The result of a task; `shard` is None, and there is no tar, when every picture was rejected."""

    digest: str  # of the task
    shard: Shard | None
    rows: NDArray[np.void]  # (samples,) of SAMPLE_DTYPE; the column `shard` is still 0
    index: bytes  # of the tar
    rejects: tuple[Reject, ...]
    sums: PixelSums  # over the training pictures as written
    twin: JpegTwin | None = None  # of a raw shard


def record_name(tar: str) -> str:
    """The record of a tar."""
    folder, _, name = tar.rpartition("/")
    return f"{folder}/.{name.removesuffix('.tar')}{RECORD_SUFFIX}"


def write_record(folder: Folder, tar: str, made: ShardResult) -> None:
    """Write the result of a task, durably; its tar and index must exist already."""
    facts = {
        "digest": made.digest,
        "shard": made.shard and asdict(made.shard),
        "rejects": made.rejects,
        "pictures": made.sums.pictures,
        "twin": made.twin and asdict(made.twin.shard),
    }
    stream = io.BytesIO()
    # A zip file, whose CRCs np.load checks.
    np.savez(
        stream,
        facts=np.frombuffer(json.dumps(facts).encode("ascii"), np.uint8),
        index=np.frombuffer(made.index, np.uint8),
        rows=made.rows,
        pixels=pixel_sums(made.sums).astype(np.uint32),  # half the bytes; holds 16 million pictures
        moments=made.sums.moments,
        twin_rows=made.twin.rows if made.twin else np.empty(0, SAMPLE_DTYPE),
    )
    folder.write(record_name(tar), stream.getvalue())


def read_record(folder: Folder, tar: str) -> ShardResult:
    """The result of a shard; OSError when its record is missing or damaged."""
    data = folder.read(record_name(tar))
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
            return ShardResult(
                digest=facts["digest"],
                shard=Shard(**facts["shard"]) if facts["shard"] else None,
                rows=arrays["rows"],
                index=arrays["index"].tobytes(),
                rejects=tuple(Reject(*each) for each in facts["rejects"]),
                sums=restore_sums(facts["pictures"], arrays["pixels"].astype(np.int64), arrays["moments"]),
                twin=JpegTwin(Shard(**facts["twin"]), arrays["twin_rows"]) if facts.get("twin") else None,
            )
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise OSError(None, f"it is damaged ({error}); run the same again", record_name(tar)) from error


def is_shard_done(folder: Folder, tar: str, digest: str) -> bool:
    """Whether the task of this digest is done, its files are intact, and no unreadable picture is to be tried again."""
    try:
        made = read_record(folder, tar)
        if made.digest != digest or any(reject.unreadable for reject in made.rejects):
            return False
        return made.shard is None or _is_intact(folder, tar, made.shard, made.index)
    except OSError:
        return False  # not there, or damaged: what came of it is not known


def _is_intact(folder: Folder, tar: str, shard: Shard, index: bytes) -> bool:
    if folder.size(tar) != shard.bytes or folder.read(index_name(tar)) != index:
        return False
    if folder.local is None:
        return True  # a store checks uploads; reading the tar again would cost as much as making it
    with folder.open_reader(tar) as stream:
        return sha256_of_stream(stream) == shard.sha256
