"""Runs that start from another's network: a fork goes on bit for bit, weights are taken alone, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.network import make_network
from model.optim import OptimConfig, rates_at
from networks import saved_network, small_run
from pictures import write_tree
from pipeline.files import sha256_of
from pipeline.shard import ShardOptions, shard
from processes import MODERN, command, losses, records, run, torchrun, weights, wrong_in_turn
from service.network.read import load
from service.run.checkpoint import RunState, Validation
from service.run.events import proposed_rate_drop, rates_of

STEPS = ("--checkpoint-every", "2", "--epochs", "5")


@pytest.fixture(scope="module")
def parent(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps, with checkpoints after 2, 4 and 6, of 8 of 30 pictures each."""
    out = tmp_path_factory.mktemp("parent") / "run"
    status, output = run(command(shards, out, *STEPS, "--max-steps", "6", "--keep-checkpoints", "9"))
    assert status == 0, output
    return out


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of four classes, otherwise as small as `shards`."""
    folder = tmp_path_factory.mktemp("four")
    source = write_tree(folder / "source", {"train": dict.fromkeys("bcde", 4)}, 90, 80)
    assert shard(ShardOptions(source=source, out=str(folder / "shards"), size=72, workers=1, val_fraction=0)) == 0
    return folder / "shards"


def step(folder: Path, number: int) -> Path:
    return folder / "checkpoints" / f"step-{number:08d}"


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_fork_takes_its_parents_next_steps_bit_for_bit(shards: Path, parent: Path, tmp_path: Path) -> None:
    arguments = command(shards, tmp_path / "fork", *STEPS, "--max-steps", "6", "--from", str(step(parent, 4)))
    status, output = run(arguments)
    assert status == 0, output
    assert losses(tmp_path / "fork") == {number: losses(parent)[number] for number in (5, 6)}
    ours, theirs = weights(tmp_path / "fork", 6), weights(parent, 6)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert step(tmp_path / "fork", 4).is_dir()  # its start, which a crash before its first checkpoint goes on from
    (event,) = events(tmp_path / "fork")
    identity = {"path": str(step(parent, 4)), "step": 4, "sha256": sha256_of(step(parent, 4) / "manifest.json")}
    assert event["kind"] == "fork" and event["parent"] == identity and event["step"] == 4
    history = json.loads((step(tmp_path / "fork", 6) / "state.json").read_text())["history"]
    assert history == json.loads((step(parent, 6) / "state.json").read_text())["history"]
    status, output = run(arguments)  # the same command goes on where the fork stands, and does not fork again
    assert status == 0 and "resumed from" in output and len(events(tmp_path / "fork")) == 1


@pytest.mark.slow
def test_a_fork_of_a_run_that_averages_goes_on_bit_for_bit_and_may_have_other_epochs(
    shards: Path, tmp_path: Path
) -> None:
    parent, same, longer = tmp_path / "parent", tmp_path / "same", tmp_path / "longer"
    status, output = run(command(shards, parent, *MODERN, "--max-steps", "8", "--checkpoint-every", "4"))
    assert status == 0, output
    fork = ("--from", str(step(parent, 4)), "--max-steps", "8")
    status, output = run(command(shards, same, *MODERN, *fork))
    assert status == 0, output
    ours, theirs = weights(same, 8), weights(parent, 8)
    assert any(name.startswith("average.") for name in theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [event["new_schedule"] for event in events(same)] == [False]
    status, output = run(command(shards, longer, *MODERN, *fork, "--epochs", "9"))
    assert status == 0, output
    config = OptimConfig(lr=0.5, schedule="cosine", warmup_epochs=1)
    expected = [rates_at(config, number / 3, [], 9).base for number in range(4, 8)]
    assert [r["learning_rate"] for r in records(longer) if "gradient_norm" in r] == expected
    started, change = events(longer)
    assert started["new_schedule"] and change["new"]["base"] == expected[0]


@pytest.mark.slow
def test_a_fork_with_another_rate_trains_by_it(shards: Path, parent: Path, tmp_path: Path) -> None:
    """As run 145 of the 2012 log went on with its rate raised again."""
    options = ("--from", str(step(parent, 4)), "--max-steps", "6", "--optim.lr", "0.02")
    status, output = run(command(shards, tmp_path / "fork", *STEPS, *options))
    assert status == 0, output
    assert [record["learning_rate"] for record in records(tmp_path / "fork")[:2]] == [0.02, 0.02]
    fork, change = events(tmp_path / "fork")
    assert fork["new_schedule"] and change["author"] == "command line"
    assert (change["old"]["base"], change["new"]["base"]) == (0.01, 0.02)


def test_a_forks_own_schedule_counts_neither_rates_set_by_hand_nor_plateaus_before_it() -> None:
    """Twelve epochs without improvement: three drops of the parent's schedule, which its fork asks to raise again."""
    history = tuple(Validation(epoch=e, step=10 * e, loss=1.0, top1=0.5, top5=0.1) for e in range(1, 14))
    by_hand = {"kind": "learning-rate", "step": 3, "manual": True, "old": {"base": 0.1}, "new": {"base": 0.05}}
    kept, renewed = ({"kind": "fork", "step": 130, "new_schedule": new} for new in (False, True))
    plateau = OptimConfig(lr=0.2)

    def rate(*events: dict[str, Any], later: tuple[Validation, ...] = ()) -> float:
        state = RunState(step=130, position=1300, history=(*history, *later), events=events)
        return rates_of(plateau, state, 100, 90).base

    assert rate() == rate(kept) == pytest.approx(0.2 / 1000)
    assert rate(by_hand) == rate(by_hand, kept) == 0.05
    assert rate(by_hand, renewed) == 0.2
    assert rate(by_hand, renewed, by_hand) == 0.05
    later = tuple(Validation(epoch=e, step=10 * e, loss=1.0, top1=0.5, top5=0.1) for e in range(14, 18))
    assert rate(by_hand, renewed, later=later) == pytest.approx(0.02)  # a drop for three more after the first
    state = RunState(step=170, position=1700, history=(*history, *later), events=(renewed,))
    proposal = proposed_rate_drop(OptimConfig(lr=0.2, schedule="manual"), state, 0.2)
    assert proposal and "for 3 epochs" in proposal["reason"]


