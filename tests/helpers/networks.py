"""Trained networks for tests: untrained ones, really, saved as a run saves them, in no time."""

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.network import Network, make_network
from model.optim import MomentumSGD, OptimConfig
from pictures import decoded
from pipeline.load.config import DataConfig
from pipeline.manifest import load_dataset, pictures_sha256
from service.run.checkpoint import RunState, Tensors, save_checkpoint, state_tensors
from service.run.config import RECIPES, Run, run_fields
from service.run.preprocessing import preprocessing_of

STATE = RunState(step=3, position=24)


def small_run(shards: Path, **changes: Any) -> Run:
    """The run that `processes.command` starts; changes: of its model, but for seed and crop."""
    demo = RECIPES["demo"][1]
    crop, seed = changes.pop("crop", 67), changes.pop("seed", 0)
    model = replace(demo.model, **{"fc_width": 64, "precision": "float32", **changes})
    return replace(demo, data=DataConfig(shards=shards, crop=crop), model=model, batch_size=8, seed=seed)


def saved_network(folder: Path, shards: Path, state: RunState = STATE, **changes: Any) -> Path:
    """A checkpoint in a run's folder; its weights are large enough that outputs differ between pictures."""
    run, dataset = small_run(shards, **changes), load_dataset(shards)
    model = make_network(run.model, classes=len(dataset.classes), crop=run.data.crop, seed=run.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3.0 if ".fc8." in name or "classifier.6" in name else 1.5)
    files = preprocessing_of(dataset, shards).files()
    fields = run_fields(run, pictures_sha256(dataset))
    tensors = copy_tensors(model, MomentumSGD(OptimConfig(), dict(model.named_parameters())))
    return save_checkpoint(folder, state, tensors, fields, files)


def stored_pictures(shards: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A split's pictures (N, side, side, 3) and labels (N,), read by tarfile and Pillow."""
    files: dict[str, bytes] = {}
    for path in sorted((shards / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            files |= {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore[reportOptionalMemberAccess]
    pictures = [decoded(data) for name, data in sorted(files.items()) if name.endswith(".jpg")]
    labels = [int(data) for name, data in sorted(files.items()) if name.endswith(".cls")]
    return np.stack(pictures), np.array(labels)


def copy_tensors(model: Network, optimizer: MomentumSGD) -> Tensors:
    """Copies of what a checkpoint holds."""
    files = state_tensors(model, optimizer)
    return {file: {name: tensor.clone() for name, tensor in found.items()} for file, found in files.items()}
