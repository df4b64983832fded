"""Make what today's version writes, small enough to keep: python tests/kept/make.py NAME.tar.xz, from tests/kept.

Shards as JPEG and raw, and for each network a run of two epochs, whose weights are then a pattern, which packs well;
with what a network of these weights says of three pictures. Later versions read it: test_kept.py.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from pictures import write_tree
from pipeline.files import sha256_of
from service import load
from service.run.checkpoint import MANIFEST, checkpoints

SIZE: Final = "--size 72 --workers 1 --shard-samples 8 --quality 80".split()
SMALL: Final = "--no-compile --batch-size 8 --port 0 --model.precision float32 --keep-checkpoints 2".split()
TWO_EPOCHS: Final = ("--max-steps", "4")  # of 14 pictures
RUNS: Final = {
    "demo": "demo --data.crop 67 --model.fc-width 16 --optim.drop-epochs 1e9 --epochs 3".split(),
    # Not to its end, which is that of its schedule.
    "modern": "modern --data.crop 67 --model.fc-width 16 --optim.warmup-epochs 1 --model.batch-norm --epochs 3".split(),
    "cifar": "cifar-18pct --data.crop 32 --epochs 3".split(),
}


def pattern(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Of its shape and type: small numbers that repeat, above 0 of a variance; the last layer's give no certainty."""
    values = torch.arange(tensor.numel()) * 5 % 11 - (-1 if name.endswith("running_var") else 5)
    scale = 0.2 if ".fc8." in name else 0.002 if name.startswith("fc10") else 0.02
    return (values * scale).reshape(tensor.shape).to(tensor.dtype)


def patterned(checkpoint: Path) -> None:
    """Put a pattern in place of all tensors of a checkpoint."""
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    for path in checkpoint.glob("*.safetensors"):
        save_file({name: pattern(name, tensor) for name, tensor in load_file(path).items()}, path)
        manifest["files"][path.name] = [path.stat().st_size, sha256_of(path)]
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def main(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        splits = {"train": {"a": 5, "b": 5, "c": 4}, "val": {"a": 2, "b": 1, "c": 1}}
        source = write_tree(folder / "source", splits, 90, 80)
        pictures = folder / "pictures"
        pictures.mkdir()
        for number, path in enumerate(sorted(source.glob("val/*/*"))[:3]):
            shutil.copyfile(path, pictures / f"{number}{path.suffix}")
        for store in ("jpeg", "raw"):
            command = [sys.executable, "-m", "pipeline.shard", str(source), "--out", str(folder / store), *SIZE]
            subprocess.run([*command, "--store", store], check=True)
        expected = {}
        for name, options in RUNS.items():
            command = [sys.executable, "-m", "service.train", *options, *SMALL, "--out", str(folder / name)]
            subprocess.run([*command, *TWO_EPOCHS, "--data.shards", str(folder / "jpeg")], check=True)
            newest, *older = checkpoints(folder / name)
            patterned(newest)
            for path in older:
                shutil.rmtree(path)
            answers = load(folder / name, "cpu").predict(sorted(pictures.iterdir()))
            expected[name] = [[(each.id, each.probability) for each in answer.likeliest] for answer in answers]
        (folder / "expected.json").write_text(json.dumps(expected, indent=1))
        (folder / "commands.json").write_text(json.dumps({name: [*words, *SMALL] for name, words in RUNS.items()}))
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for path in sorted(set(folder.iterdir()) - {source}):
                tar.add(path, path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
