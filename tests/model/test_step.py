"""The step: one graph, no recompiles, equal to eager; and a NaN that reaches nothing."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from model.alexnet import ModelConfig
from model.optim import OptimConfig, averaging_rate, rates_at
from model.step import (
    CUDA_OPTIONS,
    StepInputs,
    compile_options,
    compiled_train_step,
    eval_step,
    local_logits,
    normalise_pictures,
    train_step,
    training_loss,
    two_graphs,
)
from service.training.validation import compiled_eval_step
from steps import CROP, MODERN, TOLD, Bench, assert_same_step, counting, examples


def test_prepare_is_the_formula_and_channels_last() -> None:
    batch = examples()._replace(scale=torch.linspace(0.5, 1, 8))
    mean = torch.rand(CROP, CROP, 3) * 255
    found = normalise_pictures(batch, mean, 58.0)
    expected = (batch.pictures.double() + batch.offset[:, None, None].double() - mean.double()) / 58
    expected = expected * batch.scale.double()[:, None, None, None]
    assert found.shape == (8, 3, CROP, CROP) and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.permute(0, 2, 3, 1).double(), expected, rtol=1e-5, atol=1e-5)  # float32


def test_channels_may_have_deviations_of_their_own() -> None:
    batch = examples()._replace(scale=torch.linspace(0.5, 1, 8))
    mean = torch.rand(CROP, CROP, 3) * 255
    found = normalise_pictures(batch, mean, (58.4, 57.1, 57.4))
    for channel, deviation in enumerate((58.4, 57.1, 57.4)):
        assert torch.equal(found[:, channel], normalise_pictures(batch, mean, deviation)[:, channel])
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalise_pictures(batch, mean, (58.0, 58.0, 58.0)), normalise_pictures(batch, mean, 58.0))


# Generating code takes a minute; the others' graphs are traced, counted and run without it.
@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        ("float32", "aot_eager"),
        ("mixed", "aot_eager"),
        pytest.param("bfloat16", "aot_eager", marks=pytest.mark.slow),
        pytest.param("float32", "inductor", marks=pytest.mark.slow),
    ],
)
def test_the_compiled_step_is_one_graph_compiled_once_and_equals_eager(precision, backend: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    config = ModelConfig(fc_width=64, init="he", pixel_std=58.0, precision=precision)
    compiled, eager = Bench(config), Bench(config)
    step = compiled_train_step(backend)
    for i, lr in enumerate((0.01, 0.01, 0.001, 0.0)):  # a new rate compiles nothing
        assert_same_step(compiled, eager, step, examples(first=8 * i), lr)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_options_are_for_cuda_alone_and_inductor_knows_them() -> None:
    assert compile_options("cpu", graphs=True, exchanges=True) is None
    known = inductor_config.get_config_copy()
    for graphs in (False, True):
        options = compile_options("cuda", graphs, exchanges=True)
        assert options and options["triton.cudagraphs"] == graphs and options.keys() <= known.keys()


def test_options_that_a_version_of_torch_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CUDA_OPTIONS, "of_a_later_version", True)
    options = compile_options("cuda", graphs=False, exchanges=False)
    assert options and "combo_kernels" in options and "of_a_later_version" not in options


def test_ten_steps_learn_ten_pictures() -> None:
    bench, batch = Bench(), examples(10)
    losses = [bench.run(train_step, batch).loss.item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def poisoned(batch: StepInputs) -> StepInputs:
    offset = batch.offset.clone()
    offset[3, 1] = float("nan")
    return batch._replace(offset=offset)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_modern_recipes_step_is_compiled_once_for_a_whole_schedule_and_is_safe_from_nan(backend: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled, eager = Bench(optim=MODERN), Bench(optim=MODERN)
    step = compiled_train_step(backend)
    for i in range(5):
        rates, averaging = rates_at(MODERN, float(i), [], 5), averaging_rate(MODERN, i)
        assert_same_step(compiled, eager, step, examples(first=8 * i), rates.base, averaging)
    before = compiled.tensors()
    assert not compiled.run(step, poisoned(examples(first=40)), lr=1.0).all_finite
    assert not compiled.run(step, examples(first=48), lr=1.0).all_finite
    assert all(torch.equal(a, b) for a, b in zip(before, compiled.tensors(), strict=True))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_the_training_loss_has_smoothed_labels() -> None:
    """(1 - s) of the label's and s of the mean over classes, of -log p; validation does not smooth."""
    bench, batch = Bench(optim=OptimConfig(label_smoothing=0.2)), examples()
    with torch.no_grad():
        logits = local_logits(bench.training, batch, train=True)[0].double().numpy()
        loss = training_loss(bench.training, batch)[0].item()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    of_label = log_p[np.arange(8), batch.labels.numpy()]
    assert loss == pytest.approx(-(0.8 * of_label + 0.2 * log_p.mean(1)).mean(), rel=1e-5)  # of float32
    assert torch.equal(*(eval_step(each.training, TOLD, counting(batch)) for each in (bench, Bench())))


