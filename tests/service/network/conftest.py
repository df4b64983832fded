"""Small networks in checkpoints, as training leaves them; commands called in this process, which has torch already."""

import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from model.alexnet import ModelConfig
from model.layers.lrn import LRNConfig
from model.network import make_network
from model.optim import MomentumSGD, OptimConfig
from networks import copy_tensors
from pipeline.command import run_command
from pipeline.manifest import load_dataset
from service.run.checkpoint import RunState, save_checkpoint
from service.run.preprocessing import preprocessing_of

SaveRun = Callable[..., Path]
Call = Callable[..., int]


@pytest.fixture(scope="session")
def save_run(shards: Path) -> SaveRun:
    """Makes a run's folder with a checkpoint at step 3 of a network that was not trained."""

    def save(folder: Path, config: ModelConfig, crop: int = 67, data: Path = shards) -> Path:
        dataset = load_dataset(data)
        model = make_network(config, classes=len(dataset.classes), crop=crop, seed=5)
        torch.nn.init.normal_(dict(model.named_parameters())[last_bias(config)], generator=torch.Generator())
        optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
        run = {"model": asdict(config), "data": {"crop": crop, "shards": str(data)}, "dataset_sha256": "0" * 64}
        tensors = copy_tensors(model, optimizer)
        save_checkpoint(folder, RunState(step=3), tensors, run, preprocessing_of(dataset, data).files())
        return folder

    return save


def last_bias(config: ModelConfig) -> str:
    """A weight whose change shows in the logits of every picture."""
    return {"towers": "towers.0.fc8.bias", "torchvision": "classifier.6.bias", "cifar": "fc10.bias"}[config.layout]


TOWERS = ModelConfig(fc_width=64, init="he", pixel_std=58.0, precision="mixed")


@pytest.fixture(scope="session")
def towers(save_run: SaveRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the paper's network; nobody writes to it."""
    return save_run(tmp_path_factory.mktemp("towers") / "run", TOWERS)


@pytest.fixture(scope="session")
def one_tower(save_run: SaveRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of torchvision's network; nobody writes to it."""
    config = ModelConfig(layout="torchvision", fc_width=64, init="he")
    return save_run(tmp_path_factory.mktemp("one_tower") / "run", config)


@pytest.fixture(scope="session")
def cifar(save_run: SaveRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network for CIFAR-10 with all that there is in one; nobody writes to it."""
    lrn = LRNConfig(size=9, alpha=0.001, k=1.0)
    config = ModelConfig(layout="cifar", cifar="11pct", lrn=lrn, init="he", pixel_std=58.0)
    return save_run(tmp_path_factory.mktemp("cifar") / "run", config)


@pytest.fixture(scope="session")
def cifar_averaged(save_run: SaveRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of its convolutions alone, which normalise within maps and average."""
    lrn = LRNConfig(size=3, alpha=0.001, k=1.0)
    config = ModelConfig(layout="cifar", cifar="18pct", lrn=lrn, init="he", pixel_std=58.0)
    return save_run(tmp_path_factory.mktemp("cifar_averaged") / "run", config)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls a command's main with arguments; its exit status."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back afterwards, as is the signal's handler

    def with_arguments(main: Callable[[], int], *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            run_command(main)
        except SystemExit as end:
            return int(str(end.code))
        finally:
            signal.signal(signal.SIGTERM, before)

    return with_arguments
