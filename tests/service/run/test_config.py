"""Recipes, the command line, and run.json, which a resume and all ranks must agree with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.network import make_network
from model.optim import decay_of
from pipeline.command import InputError
from service.run.config import RECIPES, check_same_call, check_same_run, parse_run, run_fields


def test_the_paper_and_the_source_are_what_the_papers_text_and_run_145_say() -> None:
    paper, source = RECIPES["paper"][1], RECIPES["source"][1]
    assert (paper.batch_size, paper.epochs, paper.optim.lr, paper.optim.schedule) == (128, 90, 0.01, "plateau")
    assert (paper.optim.momentum, paper.optim.weight_decay, paper.optim.max_drops) == (0.9, 0.0005, 3)
    assert (paper.optim.bias_lr_factor, paper.optim.decay_biases) == (1.0, True)
    assert (paper.model.layer_order, paper.model.init, paper.model.bias) == ("paper", "paper", 1)
    assert (paper.model.lrn.alpha, paper.model.dropout) == (1e-4, 0.5)
    assert not paper.model.inverted_dropout and not source.model.inverted_dropout
    assert (paper.data.augment.colour, paper.data.augment.colour_std) == ("eigenvalues", 0.1)
    assert (source.batch_size, source.epochs, source.optim.lr) == (128, 93, 0.01)
    assert (source.optim.schedule, source.optim.drop_epochs) == ("steps", (23, 51, 78))
    assert source.optim.conv1_lr == ((68, 1e-5), (72, 0.0))
    assert (source.optim.bias_lr_factor, source.optim.decay_biases) == (2.0, False)
    assert (source.model.layer_order, source.model.init, source.model.bias) == ("source", "source", 1)
    assert source.model.lrn.alpha == pytest.approx(2e-5)
    assert (source.data.augment.colour, source.data.augment.colour_epochs) == ("deviations", 67)
    assert all(run.recipe == name for name, (_, run) in RECIPES.items())


def test_recipes_for_cifar_are_the_parameter_files_of_the_2012_code() -> None:
    decay = {  # wc of each layer, of layer-params-*.cfg
        "cifar": {"conv1": 0, "conv2": 0, "local3": 0.004, "local4": 0.004, "fc10": 0.01},
        "cifar-13pct": {"conv1": 0, "conv2": 0, "local3": 0.004, "local4": 0.004, "fc10": 0.004},
        "cifar-18pct": {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc10": 1},
        "figure1": {"conv1": 0, "conv2": 0, "conv3": 0, "fc10": 0},
    }
    for name, expected in decay.items():
        run = RECIPES[name][1]
        model = make_network(replace(run.model, precision="float32"), classes=10, crop=run.data.crop, seed=0)
        for parameter in dict(model.named_parameters()):
            layer, _, kind = parameter.partition(".")
            assert decay_of(run.optim, parameter) == (0 if kind == "bias" else expected[layer])
        assert (run.batch_size, run.optim.lr, run.optim.momentum, run.optim.bias_lr_factor) == (128, 0.001, 0.9, 2)
        assert (run.model.dropout, run.model.pixel_std, run.data.augment.colour) == (0, 1, "off")
        assert run.data.augment.mirror == (run.data.crop == 24) == (run.model.cifar != "18pct")
    normalised = {name: RECIPES[name][1].model for name in ("cifar", "cifar-18pct")}
    assert [(m.normalise, m.lrn.size, m.lrn.k, m.lrn.beta) for m in normalised.values()] == [
        (True, 9, 1, 0.75), (True, 3, 1, 0.75)
    ]  # fmt: skip
    assert [m.lrn.alpha for m in normalised.values()] == pytest.approx([0.001 / 9, 0.00005 / 9])  # scale / (n or n * n)


def test_the_recipe_is_paper_unless_named() -> None:
    assert parse_run([]) == parse_run(["paper"]) == RECIPES["paper"][1]
    assert parse_run(["--batch-size", "64"]) == replace(RECIPES["paper"][1], batch_size=64)
    assert parse_run(["source"]) == RECIPES["source"][1]


def test_modern_is_the_papers_network_with_every_part_of_todays_training() -> None:
    paper, modern = RECIPES["paper"][1], RECIPES["modern"][1]
    of_paper = {"init": "paper", "pixel_std": 1.0, "batch_norm": False, "inverted_dropout": False}
    assert replace(modern.model, **of_paper) == paper.model
    assert modern.data == replace(paper.data, augment=replace(paper.data.augment, crop="resized"))
    optim = modern.optim
    assert optim.schedule == "cosine" and optim.warmup_epochs and optim.label_smoothing and optim.average_decay


def test_a_run_of_before_these_options_resumes() -> None:
    theirs = run_fields(parse_run([]), "hash")
    for name in ("warmup_epochs", "final_lr", "trust_ratio", "label_smoothing", "average_decay"):
        del theirs["optim"][name]
    check_same_run(Path("run"), theirs, run_fields(parse_run([]), "hash"))
    with pytest.raises(InputError, match=r"optim\.average_decay 0\.0 there, 0\.9 here"):
        check_same_run(Path("run"), theirs, run_fields(parse_run(["--optim.average-decay", "0.9"]), "hash"))


def test_a_run_of_before_the_papers_dropout_resumes_with_the_option_that_its_refusal_names() -> None:
    theirs = run_fields(parse_run([]), "hash")
    del theirs["model"]["inverted_dropout"]
    with pytest.raises(InputError, match=r"run holds another run \(model\.inverted_dropout True there, False here\)"):
        check_same_run(Path("run"), theirs, run_fields(parse_run([]), "hash"))
    check_same_run(Path("run"), theirs, run_fields(parse_run(["--model.inverted-dropout"]), "hash"))


def test_epochs_may_not_change_where_the_schedule_ends_with_them() -> None:
    for schedule in ("cosine", "one-cycle"):
        before, after = (parse_run(words(f"--optim.schedule {schedule} --epochs {epochs}")) for epochs in (90, 120))
        with pytest.raises(InputError, match="epochs 90 there, 120 here"):
            check_same_run(Path("run"), run_fields(before, "hash"), run_fields(after, "hash"))
        check_same_run(Path("run"), run_fields(before, "hash"), run_fields(replace(before, max_steps=5), "hash"))


def words(line: str) -> list[str]:
    return line.split()


def test_the_promised_flags_are_there() -> None:
    run = parse_run(
        words(
            "demo --max-steps 3 --batch-size 4 --checkpoint-every 5 --seed 6 --port 0 --device cpu --no-compile "
            "--data.shards a/b --out c"
        )
    )
    assert (run.max_steps, run.batch_size, run.checkpoint_every, run.seed, run.port) == (3, 4, 5, 6, 0)
    assert (run.device, run.compile, run.data.shards, run.out) == ("cpu", False, "a/b", Path("c"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs 0", "epochs is 0, expected at least 1"),
        ("--checkpoint-seconds -1", "checkpoint_seconds is -1.0, expected a number of at least 0"),
        ("--checkpoint-seconds inf", "checkpoint_seconds is inf"),
        ("--epochs 5 --optim.warmup-epochs 5", "warmup_epochs is 5, expected fewer than the run's 5 epochs"),
        ("--keep-checkpoints 1", "keep_checkpoints is 1, expected at least 2"),
        ("--seed 18446744073709551616", "seed is 18446744073709551616, expected at most"),
        ("--port 70000", "port is 70000, expected at most 65535"),
        ("--data.augment.colour-std -1", "colour_std is -1.0"),
    ],
)
def test_wrong_values_are_refused_in_a_line(option: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_run(option.split())
    assert "\n" not in str(error.value)


def test_a_resume_may_change_where_and_how_but_not_what() -> None:
    theirs, out = run_fields(parse_run([]), "hash"), Path("run")
    may = "--out elsewhere --data.shards there --port 1 --epochs 5 --no-compile --data.threads 3"
    moved = parse_run(words(f"{may} --data.most-damaged 0.01"))
    check_same_run(out, theirs, run_fields(moved, "hash"))
    for option, named in [("--seed 1", "seed 0 there, 1 here"), ("--data.crop 200", "data.crop 224 there, 200 here")]:
        with pytest.raises(InputError, match=named):
            check_same_run(out, theirs, run_fields(parse_run(option.split()), "hash"))
    with pytest.raises(InputError, match=r"optim\.lr 0\.01 there, 0\.02 here"):
        check_same_run(out, theirs, run_fields(parse_run(["--optim.lr", "0.02"]), "hash"))
    with pytest.raises(InputError, match="dataset_sha256 hash there, other here"):
        check_same_run(out, theirs, run_fields(parse_run([]), "other"))


def test_ranks_must_train_alike_but_may_keep_their_pictures_elsewhere() -> None:
    run = RECIPES["demo"][1]
    ours = run_fields(run, "hash")
    elsewhere = replace(run, data=replace(run.data, shards=Path("/local"), threads=3), port=1)
    check_same_call(1, run_fields(elsewhere, "hash"), ours)
    with pytest.raises(InputError, match=r"rank 1 trains otherwise than rank 0 \(batch_size 65 there, 16 here\)"):
        check_same_call(1, run_fields(replace(run, batch_size=65), "hash"), ours)
    with pytest.raises(InputError, match="max_steps 7 there, 0 here"):  # a resume may change it, one rank may not
        check_same_call(1, run_fields(replace(run, max_steps=7), "hash"), ours)
    with pytest.raises(InputError, match="dataset_sha256 other there, hash here"):
        check_same_call(1, run_fields(run, "other"), ours)


def test_run_fields_are_strict_json() -> None:
    for _, run in RECIPES.values():
        json.dumps(run_fields(run, "hash"), allow_nan=False)
