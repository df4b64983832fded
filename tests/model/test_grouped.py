"""The towers as one module: the same network, of operators that an exporter takes."""

import pytest
import torch
from torch import Tensor

from model.alexnet import AlexNet, ModelConfig
from model.grouped import grouped
from model.layers.lrn import LRNConfig

CROP = 96  # the last maps have 2 x 2 pixels, so that their order counts

CONFIGS = {
    "paper": ModelConfig(fc_width=64, init="he"),
    "source": ModelConfig(fc_width=64, init="he", layer_order="source", lrn=LRNConfig(alpha=2e-5)),
    "other constants": ModelConfig(fc_width=64, init="he", lrn=LRNConfig(size=4, alpha=0.1, beta=0.5, k=1.0)),
    "tanh without norm": ModelConfig(fc_width=64, init="he", activation="tanh", normalise=False),
    "logistic, pooling without overlap": ModelConfig(fc_width=64, init="he", activation="logistic", pool_size=2),
    "one column": ModelConfig(fc_width=64, init="he", columns=1, without="conv5"),
    "section 4.2's dropout": ModelConfig(fc_width=64, init="he", inverted_dropout=False, dropout=0.3),
    "batch norm": ModelConfig(fc_width=64, init="he", batch_norm=True, talk=False),
    "no talk": ModelConfig(fc_width=64, init="he", talk=False, conv6=True),
    "without conv3": ModelConfig(fc_width=64, init="he", without="conv3"),
    "conv6": ModelConfig(fc_width=64, init="he", conv6=True, precision="mixed"),
}


def towers(config: ModelConfig) -> AlexNet:
    return AlexNet(config, classes=7, crop=CROP, seed=3)


def pictures(dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 3, CROP, CROP, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 50


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].precision == "float32"])
def test_it_is_the_towers_network(name: str) -> None:
    model, x = towers(CONFIGS[name]).double(), pictures(torch.float64)
    expected = model(x)
    assert (grouped(model)(x) - expected).norm() <= 1e-10 * expected.norm()


@torch.no_grad()
def test_whatever_the_precision_of_training_it_computes_in_float32() -> None:
    model, x = towers(CONFIGS["conv6"]), pictures(torch.float32)
    exact = AlexNet(ModelConfig(fc_width=64, init="he", conv6=True), classes=7, crop=CROP, seed=3).double()(x.double())
    found = grouped(model)(x)
    assert found.dtype == torch.float32
    assert (found - exact).norm() <= 1e-5 * exact.norm()  # float32's rounding in some thousand terms of nine layers


def test_its_weights_are_copies_with_plain_names() -> None:
    model = towers(CONFIGS["conv6"])
    module = grouped(model)
    layers = [f"conv{n}" for n in range(1, 7)] + ["fc6", "fc7", "fc8"]
    assert [name for name, _ in module.named_parameters()] == [
        f"{n}.{kind}" for n in layers for kind in ("weight", "bias")
    ]
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        module.conv1.weight.zero_()
    assert model.held()[0].conv1.weight.any()


def test_it_exports_for_any_number_of_pictures_with_torchs_own_operators() -> None:
    module, x = grouped(towers(CONFIGS["conv6"])), pictures(torch.float32)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {str(call).partition(".")[0] for call in calls} <= {"aten", "<built-in function getitem>"}
    for rows in (3, 2, 1):
        torch.testing.assert_close(program.module()(x[:rows]), module(x[:rows]), rtol=1e-6, atol=1e-6)
