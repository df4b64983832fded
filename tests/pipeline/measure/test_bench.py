"""pipeline.bench as its users call it; what it measures against what is known to be so; wrong calls."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import write_tree
from pipeline.bench import main
from pipeline.host.machine import this_machine
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.measure.chart import bench_png
from pipeline.measure.sides import CONSUMED, COPYING, DECODING, LOADER, READING, Pictures, Task, bound_side, stage_sides
from pipeline.measure.summary import summarise
from pipeline.measure.tuned import read_tuned
from pipeline.measure.windows import Side, Window, Work, take_turns, time_stream
from pipeline.progress import no_progress
from pipeline.shard import ShardOptions, shard
from processes import wrong_in_turn

CROP = 67


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.bench", *arguments]


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it prints, in this process, which has imported all that it needs."""
    with (
        mock.patch.object(sys, "argv", ["bench", *arguments]),
        mock.patch("pipeline.bench.end_on_signals"),
    ):
        assert main() == 0
    return capsys.readouterr().out


def a_window(images: int, seconds: float = 1.0, **more) -> Window:
    return Window(images=images, bytes=100 * images, seconds=seconds, cpu_seconds=0.5, **more)


@pytest.mark.parametrize("split", ["train", "val"])
def test_stages_and_bound_do_whole_batches_of_the_split(shards: Path, split: str) -> None:
    data = DataConfig(shards=shards, crop=CROP, threads=2, prefetch=1)
    task = Task(data=data, split=split, batch_size=8, device="cpu")
    loader = BatchLoader(data)
    pictures = Pictures(task, loader)
    stages = stage_sides(task, loader, pictures)
    assert [side.name for side in stages] == [READING, DECODING, LOADER, CONSUMED]
    bound = bound_side(task, loader, pictures)
    assert bound.name == "libjpeg-turbo alone"
    sizes = np.load(shards / split / "samples.npy")["size"]
    for side in (*stages, bound):
        window = side.run(0.05)
        assert window.images >= 8 and window.seconds >= 0.05 and window.cpu_seconds > 0
        assert sizes.min() <= window.bytes / window.images <= sizes.max()
        assert 0 < window.peak_own <= window.peak_rss
        assert side is bound or (window.images <= 8 * len(window.waits) and sum(window.waits) <= window.seconds)


def test_of_raw_shards_copies_are_measured(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"train": {"a": 4, "b": 4}}, 90, 80)
    options = ShardOptions(source=source, out=str(tmp_path / "raw"), size=72, workers=1, store="raw")
    assert shard(options) == 0
    data = DataConfig(shards=tmp_path / "raw", crop=CROP, threads=1, prefetch=1)
    task = Task(data=data, split="train", batch_size=4, device="cpu")
    loader = BatchLoader(data)
    pictures = Pictures(task, loader)
    sides = [*stage_sides(task, loader, pictures), bound_side(task, loader, pictures)]
    assert [side.name for side in sides] == [READING, COPYING, LOADER, CONSUMED, "copy of the pixels"]
    copied = sides[1].run(0.02)
    assert copied.bytes / copied.images > 72 * 72 * 3
    assert sides[-1].run(0.02).images >= 4


def test_a_consumer_is_no_waiting_and_warm_up_is_not_counted() -> None:
    taken: list[int] = []
    closed: list[bool] = []

    def start():
        try:
            for number in range(10**9):
                yield Work(2, 10, number)
        finally:
            closed.append(True)

    window = time_stream(start, 0.01, warm_up=3, consume=taken.append)
    assert taken == list(range(len(taken))) and len(window.waits) == len(taken) - 3
    assert (window.images, window.bytes) == (2 * len(window.waits), 10 * len(window.waits)) and closed == [True]


