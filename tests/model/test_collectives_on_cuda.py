"""The exchanges in the code for a GPU of each layout: how many, how large, and what they run beside.

Graphs of a fake process group of eight, of two for `tower`; nothing is exchanged.
"""

from pathlib import Path
from typing import Final, NamedTuple

import pytest

from cuda_code import figures, needs_environment

BATCH: Final = 8  # pictures that each rank brings
SCALARS: Final = 20  # bytes: loss, squared norm and three flags, float32, waited for at once
# Parameters of a tower, by figure 2 of the paper.
CONVOLUTIONS: Final = sum(
    kernels * (inputs + 1)
    for kernels, inputs in ((48, 3 * 121), (128, 48 * 25), (192, 256 * 9), (192, 192 * 9), (128, 192 * 9))
)
CONNECTED: Final = 2048 * (9216 + 1) + 2048 * (4096 + 1) + 500 * (4096 + 1)
# Numbers that a pair's ranks gather for a picture, at each place where the towers meet or rows change hands.
PIXELS, CONV2, CONV5, HIDDEN, LOGITS = 224 * 224 * 3, 128 * 13 * 13, 256 * 36, 2048, 500
HALF: Final = 2  # bytes of a bfloat16


class Collective(NamedTuple):
    kind: str
    nbytes: int  # of its input
    dtype: str
    beside: int  # convolutions and products between its start and its wait


# Each gradient summed over ranks: which towers' this rank holds, of the convolutions and of the fully connected layers.
SUMMED: Final = {"tower": (0, 0), "data": (2, 2), "tower+data": (1, 1), "2014": (2, 1)}
# Sums: of each weight held but conv1's, of what is small together, of the scalars.
SUMS: Final = {"tower": 1, "data": 2 * 7 + 2, "tower+data": 7 + 2, "2014": 2 * 4 + 3 + 3}

pytestmark = [pytest.mark.slow, needs_environment]


@pytest.fixture(scope="module", params=SUMMED)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def collectives(layout: str, tmp_path_factory: pytest.TempPathFactory) -> list[Collective]:
    folder: Path = tmp_path_factory.mktemp("layout")
    found = figures(folder / "figures.json", "--parallel", layout, "--batch-size", str(BATCH))["collectives"]
    return [Collective(*each) for each in found]


def of_kind(collectives: list[Collective], kind: str) -> list[Collective]:
    return [each for each in collectives if each.kind == kind]


def test_every_gradient_is_summed_once_in_float32_and_small_ones_travel_together(
    layout: str, collectives: list[Collective]
) -> None:
    sums = of_kind(collectives, "all_reduce")
    convolutions, connected = SUMMED[layout]
    assert {each.dtype for each in sums} == {"torch.float32"}
    assert sum(each.nbytes for each in sums) == 4 * (convolutions * CONVOLUTIONS + connected * CONNECTED) + SCALARS
    assert len(sums) == SUMS[layout]


def test_a_pair_gathers_what_its_towers_exchange_and_scatters_its_gradients(
    layout: str, collectives: list[Collective]
) -> None:
    gathered = [(each.nbytes, each.dtype) for each in of_kind(collectives, "all_gather_into_tensor")]
    scattered = [each.nbytes for each in of_kind(collectives, "reduce_scatter_tensor")]
    if layout == "data":
        assert not gathered and not scattered
        return
    # The rows' positions, for dropout; conv5's maps of both or what a tower made of both's rows, for fc6; and so on.
    maps = [CONV5 * BATCH] if layout == "2014" else [CONV2 * 2 * BATCH, CONV5 // 2 * 2 * BATCH]
    units = [each * HALF for each in (*maps, HIDDEN * 2 * BATCH, HIDDEN * 2 * BATCH, LOGITS * 2 * BATCH)]
    pictures = [] if layout == "2014" else [(PIXELS * BATCH, "torch.uint8"), (4 * 3 * BATCH, "torch.float32")]
    scales = [] if layout == "2014" else [(4 * BATCH, "torch.float32")]
    expected = [*pictures, *scales, (8 * BATCH, "torch.int64"), *((nbytes, "torch.bfloat16") for nbytes in units)]
    assert sorted(gathered) == sorted(expected)
    assert sorted(scattered) == sorted(2 * nbytes for nbytes in units)  # both ranks' parts of the gradient


def test_a_step_whose_updates_are_one_kernel_compiles_too(tmp_path: Path) -> None:
    """Inductor's own passes over exchanges fail there, in torch 2.13."""
    step = ("--parallel", "tower", "--precision", "float32", "--batch-size", "32")
    assert figures(tmp_path / "figures.json", *step)["calls"] < 90


def test_sums_of_large_gradients_run_beside_the_rest_of_backward(layout: str, collectives: list[Collective]) -> None:
    large = [each for each in of_kind(collectives, "all_reduce") if each.nbytes > 4e6]
    assert len(large) == 3 * SUMMED[layout][1]  # fc6's, fc7's and fc8's
    assert all(each.beside >= 1 for each in large)
