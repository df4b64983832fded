"""Pictures of every kind -> what a network sees in them: by the library, and by the command."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import service
import service.predict
from model.views import Views
from picture_files import KINDS, UNUSABLE
from pictures import encoded, photo
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.picture.unusable import UnusablePicture
from pipeline.shard import ShardOptions, shard
from service import load
from service.network.pictures import open_picture
from service.network.trained import Likely, TrainedNetwork

SIDE = 72
Call = Callable[..., int]


@pytest.fixture(scope="module")
def network(towers: Path) -> TrainedNetwork:
    return load(towers, "cpu")


@pytest.fixture(scope="module")
def source(shards: Path) -> Path:
    """The pictures that the shards were made of: val/<class>/NN.JPEG."""
    return shards.parent / "source"


def predict(*arguments: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """The command as a process of its own."""
    words = [sys.executable, "-m", "service.predict", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, input=stdin, timeout=100)


def by_numpy(network: TrainedNetwork, square: NDArray[np.uint8], views: int) -> NDArray[np.float64]:
    """(classes,) probabilities of a (side, side, 3) picture, from the model's logits on, written independently."""
    far, middle = len(square) - network.crop, (len(square) - network.crop) // 2
    places = [(middle, middle)] if views == 1 else [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    crops = [square[top : top + network.crop, left : left + network.crop] for top, left in places]
    crops += [crop[:, ::-1] for crop in crops] if views == 10 else []
    start = (len(network.preprocessing.mean) - network.crop) // 2
    mean = network.preprocessing.mean[start : start + network.crop, start : start + network.crop]
    inputs = (np.stack(crops).astype(np.float64) - mean) / network.config.pixel_std
    with torch.no_grad():
        logits = (
            network.model(torch.from_numpy(inputs.astype(np.float32).transpose(0, 3, 1, 2).copy())).double().numpy()
        )
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).mean(0)


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_are_those_of_the_model_on_the_same_square(network: TrainedNetwork, views: Views) -> None:
    picture = encoded(photo(3, 110, 90))
    (found,) = network.predict([picture], views)
    expected = by_numpy(network, open_picture(picture, network.preprocessing), views)
    assert [each.index for each in found.likeliest] == np.argsort(-expected).tolist()
    # The logits are float32, and their sums are in another order where there are more rows.
    np.testing.assert_allclose([each.probability for each in found.likeliest], -np.sort(-expected), rtol=1e-4)
    assert {each.index: (each.id, each.words) for each in found.likeliest} == {
        each.index: (each.id, each.words) for each in network.classes
    }
    assert found.words == found.likeliest[0].words and found.picture is picture


@pytest.mark.parametrize("size", [SIDE, 0])
def test_a_square_is_what_the_loader_gives_for_the_picture_in_shards(
    network: TrainedNetwork, source: Path, shards: Path, tmp_path: Path, size: int
) -> None:
    if not size:
        shards = tmp_path / "shards"
        assert shard(ShardOptions(source=source, out=str(shards), size=0, workers=1)) == 0
    loader = BatchLoader(DataConfig(shards=shards, crop=size or 256, output="uint8"))
    held = {
        (square.numpy().tobytes(), int(label))
        for batch in loader.pictures("val", range(9), 4)
        for square, label in zip(batch.pictures, batch.labels, strict=True)
    }
    preprocessing = replace(network.preprocessing, size=size, quality=loader.dataset.quality)
    index = {each.id: each.index for each in preprocessing.classes}
    files = sorted((source / "val").rglob("*.JPEG"))
    squares = {(open_picture(path, preprocessing).tobytes(), index[path.parent.name]) for path in files}
    assert squares == held and len(held) == 9


def test_a_path_bytes_an_array_and_a_picture_of_pillows_are_one(network: TrainedNetwork, tmp_path: Path) -> None:
    picture = photo(8, 130, 100)
    picture.save(tmp_path / "a.png")
    pixels = np.asarray(picture)  # which must not be written to
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), pixels, picture]
    found = network.predict(sources, views=10)
    assert len({each.likeliest for each in found}) == 1
    assert all(each.picture is given for each, given in zip(found, sources, strict=True))
    assert network.predict(np.stack([pixels, pixels]))[1].likeliest == network.predict([picture])[0].likeliest


def test_what_is_no_picture_is_said_in_words(network: TrainedNetwork, tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (tmp_path / "none.jpg", "cannot be read"),
        (b"text", "not a picture"),
        (np.zeros((3, 80, 80), np.uint8), r"its array is \(3, 80, 80\) uint8, expected \(height, width, 3\) uint8"),
        (np.zeros((80, 80, 3), np.float32), "float32, expected"),
    ]
    for wrong, message in cases:
        with pytest.raises(UnusablePicture, match=message):
            network.predict([wrong])
    with pytest.raises(TypeError, match="expected several"):
        network.predict("dog.jpg")