def test_sides_take_turns_and_none_is_always_the_first() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        return Side(name=name, run=lambda seconds: (order.append(name), a_window(1, seconds))[1])

    with no_progress() as advance:
        windows = take_turns([side("a"), side("b"), side("c")], 3, 2.0, advance)
    assert "".join(order) == "abccbaabc"
    assert {name: len(taken) for name, taken in windows.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(window.seconds == 2.0 for taken in windows.values() for window in taken)


def test_figures_are_medians_ranges_and_shares_of_the_same_rounds() -> None:
    waits = np.arange(1, 101) / 1000
    windows = {
        "stage": [a_window(100, waits=waits), a_window(300), a_window(240, 2.0)],
        "bound": [a_window(200), a_window(400), a_window(800, 2.0)],
    }
    stage, bound = summarise(windows, 4, "bound", ("stage",))
    assert stage.images_per_second == (120, 100, 300) and stage.images_per_second_per_core == 30
    assert stage.share_of_bound == (0.5, 0.3, 0.75) and bound.share_of_bound is None
    assert stage.bytes_per_second == 12_000
    assert stage.wait_p50 == pytest.approx(0.0505) and stage.wait_p99 == pytest.approx(0.09901)
    assert bound.wait_p50 is None and stage.cpu_seconds_per_1000 == pytest.approx(1000 / 480, rel=0.01)
    chart = Image.open(io.BytesIO(bench_png([stage, bound], windows, "a title")))
    assert chart.width > 500 and len(chart.convert("RGB").getcolors(10**6) or ()) > 5


def test_it_prints_a_table_and_writes_what_it_is_asked_for(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("--seconds", "0.05", "--rounds", "2", "--batch-size", "8", "--device", "cpu")
    files = ("--json", str(tmp_path / "all.json"), "--out", str(tmp_path / "chart.png"))
    output = called(capsys, str(shards), *short, *files, "--data.crop", str(CROP), "--data.threads", "1")
    assert all(words in output for words in (READING, DECODING, LOADER, CONSUMED, "libjpeg-turbo alone", "of bound"))
    results = json.loads((tmp_path / "all.json").read_text())
    assert results["data"]["threads"] == 1 and results["data"]["prefetch"] == 2 and results["pictures"] == 30
    stages = {stage["name"]: stage for stage in results["stages"]}
    assert stages[LOADER]["share_of_bound"]["median"] > 0 and stages[READING]["share_of_bound"] is None
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_tuning_saves_what_the_worker_takes(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "tuned.json"
    given = ("--data.crop", str(CROP), "--data.prefetch", "3", "--data.decoding", "fast", "--data.output", "uint8")
    given += ("--device", "cpu", "--batch-size", "4")
    output = called(capsys, str(shards), *given, "--tune", "--tune-seconds", "0.5", "--save", str(saved))
    (tuned,) = read_tuned(saved).values()
    assert list(read_tuned(saved)) == [this_machine()]
    assert tuned.threads >= 1 and tuned.prefetch == 3 and tuned.decoding == "exact" and tuned.images_per_second > 0
    assert f"--data.threads {tuned.threads} --data.prefetch 3" in output
    assert not (shards / "tuned.json").exists()


def test_wrong_calls_get_one_line_and_status_2(shards: Path, tmp_path: Path) -> None:
    here = str(shards)
    calls = {
        "is not a folder, expected shards": [str(tmp_path / "none")],
        "batch_size is 0, expected at least 1": [here, "--batch-size", "0"],
        "seconds is nan, expected a number above 0": [here, "--seconds", "nan"],
        "rounds is 0": [here, "--rounds", "0"],
        "give DIR alone": [here, "--data.shards", "other"],
        "--save is for --tune": [here, "--save", str(tmp_path / "x")],
        "--allow-fast is for --tune": [here, "--allow-fast"],
        "--out is for the figures": [here, "--tune", "--out", str(tmp_path / "x.png")],
        "give another --json": [here, "--json", str(tmp_path / "none" / "x")],
        "give --save FILE": [str(tmp_path / "none"), "--tune"],
        "crop is 224 pixels, expected at most the 72": [here],
        "has no split 'test'": [here, "--split", "test", "--data.crop", str(CROP)],
    }
    if not torch.cuda.is_available():
        calls["device is gpu"] = [here, "--device", "gpu"]
    for expected, line in zip(calls, wrong_in_turn(*(command(*call) for call in calls.values())), strict=True):
        assert expected in line


def test_a_held_batch_is_time_that_the_loader_has(shards: Path) -> None:
    data = DataConfig(shards=shards, crop=CROP, prefetch=2)
    task = Task(data=data, split="train", batch_size=4, device="cpu")
    held = replace(task, hold_seconds=0.02)
    loader = BatchLoader(data)
    window = stage_sides(held, loader, Pictures(held, loader))[-1].run(0.05)
    assert window.seconds >= 0.02 * len(window.waits)
