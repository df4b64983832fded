"""The network of a run, a checkpoint or an exported file, ready to be used."""

import io
import json
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from model.alexnet import TORCHVISION_MEAN, ModelConfig
from model.layers.lrn import LRNConfig
from model.network import make_network
from pipeline.command import InputError
from pipeline.files import sha256_of
from pipeline.foreign import MOST_JSON, Count, checked, checked_whole, parse_json, read_regular
from pipeline.load.batch_loader import choose_device
from pipeline.load.graph import FULL_SIDE, square_side
from pipeline.manifest import DATASET_FILE, PictureClass, load_dataset, pictures_sha256
from service.network.trained import TrainedNetwork
from service.run.checkpoint import (
    Checkpoint,
    check_tensor,
    find_checkpoint,
    identity_of,
    read_tensor_file,
    read_weights,
    tensor_header,
)
from service.run.preprocessing import (
    MOST_CLASSES,
    Preprocessing,
    preprocessing_from,
    preprocessing_of,
    read_preprocessing,
)

METADATA: Final = "alexnet-trainer"  # the key of our metadata in exported files
MEAN: Final = "mean"  # the tensor with the mean picture there
WEIGHTS_SHA256: Final = "weights_sha256"  # in a file of metadata: which weights it is of
TORCHVISION_CROP: Final = 224
MOST_CROP: Final = 4096  # pixels, of which the first fully connected layer alone would take 70 GB
TORCHVISION_LAST: Final = "classifier.6.weight"
DEVICES: Final = {"cpu": "cpu", "gpu": "cuda"}


@dataclass
class _Crop:
    crop: Annotated[Count, Field(ge=1, le=MOST_CROP)]


def load(path: str | Path, device: Literal["auto", "cpu", "gpu"] = "auto") -> TrainedNetwork:
    """The network of a run's folder (its newest sound checkpoint), a checkpoint's, or a file.

    A file is a .safetensors or .pth that service.export wrote, or weights of torchvision's AlexNet in either form.
    InputError where it is none of these or damaged. device: auto is the GPU where there is one.
    """
    path, place = Path(path), torch.device(DEVICES[choose_device(device)])
    return _from_file(path, place) if path.is_file() else from_checkpoint(find_checkpoint(path), place)


def from_checkpoint(checkpoint: Checkpoint, device: torch.device) -> TrainedNetwork:
    """The network of a verified checkpoint."""
    run = checkpoint.run
    try:
        config, crop = model_config(run["model"]), checked(_Crop, run["data"]).crop
        preprocessing = read_preprocessing(checkpoint.path) or _from_shards(checkpoint)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{checkpoint.path} is of another version ({error!r:.300}), expected one of this; train again"
        ) from error
    return assemble(
        checkpoint.path,
        identity_of(checkpoint.path),
        config,
        crop,
        preprocessing,
        read_weights(checkpoint.path),
        device,
        dataset_sha256=run.get("dataset_sha256", ""),
        step=checkpoint.state.step,
    )


def _from_shards(checkpoint: Checkpoint) -> Preprocessing:
    """For a checkpoint of an earlier version, which does not hold it: from the shards, if they are where they were."""
    shards = Path(checkpoint.run["data"]["shards"])
    where = f"{checkpoint.path} was written by an earlier version, expected its shards at {shards}"
    if not (shards / DATASET_FILE).is_file():
        raise InputError(f"{where}; bring them back, or save it anew by resuming the run")
    dataset = load_dataset(shards)
    if pictures_sha256(dataset) != checkpoint.run["dataset_sha256"]:
        raise InputError(f"{where}, found another data set; bring them back")
    return preprocessing_of(dataset, shards)


