"""Batch normalisation against torch's own, in float64: alone, in the network, folded, and in a step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.alexnet import AlexNet, ModelConfig
from model.grouped import grouped
from model.layers.batch_norm import BatchNorm, BatchPass, Rows
from model.optim import MomentumSGD, OptimConfig
from model.step import TrainStep, compiled_train_step, train_step
from steps import CROP, Bench, assert_same_step, examples

CONFIG = ModelConfig(fc_width=64, init="he", pixel_std=58.0, batch_norm=True, dropout=0.3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(norm: BatchNorm) -> BatchNorm:
    """With factors and statistics that are not those at the start."""
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.copy_(randn(len(parameter), seed=seed).abs() + 0.5)
    return norm


def torchs(norm: BatchNorm) -> nn.BatchNorm2d:
    """The same in torch."""
    theirs = nn.BatchNorm2d(len(norm.weight)).double()
    theirs.load_state_dict({**norm.state_dict(), "num_batches_tracked": torch.tensor(0)})
    return theirs


def test_it_is_torchs_with_the_same_gradients_and_statistics() -> None:
    norm, x = filled(BatchNorm(5, "norm", connected=False).double()), 3 + 2 * randn(4, 5, 3, 2)
    theirs, batch = torchs(norm), BatchPass.of(4, torch.device("cpu"))
    torch.testing.assert_close(norm(x, None), theirs.eval()(x), rtol=1e-12, atol=1e-12)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y, expected = norm(inputs[0], batch), theirs.train()(inputs[1])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    (y * randn(*y.shape, seed=1)).sum().backward()
    (expected * randn(*y.shape, seed=1)).sum().backward()
    for mine, their in ((inputs[0], inputs[1]), (norm.weight, theirs.weight), (norm.bias, theirs.bias)):
        torch.testing.assert_close(mine.grad, their.grad, rtol=1e-10, atol=1e-10)
    optimizer = MomentumSGD(OptimConfig(), {f"norm.{name}": p for name, p in norm.named_parameters()})
    gradients = [torch.zeros_like(p) for p in optimizer.trained.values()]
    optimizer.update(gradients, torch.zeros(2), torch.tensor(True), batch.statistics)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name).detach(), getattr(theirs, name), rtol=1e-12, atol=1e-12)


def test_padding_counts_for_nothing_but_is_normalised_too() -> None:
    norm, x = filled(BatchNorm(5, "norm", connected=True).double()), randn(6, 5)
    counted = torch.tensor([1.0, 1, 1, 1, 0, 0])
    padded = BatchPass(Rows(torch.ones(6), lambda part: part), Rows(counted, lambda part: part))
    whole = BatchPass.of(4, x.device)
    torch.testing.assert_close(norm(x, padded)[:4], norm(x[:4], whole), rtol=1e-12, atol=1e-12)
    assert whole.statistics.keys() == {"norm.running_mean", "norm.running_var"}
    for name, value in whole.statistics.items():
        torch.testing.assert_close(padded.statistics[name], value, rtol=1e-12, atol=1e-12)


def test_low_precision_is_normalised_in_float32() -> None:
    norm, x = BatchNorm(5, "norm", connected=True), (1000 + randn(64, 5)).bfloat16()
    y = norm(x, batch := BatchPass.of(64, x.device))
    assert y.dtype == torch.bfloat16 and batch.statistics["norm.running_mean"].dtype == torch.float32
    torch.testing.assert_close(batch.statistics["norm.running_var"], x.float().var(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("changes", [{}, {"columns": 1, "conv6": True}, {"layer_order": "source", "without": "conv4"}])
def test_the_network_is_the_one_with_torchs_layers(changes: dict[str, object]) -> None:
    """In training, dropout off, and outside it: logits, gradients and running statistics."""
    config = replace(CONFIG, dropout=0.0, **changes)  # pyright: ignore[reportArgumentType]
    model, theirs = (AlexNet(config, classes=7, crop=67, seed=3).double() for _ in range(2))
    names = [name for name, module in theirs.named_modules() if isinstance(module, BatchNorm)]
    layers = 7 - (config.without != "none") + config.conv6
    assert len(names) == config.columns * layers and not model.held()[0].conv1.bias
    peers: dict[str, nn.Module] = {}
    for name in names:
        tower, _, layer = name.rpartition(".")
        norm = model.get_submodule(name)
        peer = nn.BatchNorm1d if ".fc" in name else nn.BatchNorm2d
        peers[name] = peer(len(norm.weight)).double()  # pyright: ignore[reportArgumentType]
        theirs.get_submodule(tower).register_module(layer, _OneArgument(peers[name]))
    x, positions = randn(4, 3, 67, 67), torch.arange(4)
    batch = BatchPass.of(4, x.device)
    y, expected = model(x, positions, batch), theirs(x, positions)
    torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)
    y.square().sum().backward()
    expected.square().sum().backward()
    grads = {name.replace("_norm.norm.", "_norm."): p.grad for name, p in theirs.named_parameters()}
    # Some gradients are 0 but for rounding: what shifts all rows alike the next layer's normalisation takes off again.
    rounding = 1e-12 * max(grad.norm() for grad in grads.values() if grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            mine, their = parameter.grad, grads[name]
            assert mine is not None and their is not None
            assert (mine - their).norm() <= 1e-6 * their.norm() + rounding, name
    for name, peer in peers.items():
        mean = batch.statistics[f"{name}.running_mean"]
        torch.testing.assert_close(0.1 * mean, peer.running_mean, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        for name, peer in peers.items():
            for kind in ("running_mean", "running_var"):
                model.get_parameter(f"{name}.{kind}").copy_(getattr(peer, kind))
        torch.testing.assert_close(model(x), theirs.eval()(x), rtol=1e-8, atol=1e-8)


class _OneArgument(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, batch: BatchPass | None) -> Tensor:
        return self.norm(x)


@torch.no_grad()
def test_folded_into_the_layers_it_is_the_same_network() -> None:
    model = AlexNet(CONFIG, classes=7, crop=67, seed=3).double()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            filled(module)
    x, plain = randn(3, 3, 67, 67), grouped(model)
    assert not any("norm" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(plain(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_step_moves_the_statistics_and_one_that_is_not_finite_does_not() -> None:
    bench = Bench(replace(CONFIG, precision="float32"), OptimConfig(average_decay=0.9))
    running = {name: p for name, p in bench.optimizer.parameters.items() if ".running_" in name}
    assert len(running) == 2 * 14 and running.keys().isdisjoint(bench.optimizer.velocities)
    before = bench.tensors()
    batch = examples()
    assert not bench.run(train_step, batch._replace(offset=batch.offset * float("nan"))).all_finite
    assert all(torch.equal(a, b) for a, b in zip(before, bench.tensors(), strict=True))
    bench = Bench(replace(CONFIG, precision="float32"), OptimConfig(average_decay=0.9))
    before = {name: p.clone() for name, p in bench.optimizer.parameters.items()}
    assert bench.run(train_step, examples(), averaging=0.25).all_finite
    for name, average in bench.optimizer.averages.items():
        now = bench.optimizer.parameters[name].detach()
        assert not torch.equal(now, before[name]) or name.endswith("_norm.bias"), name
        torch.testing.assert_close(average, before[name].detach() + 0.25 * (now - before[name].detach()))


@pytest.mark.parametrize(
    "compiled",
    [pytest.param("aot_eager", id="traced"), pytest.param("inductor", marks=pytest.mark.slow, id="compiled")],
)
def test_the_compiled_step_does_what_the_eager_one_does(compiled: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step: TrainStep = compiled_train_step(compiled)
    ours, theirs = (Bench(replace(CONFIG, precision="float32")) for _ in range(2))
    for first in (0, 8):
        assert_same_step(ours, theirs, step, examples(first=first))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_other_layouts_refuse_it() -> None:
    for layout in ("torchvision", "cifar"):
        with pytest.raises(ValueError, match=f"batch_norm is set for layout {layout}, which has no such thing"):
            ModelConfig(layout=layout, batch_norm=True)
    assert AlexNet(replace(CONFIG, normalise=True), crop=CROP).config.response_norm is None
