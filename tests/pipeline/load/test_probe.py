"""The trial of the decoder, on the CPU, which has the same operator."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.load import batch_loader
from pipeline.load.config import DataConfig
from pipeline.load.graph import arithmetic_options
from pipeline.load.probe import decoder_failure


def test_the_decoder_is_tried_with_the_options_of_the_run() -> None:
    assert decoder_failure("cpu", options=arithmetic_options(fast=True)) == ""
    assert "no_such_option" in decoder_failure("cpu", options={"no_such_option": 1})


def test_each_rank_tries_its_own_gpu_as_it_will_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, dict[str, Any]]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(batch_loader, "gpu_decoder_works", lambda gpu, options: not tried.append((gpu, options)))
    config = DataConfig(shards=Path("shards"), decoding="fast", hw_decoder_load=0.5)
    assert batch_loader._decoder(config, "gpu", "jpeg") == "gpu"
    assert tried == [(3, {"jpeg_fancy_upsampling": False, "use_fast_idct": True, "hw_decoder_load": 0.5})]
    assert batch_loader._decoder(config, "cpu", "jpeg") == "cpu" and len(tried) == 1
