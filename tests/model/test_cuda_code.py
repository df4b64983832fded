"""The step's code for an H100 stays what it was: it may not come to start or to move 5% more unnoticed.

cuda_code.json has the figures, made by `python tests/model/test_cuda_code.py` after a change that is wanted.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

sys.path.append(str(Path(__file__).parents[1] / "helpers"))  # when this is the program

from cuda_code import figures, needs_environment

FIGURES: Final = Path(__file__).with_name("cuda_code.json")
STEPS: Final = (("bfloat16", 1024), ("bfloat16", 128), ("float32", 128))
GROWTH: Final = 1.05


def measured(folder: Path, precision: str, batch_size: int) -> dict[str, float]:
    found = figures(folder / "figures.json", "--precision", precision, "--batch-size", str(batch_size))
    return {name: found[name] for name in ("calls", "bytes_per_image", "least_seconds")}


@pytest.mark.slow
@needs_environment
@pytest.mark.parametrize(("precision", "batch_size"), STEPS)
def test_the_step_starts_and_moves_no_more_than_before(precision: str, batch_size: int, tmp_path: Path):
    before = json.loads(FIGURES.read_text())[f"{precision}, {batch_size}"]
    now = measured(tmp_path, precision, batch_size)
    grown = {name: (before[name], now[name]) for name in before if now[name] > GROWTH * before[name]}
    assert not grown


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {f"{step[0]}, {step[1]}": measured(Path(folder), *step) for step in STEPS}
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
