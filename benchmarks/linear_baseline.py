"""What a linear classifier makes of a picture tree: python benchmarks/linear_baseline.py TREE

Multinomial logistic regression on the standardised RGB pixels of the central crop, downsampled. Weight decay is the one
with the least validation error, which favours this baseline; a network has to beat it by far to have learnt anything.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.command import EXIT_DONE, InputError, run_command


@dataclass(frozen=True, kw_only=True)
class LinearBaseline:
    """Train and validation error of logistic regression on the pixels of a picture tree."""

    tree: tyro.conf.Positional[Path]
    """Folder with train/CLASS/PICTURE and val/CLASS/PICTURE."""
    size: int = 32
    """Side to which the central crops are downsampled, pixels."""
    weight_decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Factors of half the squared weights in the loss; all are tried."""
    iterations: int = 100
    """Steps of L-BFGS at most, for each weight decay."""
    threads: int = 1
    """CPU threads."""


def pixels(path: Path, size: int) -> NDArray[np.float32]:
    """The central crop of a picture at size x size, flat, on 0..1."""
    with Image.open(path) as opened:
        small = ImageOps.fit(opened.convert("RGB"), (size, size), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / np.float32(255)


def load(split: Path, size: int) -> tuple[Tensor, Tensor]:
    """Pixels (pictures, size * size * 3) and labels (pictures,) of one split."""
    folders = sorted(folder for folder in split.glob("*") if folder.is_dir())
    labelled = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    if not labelled:
        raise InputError(f"{split} holds no pictures, expected {split}/CLASS/PICTURE; make a tree with pipeline.sample")
    rows = np.stack([pixels(path, size) for path, _ in labelled])
    return torch.from_numpy(rows), torch.tensor([label for _, label in labelled])


def fit(rows: Tensor, labels: Tensor, weight_decay: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Weights (features, classes) and biases (classes,) of the regularised least cross-entropy."""
    classes = int(labels.max()) + 1
    weights = torch.zeros(rows.shape[1], classes, requires_grad=True)
    biases = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, biases], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = cross_entropy(rows @ weights + biases, labels) + weight_decay / 2 * weights.square().sum()
        value.backward()
        return value.item()

    optimizer.step(loss)
    return weights.detach(), biases.detach()


def error(rows: Tensor, labels: Tensor, weights: Tensor, biases: Tensor) -> float:
    """Top-1 error, 0 to 1."""
    return ((rows @ weights + biases).argmax(1) != labels).float().mean().item()


def main() -> int:
    config = tyro.cli(LinearBaseline)
    torch.set_num_threads(config.threads)
    train_rows, train_labels = load(config.tree / "train", config.size)
    val_rows, val_labels = load(config.tree / "val", config.size)
    spread, mean = torch.std_mean(train_rows, dim=0)
    train_rows, val_rows = (train_rows - mean) / (spread + 1e-6), (val_rows - mean) / (spread + 1e-6)
    print(f"{len(train_rows)} training and {len(val_rows)} validation pictures, {config.size} x {config.size} x RGB")
    val_errors = []
    for weight_decay in config.weight_decays:
        model = fit(train_rows, train_labels, weight_decay, config.iterations)
        val_errors.append(error(val_rows, val_labels, *model))
        train = error(train_rows, train_labels, *model)
        print(f"weight decay {weight_decay:<8g} top-1 error: train {train:6.1%}  val {val_errors[-1]:6.1%}", flush=True)
    print(f"best val top-1 error: {min(val_errors):.1%}")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
