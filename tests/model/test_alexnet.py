"""The network: its size, its shapes, its equality with the same network written plainly, and its initial weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.alexnet import AlexNet, ModelConfig, Placement, map_side
from model.flop import training_flops_per_picture
from model.layers.dropout import keep_mask
from model.layers.first_conv import FirstConv
from model.layers.fused import PoolSize
from model.layers.lrn import LRNConfig
from model.network import make_network


def small(config: ModelConfig, **options) -> AlexNet:
    """The network on the smallest pictures that it takes, with a small head: quick in float64."""
    return AlexNet(config, classes=10, crop=67, **options).double()


ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "logistic": lambda x: 1 / (1 + torch.exp(-x))}


def plain(weights: dict[str, Tensor], config: ModelConfig, x: Tensor, positions: Tensor | None, seed: int) -> Tensor:
    """The paper's figure 2, tower by tower: torch's own norm and pooling, and no dropout but by masks."""
    towers, act = range(config.columns), ACTIVATIONS[config.activation]

    def of(tower: int, name: str) -> tuple[Tensor, Tensor]:
        return weights[f"towers.{tower}.{name}.weight"], weights[f"towers.{tower}.{name}.bias"]

    def norm(x: Tensor) -> Tensor:
        return F.local_response_norm(x, 5, config.lrn.alpha * 5, 0.75, 2.0) if config.normalise else x

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, config.pool_size, 2)

    def heard(parts: list[Tensor]) -> list[Tensor]:
        return [torch.cat(parts, 1)] * len(parts) if config.talk else parts

    def dropped(x: Tensor, layer: int, tower: int) -> Tensor:
        inverted, kept = config.inverted_dropout, 1 - config.dropout
        if positions is None:
            return x if inverted else x * kept
        mask = keep_mask(seed, layer, positions, tower * x.shape[1], x.shape[1], config.dropout)
        return x * mask / kept if inverted else x * mask

    first = [F.conv2d(x, *of(t, "conv1"), stride=4, padding=2) for t in towers]
    source = config.layer_order == "source"
    maps = [act(pool(norm(each))) if source else pool(norm(act(each))) for each in first]
    maps = heard([pool(norm(act(F.conv2d(maps[t], *of(t, "conv2"), padding=2)))) for t in towers])
    for name in ("conv3", "conv4", "conv5"):
        if name != config.without:
            maps = [act(F.conv2d(maps[t], *of(t, name), padding=1)) for t in towers]
    maps = [pool(each) for each in maps]
    if config.conv6:
        inputs = heard(maps)
        maps = [act(F.conv2d(inputs[t], *of(t, "conv6"), padding=1)) for t in towers]
    units = [each.flatten(1) for each in maps]
    for layer in (6, 7):
        inputs = heard(units)
        units = [dropped(act(F.linear(inputs[t], *of(t, f"fc{layer}"))), layer, t) for t in towers]
    return torch.cat([F.linear(torch.cat(units, 1), *of(t, "fc8")) for t in towers], 1)


LEAST_CROPS: dict[PoolSize, int] = {3: 63, 2: 35}
SMALL = ModelConfig(fc_width=64, init="he", precision="float32")
CONFIGS = {
    "paper": ModelConfig(fc_width=64, init="he", precision="float32", pixel_std=50.0),
    "source": ModelConfig(fc_width=64, init="he", precision="float32", layer_order="source", lrn=LRNConfig(alpha=2e-5)),
    "tanh without norm": ModelConfig(
        fc_width=64, init="he", precision="float32", activation="tanh", normalise=False, dropout=0.2
    ),
    "section 4.2's dropout": replace(SMALL, inverted_dropout=False, dropout=0.3),
    "conv6": replace(SMALL, conv6=True),
    "logistic": replace(SMALL, activation="logistic"),
    "pooling without overlap": replace(SMALL, pool_size=2),
    "one column": replace(SMALL, columns=1),
    "no talk": replace(SMALL, talk=False),
    "no talk, conv6": replace(SMALL, talk=False, conv6=True, layer_order="source"),
    "without conv3": replace(SMALL, without="conv3"),
    "without conv4": replace(SMALL, without="conv4", columns=1, pool_size=2),
    "without conv5": replace(SMALL, without="conv5", conv6=True),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_equal_the_network_written_plainly(name: str, train: bool) -> None:
    config = CONFIGS[name]
    model = small(config, seed=3)
    x = torch.randn(4, 3, 67, 67, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    x = x.contiguous(memory_format=torch.channels_last)
    positions = torch.tensor([7, 2**33, 9, 10]) if train else None
    ours = model(x, positions)
    theirs = plain(dict(model.named_parameters()), config, x, positions, seed=3)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    labels = torch.tensor([0, 3, 9, 5])
    parameters = list(model.parameters())
    ours_grads, theirs_grads = (torch.autograd.grad(F.cross_entropy(o, labels), parameters) for o in (ours, theirs))
    for ours_grad, theirs_grad in zip(ours_grads, theirs_grads, strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_the_last_hidden_layer_is_what_the_classes_are_read_from(precision) -> None:
    model = AlexNet(ModelConfig(fc_width=64, init="he", precision=precision), classes=7, crop=67, seed=3)
    x = torch.randn(4, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden, logits = model.hidden(x), model(x)
        if precision != "float32":
            model = model.bfloat16()  # as autocast multiplies
        last = [tower.fc8 for tower in model.held().values()]
        read = torch.cat([fc8(hidden.to(fc8.weight.dtype)) for fc8 in last], dim=1)
    assert hidden.shape == (4, 64) and hidden.dtype == torch.float32 and (hidden >= 0).all()
    assert torch.equal(read.float(), logits)


def test_conv6_takes_pooled_maps_of_both_towers() -> None:
    model = AlexNet(ModelConfig(conv6=True, fc_width=64, init="source"), classes=10)
    with torch.no_grad():
        for tower in model.held().values():
            assert tower.conv6.weight.shape == (128, 256, 3, 3) and (tower.conv6.bias == 1).all()
            tower.conv6.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        shapes: list[torch.Size] = []
        model(torch.zeros(1, 3, 224, 224))
    assert shapes == [(1, 128, 6, 6)] * 2
    without = AlexNet(ModelConfig(fc_width=64, init="source"), classes=10)
    others = {name: weight for name, weight in model.named_parameters() if ".conv6." not in name}
    assert others.keys() == dict(without.named_parameters()).keys()
    assert all(torch.equal(weight, others[name]) for name, weight in without.named_parameters())


def test_it_has_the_papers_60_965_224_parameters_and_659_272_neurons() -> None:
    model = AlexNet(ModelConfig())
    assert sum(p.numel() for p in model.parameters()) == 60_965_224
    sizes: list[int] = []

    def count_neurons(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        sizes.append(output[0].numel())

    for tower in model.towers.values():
        for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
            getattr(tower, layer).register_forward_hook(count_neurons)
    logits = model(torch.zeros(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert sum(sizes) == 659_272


@pytest.mark.parametrize("size", [2, 3])
def test_map_sides_are_those_of_the_convolutions(size: int) -> None:
    for crop in range(67, 300, 7):
        x = torch.zeros(1, 1, crop, crop)
        x = F.max_pool2d(F.max_pool2d(F.conv2d(x, torch.zeros(1, 1, 11, 11), stride=4, padding=2), size, 2), size, 2)
        assert map_side(crop, size) == F.max_pool2d(x, size, 2).shape[-1]
    assert map_side(224, size) == 6


def test_one_column_has_as_many_parameters_as_half_the_kernels_leave() -> None:
    """Section 3.2: half the kernels, but of the last convolution all, so that fc6 keeps its inputs."""
    convolutions = [(48, 3 * 121), (128, 48 * 25), (192, 128 * 9), (192, 192 * 9), (256, 192 * 9)]
    connected = [(4096, 256 * 36), (4096, 4096), (1000, 4096)]
    expected = sum(units * (inputs + 1) for units, inputs in (*convolutions, *connected))
    assert sum(p.numel() for p in AlexNet(ModelConfig(columns=1)).parameters()) == expected
    assert expected == 59_798_312 == pytest.approx(60_965_224, rel=0.02)  # "approximately the same"


def test_fc6_of_one_column_takes_as_many_maps_as_that_of_two_whatever_is_left_out() -> None:
    for without in ("none", "conv3", "conv4", "conv5"):
        one, two = (
            AlexNet(ModelConfig(columns=columns, without=without, fc_width=2), crop=67).held()[0].fc6.in_features
            for columns in (1, 2)
        )
        assert one == two


@pytest.mark.parametrize("crop", [67, 68, 69, 70])  # each remainder of the pixels that the last window leaves
def test_conv1_in_fours_is_the_convolution(crop: int) -> None:
    conv = FirstConv(48)
    x = torch.randn(2, 3, crop, crop, generator=torch.Generator().manual_seed(crop))
    x = x.bfloat16().float().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.bfloat16())
        conv.get_parameter("bias").zero_()
    exact = F.conv2d(x, conv.weight, stride=4, padding=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x)
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    assert ((found - exact).norm() / exact.norm()) < 2**-8  # the roundings of the output
    weight = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    (ours,) = torch.autograd.grad((found * weight).sum(), conv.weight)
    (theirs,) = torch.autograd.grad((F.conv2d(x, conv.weight, stride=4, padding=2) * weight.float()).sum(), conv.weight)
    assert ((ours - theirs).norm() / theirs.norm()) < 2**-7


@pytest.mark.parametrize(
    ("config", "crop", "classes"),
    [
        (ModelConfig(), 224, 1000),
        (ModelConfig(fc_width=64), 67, 7),
        (ModelConfig(fc_width=64, conv6=True), 112, 7),
        (ModelConfig(fc_width=64, layout="torchvision"), 112, 7),
        (ModelConfig(fc_width=64, columns=1, without="conv4"), 112, 7),
        (ModelConfig(fc_width=64, talk=False, pool_size=2, conv6=True, without="conv5"), 112, 7),
    ],
    ids=["paper", "small", "conv6", "torchvision", "one column", "no talk"],
)
def test_training_flop_are_those_that_torch_counts(config: ModelConfig, crop: int, classes: int) -> None:
    model = make_network(config, classes=classes, crop=crop, seed=0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, crop, crop), torch.zeros(1, dtype=torch.int64)).sum().backward()
    assert training_flops_per_picture(config, classes, crop) == counter.get_total_flops()


def test_too_small_a_crop_is_refused() -> None:
    for size, least in LEAST_CROPS.items():
        with pytest.raises(ValueError, match=f"crop is 20 pixels, expected at least {least}:"):
            AlexNet(ModelConfig(pool_size=size, fc_width=2), crop=20)
        assert AlexNet(ModelConfig(pool_size=size, fc_width=2), crop=least).held()[0].fc6.in_features == 256


@pytest.mark.parametrize("classes", [2, 7, 10])
def test_towers_share_the_classes_and_the_odd_one_is_tower_0s(classes: int) -> None:
    model = AlexNet(ModelConfig(fc_width=8), classes=classes, crop=67)
    assert [tower.fc8.out_features for tower in model.held().values()] == [classes - classes // 2, classes // 2]
    assert model(torch.zeros(1, 3, 67, 67)).shape == (1, classes)


@pytest.mark.parametrize(("init", "deviation"), [("paper", 0.01), ("source", 0.03)])
def test_initial_weights_and_biases_are_the_recipes(init, deviation: float) -> None:
    model = AlexNet(ModelConfig(init=init))
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")[2:]
        if kind == "bias":
            assert (parameter == (1.0 if layer in {"conv2", "conv4", "conv5", "fc6", "fc7"} else 0.0)).all()
            continue
        expected = deviation if layer in {"conv3", "conv4", "conv5"} else 0.01
        n = parameter.numel()
        assert abs(parameter.std().item() / expected - 1) < 5 / (2 * n) ** 0.5
        assert abs(parameter.mean().item()) < 5 * expected / n**0.5


@pytest.mark.parametrize("pixel_std", [1.0, 10.0, 58.0])
def test_he_keeps_the_scale_of_the_signal(pixel_std: float) -> None:
    model = AlexNet(ModelConfig(init="he", fc_width=512, normalise=False, pixel_std=pixel_std), classes=10, crop=112)
    x = torch.randn(16, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 58 / pixel_std
    assert 0.1 < model(x).std() < 10


def test_a_tower_alone_starts_as_it_does_beside_the_other() -> None:
    both, alone = (
        AlexNet(ModelConfig(fc_width=16), crop=67, seed=5, placement=Placement(t, t)) for t in ((0, 1), (1,))
    )
    weights = dict(both.named_parameters())
    for name, parameter in alone.named_parameters():
        assert name.startswith("towers.1.")
        assert torch.equal(parameter, weights[name])
    other = AlexNet(ModelConfig(fc_width=16), crop=67, seed=6)
    assert not torch.equal(other.held()[0].conv1.weight, both.held()[0].conv1.weight)
    assert not torch.equal(both.held()[0].conv1.weight, both.held()[1].conv1.weight)


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_lower_precisions_are_near_float32(precision) -> None:
    x = torch.randn(8, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    exact, low = (
        AlexNet(ModelConfig(init="he", fc_width=256, precision=p), classes=10, crop=112)(x)
        for p in ("float32", precision)
    )
    assert low.dtype == torch.float32
    assert ((low - exact).norm() / exact.norm()) < 0.03  # eight roundings to 8 bits, each 0.2% to 0.4%


def test_wrong_options_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match="fc_width is 7, expected a positive even number"):
        ModelConfig(fc_width=7)
    with pytest.raises(ValueError, match="dropout is 1"):
        ModelConfig(dropout=1)
    with pytest.raises(ValueError, match="conv6 is set for layout torchvision"):
        ModelConfig(conv6=True, layout="torchvision")
    with pytest.raises(ValueError, match="columns 1 is set for layout torchvision"):
        ModelConfig(columns=1, layout="torchvision")
    with pytest.raises(ValueError, match="one tower, expected parallel data"):
        AlexNet(ModelConfig(columns=1), crop=67, placement=Placement((0,), (0,)))
    with pytest.raises(ValueError, match="talk is off and columns is 1"):
        AlexNet(ModelConfig(columns=1, talk=False), crop=67)
    with pytest.raises(ValueError, match="bias is nan"):
        ModelConfig(bias=float("nan"))


def test_biases_start_where_the_configuration_says() -> None:
    for name, parameter in AlexNet(ModelConfig(bias=0.1, fc_width=8), crop=67).named_parameters():
        layer, kind = name.split(".")[2:]
        if kind == "bias":
            expected = 0.1 if layer in {"conv2", "conv4", "conv5", "fc6", "fc7"} else 0.0
            assert torch.equal(parameter, torch.full_like(parameter, expected))
