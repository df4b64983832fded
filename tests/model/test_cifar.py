"""The networks for CIFAR-10 against plain formulas in float64, with loops for what torch lacks; their training step."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.alexnet import ModelConfig
from model.cifar import CifarNetwork, LocallyConnected, average_pool, cifar_sides, pooled_side
from model.flop import training_flops_per_picture
from model.layers.dropout import keep_mask
from model.layers.lrn import LRNConfig, response_norm_in_maps
from model.layers.pool import max_pool
from model.network import make_network
from model.optim import MomentumSGD, OptimConfig, decay_of
from model.parallel import Parallel
from model.step import StepControls, StepInputs, TrainingState, TrainStep, compiled_train_step, train_step
from steps import GRADIENT, LOSS, TOLD

# alpha: so large that normalisation counts.
CONFIG = ModelConfig(layout="cifar", init="he", pixel_std=58.0, lrn=LRNConfig(size=9, alpha=0.02, k=1.0))
NETWORKS = {
    "18pct": replace(CONFIG, cifar="18pct", lrn=LRNConfig(size=3, alpha=0.02, k=1.0)),
    "13pct": replace(CONFIG, cifar="13pct", normalise=False, activation="tanh"),
    "11pct": CONFIG,
}


def pictures(count: int, side: int) -> Tensor:
    x = torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def small(config: ModelConfig, crop: int) -> CifarNetwork:
    return CifarNetwork(config, classes=10, crop=crop, seed=3).double()


def windows(side: int) -> list[slice]:
    """What each pooling window takes of a row: the last one is cut off where the map ends."""
    return [slice(first, min(first + 3, side)) for first in range(0, 2 * pooled_side(side), 2)]


def pooled(x: Tensor, how) -> Tensor:
    rows = [torch.stack([how(x[..., r, c]) for c in windows(x.shape[3])], -1) for r in windows(x.shape[2])]
    return torch.stack(rows, -2)


def normalised(x: Tensor, config: ModelConfig) -> Tensor:
    """Each number divided by a power of what is near it, across channels or within the map."""
    n, out = config.lrn.size // 2, torch.empty_like(x)
    _, channels, height, width = x.shape
    if not config.normalise:
        return x
    if config.cifar != "18pct":
        for c in range(channels):
            total = x[:, max(0, c - n) : c + n + 1].square().sum(1)
            out[:, c] = x[:, c] / (config.lrn.k + config.lrn.alpha * total) ** config.lrn.beta
        return out
    for i in range(height):
        for j in range(width):
            total = x[:, :, max(0, i - n) : i + n + 1, max(0, j - n) : j + n + 1].square().sum((2, 3))
            out[:, :, i, j] = x[:, :, i, j] / (config.lrn.k + config.lrn.alpha * total) ** config.lrn.beta
    return out


def connected_locally(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C, H, W): each pixel's window times its own kernels."""
    batch, channels, height, width = x.shape
    out = x.new_zeros(batch, weight.shape[2], height, width)
    padded = F.pad(x, (1, 1, 1, 1))
    for i in range(height):
        for j in range(width):
            kernels = weight[i * width + j].view(3, 3, channels, -1)
            window = padded[:, :, i : i + 3, j : j + 3]
            out[:, :, i, j] = torch.einsum("bcrs,rsck->bk", window, kernels) + bias[i * width + j]
    return out


def expected(model: CifarNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """The last hidden layer pixel by pixel, and the logits, in the order of the 2012 files."""
    config, w = model.config, dict(model.named_parameters())
    activate = torch.relu if config.activation == "relu" else torch.tanh

    def conv(name: str, x: Tensor) -> Tensor:
        return activate(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=2))

    x = normalised(pooled(conv("conv1", x), lambda x: x.amax((2, 3))), config)
    if config.cifar == "18pct":
        x = normalised(pooled(conv("conv2", x), lambda x: x.mean((2, 3))), config)
        x = pooled(conv("conv3", x), lambda x: x.mean((2, 3)))
    else:
        x = pooled(normalised(conv("conv2", x), config), lambda x: x.amax((2, 3)))
        for name in ("local3", "local4"):
            x = activate(connected_locally(x, w[f"{name}.weight"], w[f"{name}.bias"]))
    hidden = x.permute(0, 2, 3, 1).flatten(1)
    return hidden, hidden @ w["fc10.weight"].T + w["fc10.bias"]


