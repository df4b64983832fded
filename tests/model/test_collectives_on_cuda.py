"""The gradients' exchange in the code for a GPU of layout `data`: how many, how large, and what it runs beside.

A graph of a fake process group of eight; nothing is exchanged.
"""

from pathlib import Path
from typing import Any, Final

import pytest

from cuda_code import figures, needs_environment

SCALARS: Final = 20  # bytes: loss, squared norm and three flags, float32, waited for at once
# Parameters of a tower, by figure 2 of the paper.
CONVOLUTIONS: Final = sum(
    kernels * (inputs + 1)
    for kernels, inputs in ((48, 3 * 121), (128, 48 * 25), (192, 256 * 9), (192, 192 * 9), (128, 192 * 9))
)
CONNECTED: Final = 2048 * (9216 + 1) + 2048 * (4096 + 1) + 500 * (4096 + 1)

pytestmark = [pytest.mark.slow, needs_environment]


@pytest.fixture(scope="module")
def collectives(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """[kind, bytes, type, convolutions and products beside it] of each."""
    folder: Path = tmp_path_factory.mktemp("data")
    return figures(folder / "figures.json", "--parallel", "data", "--batch-size", "8")["collectives"]


def test_every_gradient_is_summed_once_in_float32(collectives: list[list[Any]]):
    assert {(kind, dtype) for kind, _, dtype, _ in collectives} == {("all_reduce", "torch.float32")}
    assert sum(nbytes for _, nbytes, _, _ in collectives) == 4 * 2 * (CONVOLUTIONS + CONNECTED) + SCALARS


def test_small_gradients_travel_together(collectives: list[list[Any]]):
    assert len(collectives) == 2 * 7 + 2  # each tower's weights but conv1's; biases with conv1; the scalars


def test_sums_of_fully_connected_layers_run_beside_the_convolutions(collectives: list[list[Any]]):
    large = [between for _, nbytes, _, between in collectives if nbytes > 4e6]
    assert large and min(large) >= 2
