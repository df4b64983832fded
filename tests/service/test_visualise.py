"""The command that draws the filters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.filters import filters_picture
from pipeline.command import InputError
from service import visualise
from service.run.checkpoint import RunState, save_checkpoint


def test_visualise_draws_the_newest_checkpoint_and_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"towers-{t}.safetensors": {f"towers.{t}.conv1.weight": torch.randn(48, 3, 11, 11)} for t in (0, 1)}
    save_checkpoint(tmp_path / "run", RunState(step=4), tensors, {})
    out = tmp_path / "filters.png"
    monkeypatch.setattr("sys.argv", ["visualise", str(tmp_path / "run"), "--out", str(out)])
    assert visualise.main() == 0
    picture = np.asarray(Image.open(out))
    expected = filters_picture([tensors[f"towers-{t}.safetensors"][f"towers.{t}.conv1.weight"] for t in (0, 1)])
    assert np.array_equal(picture, expected)
    monkeypatch.setattr("sys.argv", ["visualise", str(tmp_path)])
    with pytest.raises(InputError, match="holds no sound checkpoint"):
        visualise.main()