@pytest.mark.slow
def test_weights_alone_start_a_new_run_with_new_classes_and_a_sixth_convolution(
    parent: Path, four: Path, tmp_path: Path
) -> None:
    """By two ranks that hold a tower each; the learning rate is 0, so weights stay as they start."""
    options = ("--from", str(parent), "--keep", "weights", "--model.conv6", "--max-steps", "1", "--optim.lr", "0")
    status, output = run(torchrun(command(four, tmp_path / "run", *options), 2))
    assert status == 0 and "fc8" in output and "conv6" in output, output
    ours, theirs = weights(tmp_path / "run", 1), weights(parent, 6)
    kept = [name for name in theirs if not name.startswith("momentum.") and ".fc8." not in name]
    assert kept and all(torch.equal(ours[name], theirs[name]) for name in kept)
    fresh = make_network(small_run(four, conv6=True).model, classes=4, crop=67, seed=0).state_dict()
    assert all(torch.equal(ours[name], fresh[name]) for name in fresh if ".fc8." in name or ".conv6." in name)
    assert ours["towers.0.fc8.weight"].shape == (2, 64) and ours["towers.1.conv6.weight"].shape == (128, 256, 3, 3)
    (event,) = [each for each in events(tmp_path / "run") if each["kind"] == "fork"]
    assert event["step"] == 0 and event["parent"]["step"] == 6 and event["keep"] == "weights"


@pytest.mark.slow
def test_torchvisions_weights_are_fine_tuned(four: Path, tmp_path: Path) -> None:
    """A .pth of a thousand-class network, as far as a test can afford one: 5 classes, 64 units."""
    from model.alexnet import ModelConfig
    from model.torchvision import TorchvisionAlexNet

    theirs = TorchvisionAlexNet(ModelConfig(layout="torchvision", fc_width=64), classes=5, crop=67, seed=3)
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    options = ("--from", str(tmp_path / "alexnet.pth"), "--keep", "weights", "--model.layout", "torchvision")
    status, output = run(command(four, tmp_path / "run", *options, "--max-steps", "2"))
    assert status == 0 and "classifier.6.weight" in output, output
    network = load(tmp_path / "run", "cpu")
    assert network.config.layout == "torchvision" and len(network.classes) == 4
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.slow
def test_what_cannot_be_started_from_is_refused_in_a_line(
    shards: Path, parent: Path, four: Path, tmp_path: Path
) -> None:
    wide = saved_network(tmp_path / "wide", shards, fc_width=32)
    file = tmp_path / "weights.safetensors"
    file.write_bytes((step(parent, 4) / "towers-0.safetensors").read_bytes())
    out, base = tmp_path / "out", ("--from", str(step(parent, 4)))
    calls = {
        "seed 0 there, 1 here": command(shards, out, *base, "--seed", "1"),
        "batch_size 8 there, 6 here": command(shards, out, *base, "--batch-size", "6"),
        "model.fc_width 64 there, 32 here": command(shards, out, *base, "--model.fc-width", "32"),
        "train 30 pictures there, 16 here, val 9 pictures there, 0 here, 3 classes there, 4 here, class a there alone, "
        "classes d, e here alone": command(four, out, *base),
        "expected fewer than the 1 to train": command(shards, out, *base, "--epochs", "1"),
        "holds no sound checkpoint": command(shards, out, "--from", str(tmp_path / "none")),
        "holds weights alone": command(shards, out, "--from", str(file)),
        "has no classifier.6.weight": command(shards, out, "--from", str(file), "--keep", "weights"),
        "--keep is for what --from brings": command(shards, out, "--keep", "weights"),
        "set --model.inverted-dropout": command(shards, out, *base, "--keep", "weights", "--model.no-inverted-dropout"),
        "set --model.layout towers": command(shards, out, *base, "--keep", "weights", "--model.layout", "torchvision"),
        "crop is 40 pixels, expected at least 63": command(
            shards, out, *base, "--keep", "weights", "--data.crop", "40"
        ),
        "as towers.0.fc6.bias, expected": command(shards, out, "--from", str(wide), "--keep", "weights"),
    }
    calls["expected nothing"] = command(
        shards, out, "--from", str(saved_network(tmp_path / "six", shards, conv6=True)), "--keep", "weights"
    )
    for line, says in zip(wrong_in_turn(*calls.values()), calls, strict=True):
        assert says in line
    assert not (out / "checkpoints").exists()
    assert small_run(shards).parent is None
