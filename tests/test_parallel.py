"""Several ranks do what one does: real processes that talk over gloo, against the same steps in one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.parallel import Parallel, choose_layout
from parallel_steps import steps
from processes import PATIENCE

PROGRAM = Path(__file__).with_name("parallel_steps.py")


def ranks_of(out: Path, layout: str, ranks: int, dtype: str, backend: str = "eager") -> list[dict[str, Tensor]]:
    """What each of so many ranks found."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, str(PROGRAM), str(out), layout, dtype, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return [load_file(out / f"rank-{rank}.safetensors") for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """One process, both towers, float64."""
    return steps(Parallel(), torch.float64, "eager")


def assert_same(found: list[dict[str, Tensor]], alone: dict[str, Tensor], tolerance: float) -> None:
    """Each number of each rank is that of the one process, within the tolerance of the largest of its tensor."""
    seen: set[str] = set()
    for mine in found:
        for name, value in mine.items():
            if name not in ("graphs", "told", "validation"):
                torch.testing.assert_close(
                    value, alone[name].to(value.dtype), rtol=0, atol=tolerance * scale(alone[name])
                )
                seen.add(name)
        # The last rank alone was told to stop, rank 0 to act, and all know.
        assert mine["told"].T.tolist() == [[0.0] * 7 + [1.0] * 3, [float(step == 3) for step in range(10)]]
        torch.testing.assert_close(mine["validation"][:3], alone["validation"][:3], rtol=tolerance, atol=0)
        assert mine["validation"][3:].tolist() == [1, len(found)]
    assert seen == alone.keys() - {"graphs", "told", "validation"}


def scale(x: Tensor) -> float:
    return x.double().abs().max().item()


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [("tower", 2), ("data", 2), ("data", 3), ("tower+data", 4), ("2014", 2), ("2014", 4)],
    ids=lambda value: str(value),
)
def test_loss_gradients_and_weights_are_those_of_one_process(
    layout: str, ranks: int, alone: dict[str, Tensor], tmp_path: Path
) -> None:
    """In float64, where only the order of sums differs: dropout, pictures and the uneven batch are the same."""
    found = ranks_of(tmp_path, layout, ranks, "float64")
    assert_same(found, alone, 1e-10)
    twins = [mine for mine in found if mine.keys() == found[-1].keys()]
    assert len(twins) == (ranks if layout == "data" else ranks // 2)
    for twin in twins[1:]:  # replicas are the same bit for bit, so they never drift apart
        assert all(torch.equal(twin[name], value) for name, value in twins[0].items())


# Float32's own error: how far the one process is from itself in float64 after ten steps, several times over.
FLOAT32 = 1e-3


@pytest.mark.parametrize(
    ("layout", "ranks", "backend"),
    [
        ("tower", 2, "aot_eager"),
        ("tower+data", 4, "aot_eager"),
        ("2014", 2, "aot_eager"),
        pytest.param("tower", 2, "inductor", marks=pytest.mark.slow),
    ],
)
def test_the_compiled_step_is_one_graph_on_every_rank(
    layout: str, ranks: int, backend: str, alone: dict[str, Tensor], tmp_path: Path
) -> None:
    found = ranks_of(tmp_path, layout, ranks, "float32", backend)
    assert_same(found, alone, FLOAT32)
    assert all(mine["graphs"].tolist() == [1, 0] for mine in found)


def test_layouts_by_themselves() -> None:
    expected = {1: None, 2: "tower", 3: "data", 4: "tower+data", 5: "data", 6: "tower+data"}
    assert {ranks: choose_layout("auto", ranks) for ranks in expected} == expected
    assert choose_layout("data", 4) == "data"


@pytest.mark.parametrize(
    ("wanted", "ranks"), [("tower", 1), ("tower", 4), ("data", 1), ("tower+data", 2), ("tower+data", 3), ("2014", 3)]
)
def test_a_layout_that_does_not_fit_is_refused(wanted, ranks: int) -> None:
    with pytest.raises(ValueError, match=rf"{ranks} processes with parallel {wanted.replace('+', '.')}, expected"):
        choose_layout(wanted, ranks)
