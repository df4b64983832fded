"""A sharding run, for crash states; a start after a crash is the same program. Called with OUT MODE; reads SOURCE."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

from pictures import tree_bytes, write_tree
from pipeline.command import InputError
from pipeline.manifest import DATASET_FILE
from pipeline.shard import shard
from sharding import options

BROKEN: Final = {
    "no sync of folders": "pipeline.files.fsync_folder",
    "no sync of files": "pipeline.files.fsync_file",
}


def prepare(source: Path) -> None:
    """Pictures."""
    write_tree(source, {"train": {"a": 6, "b": 6}})


def write(source: Path, out: Path) -> int:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return shard(options(source, out, shard_samples=5))


def faults_after_a_crash(out: Path, source: Path, expected: dict[str, bytes], promises: Sequence[str]) -> Iterator[str]:
    """What is wrong with what a crash has left; promises: whether the run had said that it is done."""
    if promises or (out / DATASET_FILE).exists():  # which comes last, and makes it a data set
        found = tree_bytes(out)
        if wrong := sorted(name for name, data in expected.items() if found.get(name) != data):
            yield f"it is a data set, but {wrong} are not as they should be"
    try:
        status = write(source, out)
    except InputError as error:
        yield f"the same command is refused: {error}"
        return
    if status:
        yield f"the same command ends with status {status}"
    elif tree_bytes(out) != expected:
        different = {name for name, data in tree_bytes(out).items() if expected.get(name) != data}
        yield f"other bytes: {sorted(different | (expected.keys() - tree_bytes(out).keys()))}"


def main(out: Path, mode: str) -> None:
    """Shard, and mark in the recording that it is done."""
    with mock.patch(BROKEN[mode], return_value=True) if mode in BROKEN else mock.MagicMock():
        assert write(Path(os.environ["SOURCE"]), out) == 0
    with open(os.environ["RECORDED_IN"], "a", encoding="utf-8") as recording:
        recording.write("mark\tdone\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
