"""The fused kernels, run by Triton's interpreter against the layers in float64 and compiled for three GPUs.

Triton is in CUDA builds of torch, and among the development dependencies; the interpreter is chosen when a kernel is
imported, so that it has a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.layers.fused import Pooling, conv_pool, pool_by_layers, tile
from model.layers.lrn import LRNConfig

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton here")


def run_apart(script: str, *arguments: str, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, HERE / script, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": str(HERE.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@needs_triton
def test_kernels_are_the_formulas_by_the_interpreter() -> None:
    run_apart("interpret_kernels.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("architectures", [["90"], pytest.param(["80", "100"], marks=pytest.mark.slow)])
def test_kernels_compile_without_spills(architectures: list[str]) -> None:
    run_apart("compile_kernels.py", *architectures)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_by_layers_each_order_is_torchs_layers(activation) -> None:
    x = torch.randn(2, 12, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9
    function, lrn = getattr(torch, activation), LRNConfig()

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return F.local_response_norm(x, 5, 5e-4, 0.75, 2.0)

    paper = F.max_pool2d(normalise(function(x)), 3, 2)
    torch.testing.assert_close(pool_by_layers(x, Pooling(before=activation, lrn=lrn)), paper)
    source = function(F.max_pool2d(normalise(x), 3, 2))
    torch.testing.assert_close(pool_by_layers(x, Pooling(lrn=lrn, after=activation)), source)
    assert torch.equal(pool_by_layers(x, Pooling()), F.max_pool2d(x, 3, 2))


def test_on_a_cpu_a_convolution_is_pooled_by_layers() -> None:
    conv = torch.nn.Conv2d(3, 8, 3)
    x, pooling = torch.randn(2, 3, 9, 9), Pooling(before="relu", lrn=LRNConfig())
    assert torch.equal(conv_pool(conv, x, pooling), pool_by_layers(conv(x), pooling))


@pytest.mark.parametrize("channels", [1, 16, 17, 48, 128, 192, 256, 2048])
def test_a_tile_holds_all_channels_where_windows_need_them(channels: int) -> None:
    pixels, block = tile(channels, whole=True)
    assert block >= channels and pixels >= 1
    for whole in (True, False):
        pixels, block = tile(channels, whole)
        assert pixels & (pixels - 1) == 0 and block & (block - 1) == 0