@pytest.mark.parametrize("crop", [14, 24])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_the_plain_formula(name: str, crop: int) -> None:
    model, x = small(NETWORKS[name], crop), pictures(2, crop)
    with torch.no_grad():
        for bias in (each for parameter, each in model.named_parameters() if parameter.endswith("bias")):
            bias.normal_(generator=torch.Generator().manual_seed(len(bias)))
    hidden, logits = expected(model, x)
    torch.testing.assert_close(model.hidden(x), hidden, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)
    labels = torch.tensor([0, 3])
    ours, theirs = (torch.autograd.grad(F.cross_entropy(y, labels), [*model.parameters()]) for y in (model(x), logits))
    for mine, their in zip(ours, theirs, strict=True):
        assert (mine - their).norm() <= 1e-9 * their.norm()


def test_gradients_agree_with_finite_differences() -> None:
    layer = LocallyConnected(3, 2, 2).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x), (x, layer.weight, layer.bias)
    )
    maps = torch.randn(1, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    lrn = LRNConfig(size=3, alpha=0.1, k=1.0)
    for function in (lambda x: response_norm_in_maps(x, lrn), average_pool, lambda x: max_pool(x, ceil=True)):
        assert torch.autograd.gradcheck(function, maps)


def test_parameters_and_arithmetic_by_hand() -> None:
    def counts(name: str, crop: int) -> tuple[int, int]:
        model = CifarNetwork(NETWORKS[name], classes=10, crop=crop)
        flops = training_flops_per_picture(model.config, 10, crop)
        return sum(p.numel() for p in model.parameters()), flops

    convolutions = 3 * 25 * 64 + 64 + 64 * 25 * 64 + 64
    conv1, conv2 = 24 * 24 * 75 * 64, 12 * 12 * 1600 * 64
    local3, local4, fc10 = 36 * (576 + 1) * 64, 36 * (576 + 1) * 32, (36 * 32 + 1) * 10
    products = 36 * 576 * (64 + 32) + 36 * 32 * 10
    assert counts("11pct", 24) == (convolutions + local3 + local4 + fc10, 4 * conv1 + 6 * (conv2 + products))
    local3, local4 = 36 * (576 + 1) * 32, 36 * (288 + 1) * 32
    products = 36 * (576 + 288) * 32 + 36 * 32 * 10
    assert counts("13pct", 24) == (convolutions + local3 + local4 + fc10, 4 * conv1 + 6 * (conv2 + products))
    convolutions = 75 * 32 + 32 + 800 * 32 + 32 + 800 * 64 + 64
    products = 16 * 16 * 800 * 32 + 8 * 8 * 800 * 64 + 16 * 64 * 10
    assert counts("18pct", 32) == (convolutions + (16 * 64 + 1) * 10, 4 * 32 * 32 * 75 * 32 + 6 * products)
    assert [cifar_sides(NETWORKS[name], 32) for name in ("18pct", "11pct")] == [[32, 16, 8, 4], [32, 16, 8]]


def test_initial_weights_are_the_files() -> None:
    model = CifarNetwork(replace(CONFIG, init="source"))
    deviations = {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}
    for name, std in deviations.items():
        weight = model.get_parameter(f"{name}.weight")
        assert abs(weight.std().item() / std - 1) < 5 / weight.numel() ** 0.5
        assert not model.get_parameter(f"{name}.bias").any()
    again = CifarNetwork(replace(CONFIG, init="source", cifar="13pct"), seed=0)
    assert torch.equal(again.conv1.weight, model.conv1.weight)  # each has a generator of its own
    he = CifarNetwork(CONFIG).get_parameter("local3.weight")
    assert abs(he.std().item() / (2 / 576) ** 0.5 - 1) < 5 / he.numel() ** 0.5


def test_dropout_is_of_the_last_layers_inputs_and_depends_on_the_position_alone() -> None:
    model, x, positions = small(CONFIG, 24), pictures(3, 24), torch.tensor([7, 2**33, 9])
    kept = model.hidden(x) * keep_mask(3, 4, positions, 0, 1152, 0.5) * 2
    torch.testing.assert_close(model(x, positions), model.fc10(kept), rtol=1e-12, atol=1e-12)
    assert torch.equal(small(replace(CONFIG, dropout=0.0), 24)(x, positions), model(x))


def examples(crop: int) -> StepInputs:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, crop, crop, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (16,), generator=generator)
    return StepInputs(pixels, torch.zeros(16, 3), torch.ones(16), labels, torch.arange(16), torch.full((16,), 1 / 16))


