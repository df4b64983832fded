"""Read `meta.mat` of a development kit in a subprocess, because a damaged file can crash the reader.

Bytes changed at random in such a file crash scipy 1.17's reader about once in forty times.
"""

import io
import json
import re
import subprocess
import sys
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

SECONDS: Final = 120  # to import scipy from a slow disk
_ID_FIELD: Final = re.compile(r"ILSVRC([0-9]{4})_ID")


class Synset(NamedTuple):
    """A class of the challenge."""

    number: int  # its ILSVRC id, which follows no order that a folder has
    id: str  # of WordNet: "n01440764"
    words: str


@lru_cache(maxsize=2)  # a kit is often there twice, packed and unpacked
def read_synsets(data: bytes) -> tuple[str, tuple[Synset, ...]]:
    """The year and the classes of a `meta.mat`: the leaves of its hierarchy; ValueError, in a line, when unusable."""
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    try:
        answer = subprocess.run(command, input=data, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"no answer in {SECONDS} s") from error
    if answer.returncode:
        said = answer.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(said[-1] if said else f"its reader ended with status {answer.returncode}")
    year, leaves = json.loads(answer.stdout)
    return year, tuple(Synset(*leaf) for leaf in leaves)


def _leaves(data: bytes) -> tuple[str, list[Synset]]:
    from scipy.io import loadmat  # here, so that only this process pays for it

    table = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True, variable_names=["synsets"])["synsets"])
    years = [match[1] for name in table.dtype.names or () if (match := _ID_FIELD.fullmatch(name))]
    if len(years) != 1:
        raise ValueError("it has no ILSVRC ids")
    leaves = [row for row in table if int(row["num_children"]) == 0]
    synsets = [Synset(int(row[f"ILSVRC{years[0]}_ID"]), str(row["WNID"]), str(row["words"]).strip()) for row in leaves]
    if not synsets or not len(synsets) == len({each.number for each in synsets}) == len({each.id for each in synsets}):
        raise ValueError("it has no classes, or one twice")
    return years[0], synsets


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_leaves(sys.stdin.buffer.read())))