def test_many_squares_give_probabilities_and_features(network: TrainedNetwork) -> None:
    squares = np.stack([np.asarray(photo(seed, SIDE, SIDE)) for seed in range(150)])  # more than are computed together
    probabilities, features = network.probabilities(squares), network.features(squares)
    assert probabilities.shape == (150, 3) and probabilities.dtype == torch.float64
    assert features.shape == (150, 64) and features.dtype == torch.float32
    expected = np.stack([by_numpy(network, square, 1) for square in squares[::30]])
    np.testing.assert_allclose(probabilities[::30], expected, rtol=1e-4)
    assert torch.equal(network.probabilities(torch.from_numpy(squares)), probabilities)
    rest = network.model.held()[1].fc8  # type: ignore[union-attr]
    logits = network.logits(torch.from_numpy(squares[:4, 2:-3, 2:-3].copy()))
    torch.testing.assert_close(features[:4] @ rest.weight.T + rest.bias, logits[:, 2:], rtol=1e-4, atol=1e-5)


def test_squares_that_are_none_are_said_in_words(network: TrainedNetwork) -> None:
    none: list[Any] = [np.zeros((72, 72, 3), np.uint8), np.zeros((1, 72, 72, 3), np.float32), torch.zeros(1, 3, 72, 72)]
    for wrong in none:
        with pytest.raises(ValueError, match=r"expected \(B, side, side, 3\)"):
            network.probabilities(wrong)
    with pytest.raises(ValueError, match="at least 67 pixels"):
        network.features(np.zeros((1, 66, 72, 3), np.uint8))


@pytest.mark.parametrize("kind", ["EXIF 3", "EXIF 6", "CMYK", "16 bits", "alpha", "multi-picture"])
def test_odd_files_are_upright_and_rgb(network: TrainedNetwork, kind: str) -> None:
    data, left, right = KINDS[kind]
    square = open_picture(data, network.preprocessing).astype(int)
    assert square.shape == (SIDE, SIDE, 3)
    for columns, colour in ((square[10:-10, :20], left), (square[10:-10, -20:], right)):
        assert np.abs(columns - np.array(colour)).max() <= 12  # JPEG's rounding, and its colours' coarser grid
    network.predict([data])
    if kind == "CMYK":
        as_pillow_has_it = open_picture(Image.open(io.BytesIO(data)), network.preprocessing)
        assert np.abs(as_pillow_has_it - square)[10:-10, :20].mean() <= 12


def test_service_names_load_without_importing_torch() -> None:
    code = "import sys, service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert service.load is load
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        service.save  # type: ignore[attr-defined]  # noqa: B018


def test_the_command_shows_words_json_and_panels(
    network: TrainedNetwork, towers: Path, source: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd\nname.jpg"
    odd.write_bytes(encoded(photo(77, 90, 80)))
    (tmp_path / "bad.jpg").write_bytes(UNUSABLE["half a JPEG"][0])
    out, values = tmp_path / "out.png", tmp_path / "out.json"
    done = predict(
        towers, source / "val", "-", tmp_path / "bad.jpg", odd, "--views", 10, "--json", values, "--out", out,
        stdin=KINDS["CMYK"][0],
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    errors, lines = done.stderr.decode().splitlines(), done.stdout.decode().splitlines()
    assert errors == [f"{tmp_path}/bad.jpg is left out: {errors[0].partition(': ')[2]}", f"{out}: 11 pictures"]
    found = json.loads(values.read_text())
    files = [*sorted((source / "val").rglob("*.JPEG")), Path("-"), odd]
    assert [each["picture"] for each in found] == [str(path) for path in files]
    for entry, path, block in zip(found, files, range(0, len(lines), 4), strict=True):
        true = next((each for each in network.classes if each.id == path.parent.name), None)
        assert entry["true"] == (None if true is None else {"index": true.index, "id": true.id, "words": true.words})
        given = KINDS["CMYK"][0] if path == Path("-") else path
        expected = network.predict([given], 10)[0].likeliest
        assert [Likely(**each) for each in entry["predictions"]] == list(expected)
        shown = "standard input" if path == Path("-") else str(path).replace("\n", "\\n")
        assert lines[block] == shown + (f", truly {true.words}" if true else "")
        for line, likely in zip(lines[block + 1 : block + 4], expected, strict=True):
            assert line.split() == [*["#" * round(24 * likely.probability)][: likely.probability > 1 / 48],
                                    f"{likely.probability:.2%}", likely.words]  # fmt: skip
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_wrong_calls_are_one_line_and_nothing_usable_is_a_fault(
    towers: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    wrong: dict[tuple[Any, ...], tuple[int, str]] = {
        (tmp_path / "text.jpg", "--json", tmp_path / "out.json"): (1, "text.jpg is left out: not a picture"),
        (tmp_path / "none",): (2, "none is not there"),
        (): (2, "no picture is named"),
        ("-", "-"): (2, "named twice"),
        ("-", "--out", tmp_path): (2, "give another --out"),
    }
    for arguments, (status, message) in wrong.items():
        assert call(service.predict.main, towers, *arguments) == status
        written = capfd.readouterr()
        assert message in written.err and len(written.err.splitlines()) == 1 and not written.out
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_only_the_first_pictures_have_panels_and_it_is_said(
    towers: Path, source: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(service.predict, "MOST_PANELS", 3)
    assert call(service.predict.main, towers, source / "val", "--out", tmp_path / "out.png") == 0
    written = capfd.readouterr()
    assert written.err == f"{tmp_path / 'out.png'}: 3 pictures, the first of 9\n"
    assert len(written.out.splitlines()) == 9 * 4


def test_a_reader_that_has_had_enough_ends_it_quietly(towers: Path, source: Path) -> None:
    words = [sys.executable, "-m", "service.predict", str(towers), str(source)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(100) == 141
