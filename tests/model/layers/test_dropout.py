"""Dropout masks: golden bits, independence of batch and tower, and the statistics of independent coins."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from model.alexnet import AlexNet, ModelConfig
from model.layers.dropout import drop_units, keep_mask


def mask(seed: int = 1, layer: int = 6, first: int = 0, count: int = 512, units: int = 1024, drop: float = 0.5):
    return keep_mask(seed, layer, torch.arange(first, first + count), 0, units, drop)


def reference_bit(seed: int, layer: int, position: int, unit: int) -> int:
    """The hash in Python's own integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    key = mix(mix(mix(seed % 2**32) ^ seed >> 32) ^ layer)
    row = mix(mix(position % 2**32 ^ key) ^ position >> 32)
    return mix(row ^ unit * 0x9E3779B1 % 2**32)


def test_the_hash_is_that_of_pythons_integers() -> None:
    positions = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 12345])
    found = keep_mask((5 << 32) + 7, 7, positions, 3, 50, 0.3)
    expected = [
        [reference_bit((5 << 32) + 7, 7, p, u) >= round(0.3 * 2**32) for u in range(3, 53)] for p in positions.tolist()
    ]
    assert found.tolist() == expected


def test_a_mask_depends_on_position_and_unit_alone() -> None:
    whole = mask()
    assert torch.equal(whole[100:140], mask(first=100, count=40))
    halves = [keep_mask(1, 6, torch.arange(512), first, 512, 0.5) for first in (0, 512)]
    assert torch.equal(torch.cat(halves, 1), whole)  # two towers, half of the layer each


def test_compiled_and_eager_masks_are_equal() -> None:
    compiled = torch.compile(keep_mask, fullgraph=True, dynamic=False)
    positions = torch.arange(2**33, 2**33 + 64)
    assert torch.equal(compiled(9, 6, positions, 0, 256, 0.5), keep_mask(9, 6, positions, 0, 256, 0.5))


def test_a_compiler_that_writes_out_every_use_has_little_to_write() -> None:
    """It writes a value's formula at each use unless the value is stored; as_strided makes it store. Else compiling
    the masks takes longer than all the rest of the step: 33,000 operations a layer instead of hundreds."""
    graph = make_fx(lambda positions: keep_mask(9, 6, positions, 0, 256, 0.5))(torch.arange(64)).graph
    length: dict[torch.fx.Node, int] = {}
    for node in graph.nodes:
        stored = node.target is torch.ops.aten.as_strided.default
        length[node] = 1 if stored else 1 + sum(length[each] for each in node.all_input_nodes)
    assert max(length.values()) < 200


def test_units_are_dropped_as_often_as_asked_and_independently() -> None:
    for drop in (0.2, 0.5):
        kept = mask(drop=drop).double()
        # 524,288 coins: standard error 0.0007; rows 512 coins by 1,024, columns 1,024 by 512.
        assert abs(kept.mean() - (1 - drop)) < 0.003
        assert (kept.mean(1) - (1 - drop)).abs().max() < 5 * 0.5 / 1024**0.5
        assert (kept.mean(0) - (1 - drop)).abs().max() < 5 * 0.5 / 512**0.5
    kept = (mask() ^ mask(first=1)).double()  # neighbours in position
    assert abs(kept.mean() - 0.5) < 0.003
    kept = (mask()[:, 1:] ^ mask()[:, :-1]).double()  # neighbours in unit
    assert abs(kept.mean() - 0.5) < 0.003


def test_seed_and_layer_matter() -> None:
    for other in (mask(seed=2), mask(seed=1 + (1 << 32)), mask(layer=7)):
        assert abs((mask() ^ other).double().mean() - 0.5) < 0.003


@pytest.mark.parametrize("inverted", [True, False])
def test_the_mean_of_a_units_outputs_in_training_is_its_output_at_test_time(inverted: bool) -> None:
    x, positions = torch.full((4096, 128), 3.0), torch.arange(4096)
    drawn = drop_units(x, 1, 6, positions, 0, 0.25, inverted)
    assert drawn.unique().tolist() == [0, 4 if inverted else 3]
    at_test = drop_units(x, 1, 6, None, 0, 0.25, inverted)
    assert at_test.unique().tolist() == [3 if inverted else 2.25]
    # 524,288 coins of standard deviation 0.43 times what is kept.
    assert abs(drawn.mean() - at_test[0, 0]) < 5 * 0.44 * drawn.max() / drawn.numel() ** 0.5
    assert torch.equal(drop_units(x, 1, 6, positions, 0, 0.0, inverted), x)


def test_without_inversion_it_is_the_network_whose_later_layers_have_half_the_weights() -> None:
    """Exactly, of a half: the inverted network has to start at half of the deviation to be the paper's."""
    config = ModelConfig(fc_width=64, init="he", dropout=0.5, inverted_dropout=False)
    papers = AlexNet(config, classes=10, crop=67)
    inverted = AlexNet(ModelConfig(fc_width=64, init="he", dropout=0.5), classes=10, crop=67)
    with torch.no_grad():
        for name, parameter in inverted.named_parameters():
            if name.endswith(("fc7.weight", "fc8.weight")):
                parameter /= 2
    x = torch.randn(4, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    for positions in (None, torch.arange(4)):
        assert torch.equal(papers(x, positions), inverted(x, positions))
