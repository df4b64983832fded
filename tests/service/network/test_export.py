"""Networks as files for other programs, used as those would; torchvision's weights; and files that are none."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import service.export
from model.alexnet import ModelConfig
from model.torchvision import TorchvisionAlexNet
from pictures import photo
from pipeline.command import InputError
from service import load
from service.network import export as exporting
from service.network.export import TOLERANCE, difference, export, made_pictures, plain_torchvision
from service.network.read import MEAN, METADATA
from service.network.trained import TrainedNetwork

Call = Callable[..., int]
SaveRun = Callable[..., Path]
CROP = 67
FACTS = {"model", "crop", "size", "quality", "classes", "dataset_sha256", "rgb_mean", "pixel_std", "step",
         "source_sha256"}  # fmt: skip


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """torchvision's models."""
    # A wheel for CUDA has operators that do not load beside a torch for the CPU, and registering their shapes fails
    # there. No network needs them.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    return pytest.importorskip("torchvision.models.alexnet")


def photos(count: int, side: int = CROP) -> NDArray[np.uint8]:
    return np.stack([np.asarray(photo(seed, side, side)) for seed in range(count)])


def logits(network: TrainedNetwork, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return network.logits(torch.from_numpy(pictures)).numpy()


def pixels(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As the graphs take them: (B, 3, side, side) RGB on 0..255."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)


def is_near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())


def check_facts(facts: dict[str, Any], network: TrainedNetwork, *more: str) -> None:
    """What a file says beside its tensors is what a program needs that prepares pictures for it."""
    assert facts.keys() == FACTS | set(more)
    assert (facts["crop"], facts["size"], facts["step"], facts["source_sha256"]) == (67, 72, 3, network.sha256)
    assert [each["id"] for each in facts["classes"]] == ["a", "b", "c"]
    np.testing.assert_allclose(facts["rgb_mean"], network.mean.numpy().mean((0, 1), np.float64), rtol=1e-12)
    assert facts["pixel_std"] == list(network.config.channel_std)


@pytest.mark.parametrize("run", ["towers", "one_tower", "cifar"])
def test_safetensors_are_the_network_bit_for_bit(
    run: str, request: pytest.FixtureRequest, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = request.getfixturevalue(run), tmp_path / "network.safetensors"
    capfd.readouterr()  # what making the run said, where this test is the first to ask for it
    out.write_bytes(b"what was there before")
    assert call(service.export.main, folder, "--format", "safetensors", "--out", out) == 0
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].endswith("its logits of 100 made pictures are equal")
    first, again = load(folder, "cpu"), load(out, "cpu")
    assert np.array_equal(logits(first, photos(9)), logits(again, photos(9)))
    assert first.predict([photo(99)], views=10)[0].likeliest == again.predict([photo(99)], views=10)[0].likeliest
    assert (first.classes, first.crop, first.step, first.dataset_sha256) == (
        again.classes, again.crop, again.step, again.dataset_sha256
    )  # fmt: skip
    with safe_open(out, "np") as file:
        assert set(file.keys()) == {MEAN, *dict(first.model.named_parameters())}
        assert np.array_equal(file.get_tensor(MEAN), first.preprocessing.mean)
        check_facts(json.loads(file.metadata()[METADATA]), first)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "run", [*(pytest.param(run, marks=pytest.mark.slow) for run in ("towers", "cifar", "cifar_averaged")), "one_tower"]
)
def test_onnx_takes_pixels_in_onnxruntime(
    run: str, request: pytest.FixtureRequest, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = request.getfixturevalue(run), tmp_path / "network.onnx"
    capfd.readouterr()  # what making the run said, where this test is the first to ask for it
    assert call(service.export.main, folder, "--format", "onnx", "--out", out) == 0
    said = capfd.readouterr()
    assert len(said.err.splitlines()) == 1 and "its logits of 100 made pictures" in said.err and not said.out
    assert list(tmp_path.iterdir()) == [out]  # no weights beside it
    network, model = load(folder, "cpu"), onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    check_facts(json.loads({each.key: each.value for each in model.metadata_props}[METADATA]), network)
    (batch, *rest) = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param == "batch" and [each.dim_value for each in rest] == [3, CROP, CROP]
    assert not [text for node in model.graph.node for text in node.metadata_props if ".py" in text.value]  # our paths
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for count in (1, 2, 9):
        found = np.asarray(session.run(["logits"], {"pictures": pixels(photos(count))})[0])
        assert found.shape == (count, 3) and is_near(found, logits(network, photos(count)))


@pytest.mark.parametrize(
    "run",
    [*(pytest.param(run, marks=pytest.mark.slow) for run in ("towers", "cifar", "cifar_averaged")), "one_tower"],
)
def test_torch_export_takes_pixels_in_torch_alone(run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    network, out = load(request.getfixturevalue(run), "cpu"), tmp_path / "network.pt2"
    assert export(network, "torch-export", out).relative <= TOLERANCE
    extra = {"metadata.json": ""}
    program = torch.export.load(out, extra_files=extra)
    check_facts(json.loads(extra["metadata.json"]), network)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [each for each in calls if each.startswith("alexnet")]  # an operator that another program does not have
    for count in (1, 2, 9):
        found = program.module()(torch.from_numpy(pixels(photos(count))))
        assert is_near(found.numpy(), logits(network, photos(count)))


SMALL: Any = {"fc_width": 64, "init": "he", "pixel_std": 58.0}
# Together they have each way in which one network of the paper's differs from another.
VARIANTS = {
    "one column": ModelConfig(**SMALL, columns=1, without="conv4"),
    "no talk": ModelConfig(**SMALL, talk=False, activation="logistic", pool_size=2),
    "without": ModelConfig(**SMALL, without="conv5", conv6=True, inverted_dropout=False),
    "batch norm": ModelConfig(**SMALL, batch_norm=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_network_are_written_and_read_as_they_are(
    variant: str, save_run: SaveRun, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = save_run(tmp_path / "run", VARIANTS[variant]), tmp_path / "network.safetensors"
    assert call(service.export.main, folder, "--format", "safetensors", "--out", out) == 0
    assert capfd.readouterr().err.endswith("its logits of 100 made pictures are equal\n")
    first, again = load(folder, "cpu"), load(out, "cpu")
    assert again.config == first.config and again.config.columns == VARIANTS[variant].columns
    assert np.array_equal(logits(first, photos(2)), logits(again, photos(2)))
    assert call(service.export.main, folder, "--format", "torchvision", "--out", tmp_path / "a.pth") == 2
    assert "has layout towers, expected torchvision: its AlexNet cannot hold it" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_network_as_graphs_are_the_network(variant: str, save_run: SaveRun, tmp_path: Path) -> None:
    network = load(save_run(tmp_path / "run", VARIANTS[variant]), "cpu")
    assert export(network, "torch-export", tmp_path / "a.pt2").relative <= TOLERANCE
    assert export(network, "onnx", tmp_path / "a.onnx").relative <= TOLERANCE


def normalised(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """As torchvision takes them."""
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.from_numpy(pixels(pictures)) / 255 - mean) / std


def test_weights_go_from_torchvisions_alexnet_to_ours_and_back(
    peer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    theirs = peer.alexnet(num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    ours = load(tmp_path / "alexnet.pth", "cpu")
    pictures = photos(3, 224)
    with torch.no_grad():
        expected = theirs(normalised(pictures)).numpy()
    assert is_near(logits(ours, pictures), expected)  # the pixels are rounded otherwise
    (found,) = ours.predict([photo(3, 300, 280)])
    assert found.words == f"class {found.likeliest[0].index}" and len(found.likeliest) == 5

    monkeypatch.setattr(exporting, "PICTURES", 2)  # what is asserted here does not need a hundred
    export(ours, "torchvision", tmp_path / "again.pth")
    with torch.device("meta"):  # shapes alone, which take no time to draw
        again = peer.alexnet(num_classes=5).eval()
    again.load_state_dict(torch.load(tmp_path / "again.pth", weights_only=True), strict=True, assign=True)
    with torch.no_grad():
        assert np.array_equal(again(normalised(pictures)).numpy(), expected)


def test_what_is_exported_for_torchvision_is_ours_to_load_with_all_that_was_known(
    one_tower: Path, tmp_path: Path, call: Call
) -> None:
    pickled, safe = tmp_path / "alexnet.pth", tmp_path / "alexnet.safetensors"
    for file in (pickled, safe):
        assert call(service.export.main, one_tower, "--format", "torchvision", "--out", file) == 0
    first, weights, held = load(one_tower, "cpu"), torch.load(pickled, weights_only=True), load_file(safe)
    assert weights.keys() == held.keys() == dict(first.model.named_parameters()).keys()
    assert all(torch.equal(weights[name], held[name]) for name in held)
    check_facts(json.loads((tmp_path / "alexnet.pth.json").read_text()), first, "weights_sha256")
    for file in (pickled, safe):
        again = load(file, "cpu")
        assert np.array_equal(logits(first, photos(4)), logits(again, photos(4)))
        assert (first.classes, first.crop, first.preprocessing.size) == (
            again.classes, again.crop, again.preprocessing.size
        )  # fmt: skip
    torch.save({name: weight + 1 for name, weight in weights.items()}, pickled)  # beside which the JSON is wrong
    with pytest.raises(InputError, match=r"alexnet.pth.json was written with other weights"):
        load(pickled)


class Code:
    """What a pickle would call when it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code of a pickle",)


def test_files_that_are_no_weights_are_one_line(
    one_tower: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = load(one_tower, "cpu")
    safe, unsafe = tmp_path / "a.safetensors", tmp_path / "a.pth"
    export(network, "safetensors", safe)
    export(network, "torchvision", unsafe)
    beside = tmp_path / "a.pth.json"
    whole, pickled, facts = safe.read_bytes(), unsafe.read_bytes(), beside.read_text()
    weights = {name: weight.clone() for name, weight in load_file(safe).items()}  # the file will be written over

    def metadata(**changes: Any) -> dict[str, str]:
        return {METADATA: json.dumps({**json.loads(facts), **changes})}

    def save_as(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
        save_file(tensors, safe, metadata)
        return safe

    def written(path: Path, data: bytes) -> Path:
        path.write_bytes(data)
        return path

    def saved(value: Any) -> Path:
        beside.unlink(missing_ok=True)
        torch.save(value, unsafe)
        return unsafe

    cases: list[tuple[Callable[[], Path], str]] = [
        (lambda: written(safe, whole[:-1000]), "is damaged"),
        (lambda: written(safe, b"no header"), "is damaged"),
        (lambda: written(beside, b"{}"), "is damaged"),
        (lambda: written(unsafe, pickled[:-1000]), "holds no weights"),
        (lambda: saved([1, 2]), "holds list, expected tensors by name"),
        (lambda: saved({"features.0.weight": torch.zeros(1)}), "has no classifier.6.weight"),
        (lambda: saved({"classifier.6.weight": torch.zeros(3, 5)}), "can be built: fc_width is 5"),
        (lambda: saved({"classifier.6.weight": torch.zeros(3, 64)}), "holds nothing as classifier.1.bias"),
        (lambda: saved(weights), r"holds \(72, 72, 3\) as mean, expected nothing"),
        (lambda: saved(Code()), "holds no weights"),
        (lambda: written(unsafe, pickle.dumps(Code())), "holds no weights"),
        (lambda: save_as({**weights, "features.3.bias": torch.zeros(5)}, metadata()), r"\(5,\) as features.3.bias"),
        (lambda: save_as({**weights, MEAN: torch.zeros(9, 9, 3)}, metadata()), "is of another version"),
        (lambda: save_as(weights, metadata(crop=73)), "is of another version"),
        (lambda: save_as(weights, metadata(crop=20)), "holds no network that can be built: crop is 20"),
        (lambda: save_as(weights, metadata(model=[])), "is of another version"),
        (lambda: save_as(weights, metadata(classes=[{}])), "is of another version"),
        (lambda: save_as(weights, {METADATA: "nonsense"}), "is of another version"),
        (lambda: written(tmp_path / "a.txt", b"text"), "is no checkpoint"),
    ]  # fmt: skip
    for make, message in cases:
        path = make()
        with pytest.raises(InputError, match=message) as error:
            load(unsafe if path == beside else path)
        assert "\n" not in str(error.value)
    assert "code of a pickle" not in capfd.readouterr().out  # which is what it would have printed


def test_what_cannot_be_exported_is_one_line_and_no_file(
    towers: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    wrong: dict[tuple[str, str], str] = {
        ("torchvision", "a.pth"): "has layout towers, expected torchvision: its AlexNet cannot hold it; use --format",
        ("onnx", "a.pt2"): "expected a name that ends in .onnx for onnx; give another --out",
        ("torchvision", "a.pt2"): "expected a name that ends in .pth or .safetensors",
        ("onnx", "folder.onnx"): "expected a file",
        ("torch-export", "none/a.pt2"): "expected a file in a folder that is there",
    }
    for (format, name), message in wrong.items():
        assert call(service.export.main, towers, "--format", format, "--out", tmp_path / name) == 2
        said = capfd.readouterr().err
        assert message in said and len(said.splitlines()) == 1
    monkeypatch.setattr(exporting, "ONNX_PACKAGES", ("onnx", "a_package_that_is_not_there"))
    assert call(service.export.main, towers, "--format", "onnx", "--out", tmp_path / "a.onnx") == 2
    assert "needs a_package_that_is_not_there, expected the extra onnx" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.onnx"]


def test_a_file_that_computes_something_else_does_not_take_its_name(
    one_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, out = load(one_tower, "cpu"), tmp_path / "a.pt2"
    out.write_bytes(b"what was there before")
    monkeypatch.setattr(exporting, "_pool", lambda: torch.nn.MaxPool2d(3, 2, padding=1))
    monkeypatch.setattr(exporting, "map_side", lambda crop: 2)
    with pytest.raises(InputError, match=r"as torch-export the logits of .* differ by .* no file is written"):
        export(network, "torch-export", out)
    assert out.read_bytes() == b"what was there before" and list(tmp_path.iterdir()) == [out]
    nothing = difference(network, lambda pictures: torch.full((len(pictures), 3), torch.nan))
    assert not nothing.relative <= TOLERANCE


def test_made_pictures_are_the_same_every_time_and_all_different() -> None:
    pictures = made_pictures(63)
    assert pictures.shape == (100, 63, 63, 3) and np.array_equal(pictures, made_pictures(63))
    assert len({each.tobytes() for each in pictures}) == 100


@pytest.mark.parametrize(("activation", "crop"), [("relu", 67), ("tanh", 127), ("logistic", 67), ("relu", 224)])
def test_torchvisions_network_in_plain_operators_is_the_network(activation: Any, crop: int) -> None:
    config = ModelConfig(layout="torchvision", fc_width=64, init="he", activation=activation)
    model = TorchvisionAlexNet(config, classes=4, crop=crop).double()
    x = torch.randn(2, 3, crop, crop, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(plain_torchvision(model)(x), model(x), rtol=1e-10, atol=1e-10)