def model_config(values: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of a run.json, in float32; what an earlier version did not know has its default."""
    given = {**checked(dict[str, Any], values), "precision": "float32"}
    return checked_whole(ModelConfig, {**given, "lrn": checked_whole(LRNConfig, given["lrn"])})


def assemble(
    path: Path,
    sha256: str,
    config: ModelConfig,
    crop: int,
    preprocessing: Preprocessing,
    weights: dict[str, Tensor],
    device: torch.device,
    *,
    dataset_sha256: str = "",
    step: int | None = None,
) -> TrainedNetwork:
    """A network with these weights; InputError where their names or shapes are not the network's."""
    classes = len(preprocessing.classes)
    if crop > preprocessing.side:
        raise InputError(
            f"{path} takes crops of {crop} pixels, expected at most {preprocessing.side}, its pictures' side"
        )
    try:
        with torch.device("meta"):  # first its shapes alone: a file may ask for a network of any size
            check_weights(path, make_network(config, classes=classes, crop=crop, seed=0), weights)
        model = make_network(config, classes=classes, crop=crop, seed=0)
    except (ValueError, TypeError, ArithmeticError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no network that can be built: {reason}") from error
    load_weights(path, model, weights)
    return TrainedNetwork(
        path=path,
        sha256=sha256,
        model=model.eval().requires_grad_(False).to(device),
        preprocessing=preprocessing,
        crop=crop,
        mean=torch.from_numpy(preprocessing.mean_crop(crop, config.layout)).float().to(device),
        dataset_sha256=dataset_sha256,
        step=step,
    )


def check_weights(path: Path, model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """InputError where names or shapes of weights are not the model's."""
    held = dict(model.named_parameters())
    for name in sorted(held.keys() | weights.keys()):
        check_tensor(path, name, weights.get(name), held.get(name))


@torch.no_grad()
def load_weights(path: Path, model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model; InputError where names or shapes are not the model's."""
    check_weights(path, model, weights)
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])


def _from_file(path: Path, device: torch.device) -> TrainedNetwork:
    weights, facts = read_file(path, path.suffix)
    return from_parts(path, weights, facts, device)


def read_file(path: Path, suffix: str) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file of weights, by name, and what is known of them as JSON; suffix: the file's kind."""
    if suffix == ".safetensors":
        weights, metadata = _read_safetensors(path)
        return weights, metadata.get(METADATA)
    if suffix in (".pth", ".pt"):
        return _read_pickle(path), _facts_beside(path)
    raise InputError(f"{path} is no checkpoint, expected a run, a checkpoint, .safetensors or .pth; give another one")


def from_parts(path: Path, weights: dict[str, Tensor], facts: str | None, device: torch.device) -> TrainedNetwork:
    """The network of weights that `path` holds; without facts it is torchvision's own."""
    return _from_torchvision(path, weights, device) if facts is None else _from_exported(path, weights, facts, device)


def facts_file(weights: Path) -> Path:
    """The file beside exported weights that says what they need, where theirs has no room for it."""
    return weights.with_name(f"{weights.name}.json")


def _facts_beside(path: Path) -> str | None:
    """What stands beside weights as JSON; None where there is nothing, as with torchvision's own."""
    beside = facts_file(path)
    if not beside.is_file():
        return None
    try:
        text = read_regular(beside, MOST_JSON).decode()
        sha256 = parse_json(text)[WEIGHTS_SHA256]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{beside} is damaged ({error!r:.300}), expected JSON of service.export; export again"
        ) from error
    if sha256 != sha256_of(path):
        raise InputError(f"{beside} was written with other weights than {path} holds; export again, or remove it")
    return text


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = read_tensor_file(path, lambda name: True)  # which also finds what is damaged
    return tensors, json.loads(tensor_header(path)).get("__metadata__") or {}


class _NoLongerThanFile(io.BufferedReader):
    """A file that is asked for no more than it has left: Python takes the memory for all that is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(size)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    remedy = "give a state dict as torchvision's AlexNet_Weights download it"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # not torch's: read it or not
            if zipfile.is_zipfile(path):  # which torch does not compress, and which may hold a thousand times its size
                with zipfile.ZipFile(path) as parts:
                    if sum(part.file_size for part in parts.infolist()) > path.stat().st_size:
                        raise ValueError("it is compressed")
            with _NoLongerThanFile(open(path, "rb", buffering=0)) as file:
                weights = torch.load(file, map_location="cpu", weights_only=True)  # which unpickles nothing but tensors
    except MemoryError:
        raise  # this machine's fault, not the file's
    except Exception as error:  # it raises a dozen unrelated types on damaged data
        reason = " ".join(str(error).partition("\n")[0].split()) or type(error).__name__
        raise InputError(f"{path} holds no weights ({reason}), expected tensors alone; {remedy}") from error
    if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise InputError(f"{path} holds {type(weights).__name__}, expected tensors by name; {remedy}")
    for name, each in weights.items():
        # A view may show one number a billion times; other kinds of tensors cannot be copied into a network.
        plain = each.layout is torch.strided and each.device.type == "cpu"
        if not isinstance(name, str) or not plain or each.nbytes > each.untyped_storage().nbytes():
            raise InputError(f"{path} holds no plain tensor as {name!r:.100}, expected those alone; {remedy}")
    return {name: each.detach() for name, each in weights.items()}


def _from_exported(path: Path, weights: dict[str, Tensor], metadata: str, device: torch.device) -> TrainedNetwork:
    try:
        facts = parse_json(metadata)
        config, crop = model_config(facts["model"]), checked(_Crop, facts).crop
        preprocessing = preprocessing_from(facts, _mean_picture(facts, weights, config))
        dataset_sha256, step = str(facts["dataset_sha256"]), checked(Count | None, facts.get("step"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is of another version ({error!r:.300}), expected one of this; export it again"
        ) from error
    return assemble(
        path, sha256_of(path), config, crop, preprocessing, weights, device, dataset_sha256=dataset_sha256, step=step
    )


def _mean_picture(facts: dict[str, Any], weights: dict[str, Tensor], config: ModelConfig) -> NDArray[np.float32]:
    """The mean picture, taken out of the weights."""
    side = square_side(checked(Count, facts["size"]))
    if MEAN not in weights and config.layout == "torchvision":  # as torchvision itself takes them
        if side > MOST_CROP:
            raise ValueError(f"pictures have {side} pixels a side, expected at most {MOST_CROP}")
        return torchvision_mean(side)
    mean = weights[MEAN]
    if mean.shape != (side, side, 3) or mean.dtype != torch.float32 or int(facts["crop"]) > side:
        raise ValueError(f"mean is {tuple(mean.shape)} {mean.dtype} for a size of {side} and a crop of {facts['crop']}")
    return weights.pop(MEAN).numpy().copy()  # the file is mapped into memory, and must not be needed later


def _from_torchvision(path: Path, weights: dict[str, Tensor], device: torch.device) -> TrainedNetwork:
    last = weights.get(TORCHVISION_LAST)
    if last is None or last.dim() != 2:
        raise InputError(f"{path} has no {TORCHVISION_LAST}, expected the weights of torchvision's AlexNet; give those")
    classes, width = last.shape
    if not 0 < classes <= MOST_CLASSES:
        raise InputError(f"{path} has {classes:,} classes, expected 1 to {MOST_CLASSES:,}; give another")
    try:
        config = ModelConfig(layout="torchvision", fc_width=width)
    except ValueError as error:
        raise InputError(f"{path} holds no network that can be built: {error}") from error
    return assemble(
        path, sha256_of(path), config, TORCHVISION_CROP, torchvision_preprocessing(classes), weights, device
    )


def torchvision_preprocessing(classes: int) -> Preprocessing:
    """How torchvision prepares pictures for its AlexNet: shorter side 256, centre 224; what the file lacks is numbered.

    Source: torchvision.transforms._presets.ImageClassification, as AlexNet_Weights.IMAGENET1K_V1 has it.
    """
    return Preprocessing(
        size=FULL_SIDE,
        quality=0,
        classes=tuple(PictureClass(index=index, id="", words=f"class {index}") for index in range(classes)),
        mean=torchvision_mean(FULL_SIDE),
    )


def torchvision_mean(side: int) -> NDArray[np.float32]:
    """(side, side, 3): the colour that torchvision takes off a picture."""
    return np.full((side, side, 3), TORCHVISION_MEAN, np.float32)
