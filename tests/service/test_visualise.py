"""The command that draws the filters and compares the towers."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.filters import colour_index, filters_picture, orientation_index
from pipeline.command import InputError
from service import visualise
from service.results.filter_indexes import (
    ENLARGE,
    HEADINGS,
    KINDS,
    LEFT,
    TOP,
    as_json,
    compare_means,
    figure_png,
    filters_figure,
    measure,
    notes,
    table_rows,
)
from service.run.checkpoint import RunState, Validation, save_checkpoint
from service.run.filters import read_kernels


def noise(count: int, seed: int, colour: float = 1.0) -> Tensor:
    """Kernels of one hue each, of which the part that is not grey is multiplied by `colour`: alike in orientation."""
    generator = np.random.default_rng(seed)
    shapes, hues = generator.normal(size=(count, 1, 11, 11)), generator.normal(size=(count, 3, 1, 1))
    grey = hues.mean(1, keepdims=True)
    return torch.from_numpy(shapes * (grey + colour * (hues - grey))).float()


def write_run(folder: Path, towers: list[Tensor], history: tuple[Validation, ...] = ()) -> Path:
    """A run with one checkpoint, of step 4, that holds only conv1, and another tensor."""
    names = [f"towers.{tower}.conv1.weight" for tower in range(2)] if len(towers) == 2 else ["features.0.weight"]
    files = [f"towers-{tower}.safetensors" for tower in range(2)] if len(towers) == 2 else ["network.safetensors"]
    tensors = {
        file: {name: kernels, f"momentum.{name}": torch.zeros(3)}
        for file, name, kernels in zip(files, names, towers, strict=True)
    }
    return save_checkpoint(folder, RunState(step=4, history=history), tensors, {})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["visualise", *map(str, arguments)])
    monkeypatch.setattr(visualise, "end_on_signals", lambda: None)  # the test process keeps its own way to end
    return visualise.main()


def opened(png: bytes) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_figure_and_the_numbers_are_of_the_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    towers = [noise(48, 0, colour=0.3), noise(48, 1)]
    folder = write_run(tmp_path / "run", towers, (Validation(epoch=2, step=4, loss=1.0, top1=0.5, top5=0.25),))
    out, numbers = tmp_path / "filters.png", tmp_path / "filters.json"
    assert run(monkeypatch, tmp_path / "run", "--out", out, "--json", numbers) == 0

    bare = filters_picture(towers, enlarge=ENLARGE)
    height, width, _ = bare.shape
    assert np.array_equal(opened(out.read_bytes())[TOP : TOP + height, LEFT : LEFT + width], bare)

    printed, said = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0].split() == list(HEADINGS)
    colours = [colour_index(kernels).numpy() for kernels in towers]
    for tower, values in enumerate(colours):
        lower, median, upper = np.percentile(values, [25, 50, 75])
        figures = ["colour", f"{tower}", "48", f"{values.mean():.3f}", f"{median:.3f}", f"{lower:.3f}", "to"]
        assert lines[3 + tower].split()[:8] == [*figures, f"{upper:.3f}"]
    difference = colours[1].mean() - colours[0].mean()
    assert lines[4].split()[8:] == [f"+{difference:.3f}", "0.0002"]
    means = f"{colours[1].mean():.3f} against {colours[0].mean():.3f}"
    assert lines[6] == f"tower 1's kernels are more chromatic: means {means}, p = 0.0002"
    assert lines[5].startswith("no difference found between the towers in orientation: means ")
    assert "p < 0.05" in lines[7] and "9,999 resamples" in lines[7] and "not about other runs" in lines[8]
    assert f"conv1 filters of {folder}, step 4, validation top-1 error 50.00%, top-5 error 25.00% after epoch 2" in said

    record = json.loads(numbers.read_text())
    assert (record["checkpoint"], record["step"], record["test"]["resamples"]) == (str(folder), 4, 9999)
    for kernels, values in zip(towers, record["towers"], strict=True):
        assert [each["colour_index"] for each in values] == colour_index(kernels).tolist()
        assert [each["orientation_index"] for each in values] == orientation_index(kernels).tolist()
    summary = record["summary"]["colour_index"]
    assert summary["claim"] == lines[6] and summary["p_value"] == 0.0002
    assert summary["difference_of_means"] == pytest.approx(difference)
    assert summary["towers"][1]["median"] == pytest.approx(np.median(colours[1]))


def test_every_filter_is_a_point_of_both_plots() -> None:
    towers = [noise(48, 0), noise(48, 1)]
    figure = filters_figure(towers, measure(towers), "a caption")
    assert "a caption" in [text.get_text() for text in figure.texts]
    for axes, kind in zip(figure.axes, KINDS, strict=True):
        for points, kernels in zip(axes.collections, towers, strict=True):
            assert np.asarray(points.get_offsets())[:, 0].tolist() == kind.measure(kernels).tolist()
        colours = {str(points.get_facecolor()) for points in axes.collections}
        assert len(colours) == 2


def test_a_network_of_one_tower_is_drawn_and_measured_but_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = noise(64, 0)
    folder = write_run(tmp_path / "run", [kernels])
    assert [torch.equal(read, kernels) for read in read_kernels(folder)] == [True]
    indexes = measure([kernels])
    assert [(index.difference, index.p) for index in indexes] == [(None, None)] * 2
    assert [row[:3] for row in table_rows(indexes)] == [("orientation", "0", "64"), ("colour", "0", "64")]
    assert not notes(indexes)
    bare = filters_picture([kernels], enlarge=ENLARGE)
    height, width, _ = bare.shape
    assert run(monkeypatch, folder, "--out", tmp_path / "filters.png") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"one tower, nothing to compare in colour: mean {colour_index(kernels).mean():.3f}"
    picture = opened((tmp_path / "filters.png").read_bytes())
    assert np.array_equal(picture[TOP : TOP + height, LEFT : LEFT + width], bare)


def test_kernels_without_an_index_are_counted_and_left_out() -> None:
    sound = [noise(6, 0), noise(6, 1)]
    spoilt = [
        torch.cat([torch.zeros(1, 3, 11, 11), sound[0]]),
        torch.cat([sound[1], torch.full((2, 3, 11, 11), 1e999)]),
    ]
    indexes = measure(spoilt)
    for index, expected in zip(indexes, measure(sound), strict=True):
        assert (index.difference, index.p) == (expected.difference, expected.p)
        assert [summary.mean for summary in index.summaries] == [summary.mean for summary in expected.summaries]
        assert [summary.left_out for summary in index.summaries] == [1, 2]
    assert [line for line in notes(indexes) if "no index" in line] == [
        "1 of tower 0's kernels is all zeros or not finite: no index.",
        "2 of tower 1's kernels are all zeros or not finite: no index.",
    ]
    record = json.loads(json.dumps(as_json(indexes), allow_nan=False))
    assert record["towers"][0][0] == record["towers"][1][7] == {"orientation_index": None, "colour_index": None}
    assert len(record["towers"][0]) == 7 and record["summary"]["colour_index"]["towers"][1]["filters"] == 6


def test_a_network_that_fell_apart_is_drawn_without_any_figure() -> None:
    towers = [torch.full((48, 3, 11, 11), torch.nan)] * 2
    indexes = measure(towers)
    assert figure_png(towers, indexes, "").startswith(b"\x89PNG")
    assert [row[2:] for row in table_rows(indexes)][1] == ("0", "-", "-", "- to -", "-", "-")
    assert "too few kernels to compare the towers in colour" in indexes[1].claim
    json.dumps(as_json(indexes), allow_nan=False)


def test_p_is_the_share_of_all_divisions_with_as_large_a_difference() -> None:
    values = np.random.default_rng(0).normal(size=10)
    values[:5] += 1
    difference, p = compare_means([values[:5], values[5:]])
    assert difference == pytest.approx(values[5:].mean() - values[:5].mean())
    total, found = values.sum(), [values[list(chosen)].sum() for chosen in itertools.combinations(range(10), 5)]
    differences = np.array([2 * each - total for each in found]) / 5  # 252 divisions, fewer than the resamples: all
    assert p == np.mean(np.abs(differences) >= abs(values[5:].mean() - values[:5].mean()) - 1e-12)


@pytest.mark.parametrize(
    ("colours", "claim"),
    [
        ((1.0, 0.3), "tower 0's kernels are more chromatic"),
        ((0.3, 1.0), "tower 1's kernels are more chromatic"),
        ((1.0, 1.0), "no difference found between the towers in colour"),
    ],
)
def test_a_difference_is_found_where_there_is_one(colours: tuple[float, float], claim: str) -> None:
    orientation, colour = measure([noise(48, seed, colour) for seed, colour in enumerate(colours)])
    assert colour.claim.startswith(claim) and orientation.claim.startswith("no difference")
    assert colour.p == compare_means(colour.values)[1]  # the same again: the seed is fixed


@pytest.mark.slow
def test_p_is_below_a_level_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(0)
    found = [compare_means([generator.random(8), generator.random(8)])[1] for _ in range(100)]
    assert np.mean([p is not None and p < 0.2 for p in found]) == pytest.approx(0.2, abs=0.12)  # 3 standard deviations


def test_what_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", [noise(4, 0), noise(4, 1)])
    save_checkpoint(tmp_path / "other", RunState(), {"other.safetensors": {"weight": torch.zeros(1)}}, {})
    out = tmp_path / "out.png"
    wrong: dict[tuple[object, ...], str] = {
        (tmp_path, "--out", out): "holds no sound checkpoint",
        (tmp_path / "other", "--out", out): "expected conv1's; choose another checkpoint",
        (tmp_path / "run", "--out", tmp_path): "give another --out",
        (tmp_path / "run", "--out", tmp_path / "none/out.png"): "give another --out",
        (tmp_path / "run", "--out", out, "--json", tmp_path / "none/out.json"): "give another --json",
        (tmp_path / "run", "--out", out, "--json", out): "expected two files",
    }
    for arguments, message in wrong.items():
        with pytest.raises(InputError, match=message) as error:
            run(monkeypatch, *arguments)
        assert "\n" not in str(error.value) and not out.exists()
