"""Dropout masks: golden bits, independence of batch and tower, and the statistics of independent coins."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from model.layers.dropout import keep_mask


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