def test_validation_is_of_the_averaged_network() -> None:
    bench, other, batch = Bench(optim=MODERN), Bench(), counting(examples(16))
    for i in range(3):
        bench.run(train_step, examples(first=8 * i), lr=1.0)
    for averaged in (True, False):
        with torch.no_grad():
            for name, w in other.model.named_parameters():
                w.copy_((bench.optimizer.averages if averaged else bench.optimizer.parameters)[name])
        theirs = eval_step(other.training, TOLD, batch)
        assert torch.equal(eval_step(bench.training, TOLD, batch), theirs) == averaged
    torch._dynamo.reset()
    compiled = compiled_eval_step("aot_eager")(bench.training, TOLD, batch)
    torch.testing.assert_close(compiled, eval_step(bench.training, TOLD, batch), rtol=1e-5, atol=0)


@pytest.mark.parametrize("compile", [False, True])
def test_nothing_not_finite_ever_reaches_the_weights(compile: bool) -> None:
    bench = Bench()
    step = compiled_train_step("aot_eager") if compile else train_step
    assert bench.run(step, examples()).all_finite
    before = bench.tensors()
    result = bench.run(step, poisoned(examples(first=8)))
    assert not torch.isfinite(result.loss) and not result.all_finite
    # The host has not looked yet: a good step after the bad one changes nothing either.
    assert not bench.run(step, examples(first=16)).all_finite
    assert all(torch.equal(a, b) for a, b in zip(before, bench.tensors(), strict=True))


def test_an_infinite_gradient_under_a_finite_loss_is_caught() -> None:
    bench = Bench()
    with torch.no_grad():
        bench.model.held()[1].fc8.weight.mul_(1e38)
    before = bench.tensors()
    result = bench.run(train_step, examples())
    assert not torch.isfinite(result.grad_norm) and not result.all_finite
    assert all(torch.equal(a, b) for a, b in zip(before, bench.tensors(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("optim", [OptimConfig(), MODERN], ids=["paper", "modern"])
def test_two_graphs_do_what_the_eager_step_does(optim: OptimConfig) -> None:
    two, eager = Bench(optim=optim), Bench(optim=optim)
    apart = two_graphs("aot_eager")
    for i in range(2):
        assert_same_step(two, eager, apart, examples(first=8 * i))


def test_validation_counts_as_sorting_does() -> None:
    bench = Bench()
    batch = counting(examples(64))
    loss, top1, top5, *_ = eval_step(bench.training, TOLD, batch).tolist()
    with torch.no_grad():
        logits = bench.model(normalise_pictures(batch, bench.mean, 58.0))
    order = logits.argsort(1, descending=True)
    assert top1 == (order[:, 0] != batch.labels).sum()
    assert top5 == (order[:, :5] != batch.labels[:, None]).all(1).sum()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, batch.labels).item() * 64, rel=1e-5)


def test_ties_and_nan_count_as_errors() -> None:
    bench = Bench()
    for value in (0.0, float("nan")):
        with torch.no_grad():
            for tower in bench.model.held().values():
                tower.fc8.weight.fill_(value)
        assert eval_step(bench.training, TOLD, counting(examples(16)))[1:].tolist() == [16, 16, 0, 0]
