"""The same source, options and encoder give the same bytes on every machine: data sets known by their hashes.

Of generated pictures, and of files that take each way through sharding. Where a change of what is written is meant, the
failing test says what to put here.
"""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pictures import encoded
from pipeline.manifest import DATASET_FILE
from pipeline.picture.jpeg import encoder_version
from pipeline.sample import SampleConfig, make
from pipeline.shard import ShardOptions, shard

ENCODER = "simplejpeg 1.9.0, cykooz-resizer 4.0.1, Pillow 13.0.0"
# SHA-256 of dataset.json, which holds those of all files but the indexes; by source and --size.
SAMPLE, FORMATS = "sample", "formats"
GOLDEN = {
    (SAMPLE, 64): "2ac1ef76772c171a658df346800ded9e0a6755ebcaceb9cd0c88493266e7dd5b",
    (FORMATS, 64): "7c252ba71f2aade51d14165770fbc18c6e4cdac05d41711c43e9a36269a62eca",
    (FORMATS, 0): "a1c526a7c3fdf66f91703d34cf788856985781e23fe6839696b79448a68242cd",
}
pytestmark = pytest.mark.skipif(encoder_version() != ENCODER, reason=f"another encoder than {ENCODER}")


def pattern(seed: int, width: int, height: int) -> Image.Image:
    """An RGB picture of smooth hills with edges and grain, by integers alone."""
    y, x = np.mgrid[:height, :width]
    hills = [(x * (seed + 3) + y * (7 - channel) + x * y // (40 + 9 * channel)) % 512 for channel in range(3)]
    pixels = np.stack([np.minimum(hill, 511 - hill) for hill in hills], axis=2)
    grain = (x * 73 + y * 151 + seed * 31) % 13
    return Image.fromarray((pixels * 15 // 16 + grain[..., None]).astype(np.uint8))


def write_source(root: Path) -> Path:
    """Pictures that take each way through sharding."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    floats = np.arange(90 * 70, dtype=np.float32).reshape(70, 90) / 8192
    classes = {
        "JPEGs": {
            "plain": encoded(pattern(0, 130, 97), quality=90),
            "scaled by its DCT": encoded(pattern(1, 700, 530), quality=85),
            "enlarged": encoded(pattern(2, 40, 33), quality=95),
            "progressive": encoded(pattern(3, 150, 200), quality=80, progressive=True),
            "4:4:4": encoded(pattern(4, 111, 99), quality=90, subsampling=0),
            "grey": encoded(pattern(5, 99, 111).convert("L"), quality=90),
            "CMYK": encoded(pattern(6, 90, 77).convert("CMYK"), quality=90),
            "turned": encoded(pattern(7, 120, 80), quality=90, exif=turned),
        },
        "others": {
            "PNG": encoded(pattern(8, 101, 140), "PNG"),
            "16 bits": encoded(Image.fromarray((floats * 65536).astype(np.uint16)), "PNG"),
            "floats": encoded(Image.fromarray(floats), "TIFF"),
            "palette": encoded(pattern(9, 80, 90).quantize(32), "GIF"),
        },
    }
    for name, files in classes.items():
        for split, chosen in {"train": files, "val": dict(list(files.items())[:1])}.items():
            (root / split / name).mkdir(parents=True)
            for file, data in chosen.items():
                (root / split / name / file).write_bytes(data)
    return root


def write_sample(root: Path) -> Path:
    """A small sample of pipeline.sample's."""
    make(SampleConfig(dir=root, train_pictures=3, val_pictures=1, side=(64, 150), workers=1))
    return root


def dataset_sha256(folder: Path, kind: str, size: int) -> str:
    source, out = {SAMPLE: write_sample, FORMATS: write_source}[kind](folder / "source"), folder / "out"
    assert shard(ShardOptions(source=source, out=str(out), size=size, workers=1)) == 0
    return hashlib.sha256((out / DATASET_FILE).read_bytes()).hexdigest()


@pytest.mark.parametrize(("kind", "size"), GOLDEN)
def test_the_bytes_are_those_of_every_machine(kind: str, size: int, tmp_path: Path) -> None:
    found = dataset_sha256(tmp_path, kind, size)
    assert found == GOLDEN[kind, size], f"other bytes; where that is meant, put them into {__file__}"


def least_instructions() -> dict[str, str]:
    """Variables that let numpy, libjpeg-turbo, OpenBLAS and the C library use what the least processor has."""
    found: list[str] = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # type: ignore[index, assignment]
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        "JSIMD_FORCENONE": "1",
        "OPENBLAS_CORETYPE": "Prescott",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA",
    }


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are those of x86-64")
def test_lesser_instructions_write_the_same_bytes(tmp_path: Path) -> None:
    """The resizer has no such variable; test_resize.py holds its instruction sets against one another."""
    script = (
        "import pathlib, sys, test_same_bytes as same\n"
        "for kind, size in same.GOLDEN:\n"
        "    print(same.dataset_sha256(pathlib.Path(sys.argv[1], f'{kind} {size}'), kind, size))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, **least_instructions(), "PYTHONPATH": path}
    words = [sys.executable, "-c", script, str(tmp_path)]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert [line for line in run.stdout.split() if len(line) == 64] == list(GOLDEN.values()), run.stderr
