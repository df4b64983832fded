"""What is read of a run's folder, written here as runs of this and earlier versions write it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import InputError
from pipeline.inspection.run_folder import RunBatches, first_position, read_run, without_speed
from pipeline.load.augment import AugmentConfig
from pipeline.load.config import DataConfig
from service.run.config import RECIPES, run_fields

SAMPLES = 1000


def write_run(folder: Path, **changes: Any) -> Path:
    fields = run_fields(RECIPES["source"][1], "hash")
    (folder / "run.json").write_text(json.dumps(fields | changes))
    return folder


def write_log(folder: Path, positions: dict[int, int]) -> None:
    lines = [{"step": s, "epoch": p / SAMPLES, "loss": 1.0, "gradient_norm": 1.0} for s, p in positions.items()]
    lines.insert(1, {"step": 1, "epoch": 7, "validation": {}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "epo')


def test_a_runs_options_are_read_as_they_were(tmp_path: Path) -> None:
    data = DataConfig(crop=80, cache=Path("/cache"), augment=AugmentConfig(colour="off"), decoding="fast")
    fields = json.loads(json.dumps(asdict(data), default=str))
    write_run(tmp_path, data=fields, batch_size=96, seed=7)
    assert read_run(tmp_path) == RunBatches(batch_size=96, seed=7, data=data)
    write_run(tmp_path)
    assert read_run(tmp_path).data == RECIPES["source"][1].data


def test_an_earlier_versions_run_has_the_defaults_of_what_it_lacks(tmp_path: Path) -> None:
    write_run(tmp_path, data={"shards": "s", "crop": 100, "augment": {"mirror": False}, "prefetch": 2})
    data = DataConfig(shards="s", crop=100, augment=AugmentConfig(mirror=False), prefetch=2)
    assert read_run(tmp_path).data == data
    assert without_speed(data) == DataConfig(crop=100, augment=AugmentConfig(mirror=False))
    assert without_speed(replace(data, threads=3, tuned=False, hw_decoder_load=0.5)) == without_speed(data)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"batch_size": 0, "seed": 0, "data": {}}', b'{"batch_size": {}}']
)
def test_what_is_no_run_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"is no run's of this version .* give --batch-size"):
        read_run(tmp_path)
    write_run(tmp_path, data={"of_a_later_version": 1})
    with pytest.raises(InputError, match="of_a_later_version"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="give --run the folder"):
        read_run(tmp_path / "none")


def test_steps_follow_one_another(tmp_path: Path) -> None:
    run = RunBatches(batch_size=128, seed=0, data=DataConfig())
    assert [first_position(tmp_path, run, step, SAMPLES) for step in (1, 2, 1000)] == [0, 128, 127_872]
    write_log(tmp_path, {step: 128 * step for step in range(1, 30)})
    assert [first_position(tmp_path, run, step, SAMPLES) for step in (1, 2, 1000)] == [0, 128, 127_872]


def test_a_forks_log_says_where_its_steps_are(tmp_path: Path) -> None:
    """Forked after step 10 of 128 pictures each, and trained on with 100."""
    fork = RunBatches(batch_size=100, seed=0, data=DataConfig(), forked=True)
    write_log(tmp_path, {10 + n: 1280 + 100 * n for n in range(1, 6)})
    assert [first_position(tmp_path, fork, step, SAMPLES) for step in (11, 12, 15, 20)] == [1280, 1380, 1680, 2180]
    with pytest.raises(InputError, match=r"step 10 is not .* expected one from 11 on"):
        first_position(tmp_path, fork, 10, SAMPLES)
    write_run(tmp_path, parent="other")
    assert read_run(tmp_path).forked
    write_run(tmp_path, parent="other", keep="weights")
    assert not read_run(tmp_path).forked
