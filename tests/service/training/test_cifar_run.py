"""A worker on CIFAR-10's own pictures: killed, resumed, evaluated, drawn."""

import signal
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paths import CIFAR_10
from pipeline.shard import ShardOptions, shard
from processes import losses, run, start, wait_until, wrong_in_turn
from service import load
from service.run.checkpoint import FOLDER, NETWORK_FILE

CLASSES = ("airplane", "automobile", "bird")


@pytest.fixture(scope="module")
def cifar_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first pictures of the archive that are of three classes, pixels of 32 x 32."""
    if not CIFAR_10.exists():
        pytest.skip(f"{CIFAR_10} is not there")
    folder = tmp_path_factory.mktemp("cifar")
    wanted = {f"{split}/{name}": count for split, count in (("train", 40), ("val", 10)) for name in CLASSES}
    with tarfile.open(CIFAR_10) as tar:
        for member in tar:
            place = member.name.removeprefix("./").rpartition("/")[0]
            if member.isfile() and wanted.get(place):
                wanted[place] -= 1
                tar.extract(member, folder / "source", filter="data")
            if not any(wanted.values()):
                break
    options = ShardOptions(source=folder / "source", out=str(folder / "shards"), size=32, store="raw", workers=1)
    assert shard(options) == 0
    return folder / "shards"


def command(shards: Path, out: Path, *options: str) -> list[str]:
    """Two epochs of 120 pictures, 15 steps, eager; every third has a checkpoint."""
    base = ["cifar", "--data.shards", str(shards), "--out", str(out), "--no-compile", "--port", "0"]
    base += ["--batch-size", "16", "--epochs", "2", "--checkpoint-every", "3", "--optim.lr", "0.01"]
    return [sys.executable, "-m", "service.train", *base, "--model.precision", "float32", *options]


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one_and_its_network_is_of_use(
    cifar_shards: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = run(command(cifar_shards, whole))
    assert status == 0 and "evaluation, 10 views of 30 pictures" in output, output
    worker = start(command(cifar_shards, broken))
    wait_until(lambda: (broken / FOLDER / "step-00000006").exists(), worker)
    worker.kill()
    worker.communicate()
    assert worker.returncode == -signal.SIGKILL and not (broken / FOLDER / "step-00000015").exists()
    status, output = run(command(cifar_shards, broken))
    assert status == 0 and "restart 1" in output, output
    ours, theirs = (load_file(out / FOLDER / "step-00000015" / NETWORK_FILE) for out in (broken, whole))
    assert ours.keys() == theirs.keys() and {"local3.weight", "momentum.fc10.bias"} <= ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(broken) == losses(whole) and list(losses(whole)) == list(range(1, 16))

    network = load(whole, "cpu")
    picture = next((cifar_shards.parent / "source/val").glob("*/*.jpg"))
    (answer,) = network.predict([picture], views=10)
    assert {each.id for each in answer.likeliest} <= set(CLASSES)


@pytest.mark.slow
def test_wrong_options_are_refused_in_a_line(cifar_shards: Path, tmp_path: Path) -> None:
    wrong = {
        "crop is 5 pixels, expected at least 6": ("--data.crop", "5"),
        "layer_decay names fc8, expected one of conv1": ("--optim.layer-decay", "fc8", "0.1"),
    }
    calls = [command(cifar_shards, tmp_path / "run", *options) for options in wrong.values()]
    for expected, line in zip(wrong, wrong_in_turn(*calls), strict=True):
        assert expected in line
