"""What all sides are given: the same pictures as shards, as shards of pixels, as files; and how crops of them look."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.manifest import REJECTS_FILE

SIDE: Final = 256  # pixels of the stored squares
SUFFIXES: Final = (".jpg", ".jpeg")
TRIES: Final = 5


class Expected(NamedTuple):
    """The distribution of what comes out of random crops of all pictures, mirrored or not."""

    images: int
    mean: list[float]  # RGB on 0..255
    std: list[float]
    labels: dict[int, int]  # pictures of each


def make_inputs(pictures: Path, folder: Path, samples: int, raw: bool) -> None:
    """`files`, `shards` and, if asked for, `raw-shards` in a folder, unless they are there."""
    made = {"pictures": str(pictures.resolve()), "samples": samples}
    stamp = folder / "made.json"
    if not (stamp.is_file() and json.loads(stamp.read_text()) == made):
        shutil.rmtree(folder, ignore_errors=True)
        shard_exactly(pictures, folder, samples)
        export(folder / "shards", folder / "files")
        stamp.write_text(json.dumps(made))
    if raw and not (folder / "raw-shards").is_dir():
        shard(folder / "tree", folder / "raw-shards", "--store", "raw")


def shard_exactly(pictures: Path, folder: Path, samples: int) -> None:
    """Shards of as many samples: links to the pictures, spread evenly or repeated, without those that are rejected."""
    found = sorted(path for path in (pictures / "train").glob("*/*") if path.suffix.lower() in SUFFIXES)
    for _ in range(TRIES):
        if not found:
            break
        shutil.rmtree(folder, ignore_errors=True)
        link(found, folder / "tree/train", samples)
        shard(folder / "tree", folder / "shards")
        rejected = {Path(line["name"]).stem for line in lines_of(folder / "shards" / REJECTS_FILE)}
        if not rejected:
            return
        linked = (folder / "tree/train").glob("*/*")
        bad = {path.resolve() for path in linked if path.stem in rejected}
        found = [path for path in found if path.resolve() not in bad]
    raise InputError(f"{pictures}/train/<class>/ has too few sound JPEG files, expected some; give another folder")


def lines_of(path: Path) -> Iterator[dict[str, str]]:
    """The objects of a file of JSON lines."""
    return (json.loads(line) for line in path.read_text().splitlines())


def link(found: list[Path], tree: Path, samples: int) -> None:
    """`samples` links under new names: every so many-th picture, or all of them over and over."""
    for number in range(samples):
        path = found[number * len(found) // samples if samples < len(found) else number % len(found)]
        place = tree / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08d}.JPEG").symlink_to(path.resolve())


def shard(source: Path, out: Path, *more: str) -> None:
    """python -m pipeline.shard."""
    command = [sys.executable, "-m", "pipeline.shard", str(source), "--out", str(out), "--size", str(SIDE), *more]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise InputError(f"pipeline.shard {' '.join(more)} failed, expected shards in {out}; see its words above")


def export(shards: Path, files: Path) -> None:
    """Each training sample's JPEG bytes as a file <label>/<number>.jpg."""
    for number, (jpeg, label) in enumerate(members(shards)):
        place = files / f"{label:04d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08d}.jpg").write_bytes(jpeg)


def members(shards: Path) -> Iterator[tuple[bytes, int]]:
    """JPEG bytes and label of each training sample, as any reader of tars finds them: KEY.jpg, then KEY.cls."""
    for path in sorted((shards / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            contents = (stream.read() for member in tar if (stream := tar.extractfile(member)))
            yield from ((jpeg, int(label)) for jpeg, label in zip(contents, contents, strict=True))


def expected(files: Path, crop: int) -> Expected:
    """By simplejpeg and numpy, exactly: each pixel counts as often as there are crops that hold it."""
    margin = SIDE - crop
    reach = np.minimum(np.minimum(np.arange(1, SIDE + 1), np.arange(SIDE, 0, -1)), min(margin + 1, crop))
    weights = np.outer(reach, reach) / np.outer(reach, reach).sum()
    total, squares, labels = np.zeros(3), np.zeros(3), dict[int, int]()
    for folder in sorted(files.iterdir()):
        for path in folder.iterdir():
            pixels: NDArray[np.float64] = simplejpeg.decode_jpeg(path.read_bytes()).astype(np.float64)
            total += np.einsum("yx,yxc->c", weights, pixels)
            squares += np.einsum("yx,yxc->c", weights, pixels**2)
            labels[int(folder.name)] = labels.get(int(folder.name), 0) + 1
    images = sum(labels.values())
    mean = total / images
    return Expected(images, mean.tolist(), np.sqrt(squares / images - mean**2).tolist(), labels)