def velocities(config: ModelConfig, step: TrainStep) -> tuple[Tensor, Tensor]:
    """The gradients times the rate, and the loss."""
    model = make_network(config, classes=10, crop=16, seed=1)
    optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
    state = TrainingState(model, optimizer, torch.full((16, 16, 3), 120.0), torch.tensor(True), Parallel())
    result = step(state, StepControls(torch.tensor([0.01, 0.01]), TOLD), examples(16))
    return torch.cat([v.flatten() for v in optimizer.velocities.values()]), result.loss


@pytest.mark.parametrize(
    ("name", "precision", "backend"),
    [
        ("18pct", "float32", "aot_eager"),
        ("11pct", "mixed", "aot_eager"),
        pytest.param("18pct", "bfloat16", "inductor", marks=pytest.mark.slow),
        pytest.param("11pct", "float32", "inductor", marks=pytest.mark.slow),
        pytest.param("13pct", "mixed", "inductor", marks=pytest.mark.slow),
    ],
)
def test_the_compiled_step_is_one_graph_and_does_what_the_eager_one_does(name, precision, backend) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = replace(NETWORKS[name], precision=precision)
    (compiled, compiled_loss), (eager, eager_loss) = (
        velocities(config, step) for step in (compiled_train_step(backend), train_step)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(compiled_loss, eager_loss, rtol=LOSS[precision], atol=0)
    assert (compiled - eager).norm() <= GRADIENT[precision] * eager.norm()


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_lower_precisions_are_near_float32(name, precision) -> None:
    x = pictures(8, 24).float()
    exact, low = (CifarNetwork(replace(NETWORKS[name], precision=p))(x) for p in ("float32", precision))
    assert low.dtype == torch.float32
    assert 0 < (low - exact).norm() < 0.03 * exact.norm()  # a dozen roundings to 8 bits, each 0.2% to 0.4%


def test_what_makes_no_network_is_refused() -> None:
    options = {"classes": 10, "crop": 24, "seed": 0}
    assert isinstance(make_network(CONFIG, **options, placement=Parallel(rank=1, world_size=2).placement), CifarNetwork)
    with pytest.raises(ValueError, match="layout cifar is one tower, expected parallel data"):
        make_network(CONFIG, **options, placement=replace(Parallel().placement, towers=(1,), connected=(1,)))
    for name, least in (("18pct", 12), ("11pct", 6)):
        with pytest.raises(ValueError, match=f"crop is {least - 1} pixels, expected at least {least}"):
            CifarNetwork(NETWORKS[name], crop=least - 1)
        assert CifarNetwork(NETWORKS[name], crop=least)(torch.zeros(1, 3, least, least)).shape == (1, 10)
    with pytest.raises(ValueError, match="conv6 is set for layout cifar"):
        replace(CONFIG, conv6=True)
    with pytest.raises(ValueError, match="precision is auto"):
        CifarNetwork(replace(CONFIG, precision="auto"))


def test_layers_decay_as_they_are_told() -> None:
    model = make_network(CONFIG, classes=10, crop=24, seed=0)
    config = OptimConfig(weight_decay=0.0, layer_decay=(("fc10", 0.01),), decay_biases=False)
    optimizer = MomentumSGD(config, dict(model.named_parameters()))
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    zeros = [torch.zeros_like(w) for w in optimizer.parameters.values()]
    optimizer.update(zeros, torch.tensor([0.5, 0.5]), torch.tensor(True))
    for name, w in model.named_parameters():
        factor = 1 - 0.5 * 0.01 if name == "fc10.weight" else 1.0
        torch.testing.assert_close(w.detach(), before[name] * factor, rtol=1e-6, atol=0)
    towers = OptimConfig(layer_decay=(("fc8", 0.1),))
    assert [decay_of(towers, f"towers.1.{layer}.weight") for layer in ("fc7", "fc8")] == [0.0005, 0.1]
    with pytest.raises(ValueError, match="layer_decay names fc9, expected one of conv1, conv2, fc10, local3, local4"):
        MomentumSGD(OptimConfig(layer_decay=(("fc9", 0.1),)), dict(model.named_parameters()))
