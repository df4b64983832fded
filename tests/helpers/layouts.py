"""The same few pictures in every form that ImageNet comes in, for tests: plain functions that write below a folder."""

import io
import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

# split -> class -> name -> bytes; the class of a picture without one is "".
Pictures = dict[str, dict[str, dict[str, bytes]]]

WORDS = {"n01440764": "tench, Tinca tinca", "n02007558": "flamingo", "n02012849": "crane", "n03126707": "crane"}
# As in the real kits, these follow no order of the synsets.
ILSVRC_IDS = {"n01440764": 3, "n02007558": 1, "n02012849": 4, "n03126707": 2}
INNER_NODES = {"n00001740": 5, "n01503061": 6}
_VAL_CLASSES = ("n03126707", "n01440764", "n02012849", "n01440764", "n02007558", "n03126707", "n02007558")
_FIELDS = ("WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")


def some_pictures(year: str = "2012") -> Pictures:
    """A few files of unlike bytes and sizes, named as ILSVRC's are; they are not pictures within."""
    train = {id: {f"{id}_{9 + place * 7}.JPEG": _bytes(id, place) for place in range(4)} for id in WORDS}
    val: dict[str, dict[str, bytes]] = {id: {} for id in WORDS}
    for number, id in enumerate(_VAL_CLASSES, start=1):
        val[id][f"ILSVRC{year}_val_{number:08d}.JPEG"] = _bytes("val", number)
    test = {f"ILSVRC{year}_test_{number:08d}.JPEG": _bytes("test", number) for number in range(1, 6)}
    return {"train": train, "val": val, "test": {"": test}}


def _bytes(seed: str, number: int) -> bytes:
    return f"{seed} {number} ".encode() * (3 * number + len(seed))


def flat(classes: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """The pictures of a split without their classes."""
    return {name: data for pictures in classes.values() for name, data in pictures.items()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files, whose names may be paths; `folder`."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_of(files: Mapping[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar with these members, in this order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def class_tars(classes: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """A tar for each class, by the name of its file."""
    return {f"{id}.tar": tar_of(pictures) for id, pictures in classes.items()}


@cache  # scipy writes the time into it
def meta_mat(year: str = "2012") -> bytes:
    """`meta.mat` with the fields of the real one: its leaves in a mixed order, and nodes above them."""
    leaves = [(id, wnid, 0) for wnid, id in ILSVRC_IDS.items()]
    nodes = [(id, wnid, 2) for wnid, id in INNER_NODES.items()]
    rows = [nodes[0], *leaves[::-1], nodes[1]]
    table = np.empty((len(rows), 1), [(name, object) for name in (f"ILSVRC{year}_ID", *_FIELDS)])
    for place, (id, wnid, children) in enumerate(rows):
        below: Any = np.array([1, 2], np.uint16)[:children] if children else np.array([], np.uint16)
        words = WORDS.get(wnid, "entity")
        table[place, 0] = (np.uint16(id), wnid, words, "what it is", np.uint8(children), below, np.uint8(3), 4)
    stream = io.BytesIO()
    savemat(stream, {"synsets": table}, do_compression=True)
    return stream.getvalue()


def ground_truth(classes: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """Line k is the ILSVRC id of picture k."""
    by_name = {name: ILSVRC_IDS[id] for id, pictures in classes.items() for name in pictures}
    return "".join(f"{by_name[name]}\n" for name in sorted(by_name)).encode()


def kit(pictures: Pictures, year: str = "2012") -> dict[str, bytes]:
    """The files of a development kit, below its folder."""
    truth = f"data/ILSVRC{year}_validation_ground_truth.txt"
    return {"readme.txt": b"ILSVRC", "data/meta.mat": meta_mat(year), truth: ground_truth(pictures["val"])}


def kit_archive(pictures: Pictures, year: str = "2012") -> dict[str, bytes]:
    """A development kit as it is downloaded: one file, by its name."""
    folder, name = {
        "2012": ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz"),
        "2010": ("devkit-1.0", "ILSVRC2010_devkit-1.0.tar.gz"),
    }[year]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path, data in kit(pictures, year).items():
            info = tarfile.TarInfo(f"{folder}/{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return {name: stream.getvalue()}


def mapping() -> bytes:
    """`LOC_synset_mapping.txt`, and Caffe's `synset_words.txt`."""
    return "".join(f"{id} {words}\n" for id, words in WORDS.items()).encode()


def solution(classes: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """`LOC_val_solution.csv`, which is in no order and boxes some pictures more than once."""
    rows = [f"{Path(name).stem},{id} 85 1 499 272 {id} 1 2 3 4 \n" for id, named in classes.items() for name in named]
    return "".join(["ImageId,PredictionString\n", *rows]).encode()


def _class_folders(folder: Path, classes: Mapping[str, Mapping[str, bytes]]) -> None:
    for id, pictures in classes.items():
        (folder / id).mkdir(parents=True, exist_ok=True)
        write_files(folder / id, pictures)


def class_folders(root: Path, pictures: Pictures) -> Path:
    """What the usual unpacking script makes, and words beside."""
    for split, classes in pictures.items():
        _class_folders(root / split, classes)
    return write_files(root, {"synset_words.txt": mapping()})


def _kaggle(root: Path, pictures: Pictures) -> Path:
    base = root / "ILSVRC/Data/CLS-LOC"
    _class_folders(base / "train", pictures["train"])
    write_files(base / "val", flat(pictures["val"]))
    write_files(base / "test", flat(pictures["test"]))
    write_files(root / "ILSVRC", {"ImageSets/CLS-LOC/val.txt": b"", "Annotations/CLS-LOC/val/x.xml": b""})
    return write_files(root, {"LOC_val_solution.csv": solution(pictures["val"]), "LOC_synset_mapping.txt": mapping()})


def kaggle(root: Path, pictures: Pictures) -> Path:
    """Kaggle's tree, from the folder that holds ILSVRC/."""
    return _kaggle(root, pictures)


def kaggle_ilsvrc(root: Path, pictures: Pictures) -> Path:
    """Kaggle's tree, from ILSVRC/ itself."""
    return _kaggle(root, pictures) / "ILSVRC"


def kaggle_cls_loc(root: Path, pictures: Pictures) -> Path:
    """Kaggle's tree, from the folder that holds the splits."""
    return _kaggle(root, pictures) / "ILSVRC/Data/CLS-LOC"


def flat_val_and_kit(root: Path, pictures: Pictures) -> Path:
    """Train unpacked, val and test as their archives unpack, and the kit unpacked."""
    _class_folders(root / "train", pictures["train"])
    write_files(root / "val", flat(pictures["val"]))
    write_files(root / "test", flat(pictures["test"]))
    write_files(root / "ILSVRC2012_devkit_t12", kit(pictures))
    return root


def flat_val_and_kit_archive(root: Path, pictures: Pictures) -> Path:
    """The same, with the kit as it is downloaded; train's inner archives are not unpacked."""
    write_files(root / "train", class_tars(pictures["train"]))
    write_files(root / "val", flat(pictures["val"]))
    write_files(root / "test", flat(pictures["test"]))
    return write_files(root, kit_archive(pictures))


def archives(root: Path, pictures: Pictures) -> Path:
    """As downloaded: train's members are reversed, val's wrapped in "./", test's in a folder."""
    train = dict(reversed(class_tars(pictures["train"]).items()))
    val = {f"./{name}": data for name, data in flat(pictures["val"]).items()}
    test = {f"test/{name}": data for name, data in flat(pictures["test"]).items()}
    files = {
        "ILSVRC2012_img_train.tar": tar_of(train),
        "ILSVRC2012_img_val.tar": tar_of(val),
        "ILSVRC2012_img_test_v10102019.tar": tar_of(test),
    }
    return write_files(root, files | kit_archive(pictures) | {"ILSVRC2012_img_train_t3.tar": b"another task's"})


def train_archive(root: Path, pictures: Pictures) -> Path:
    """As downloaded, and the train archive itself is the source."""
    return archives(root, pictures) / "ILSVRC2012_img_train.tar"


def folder_and_archives(root: Path, pictures: Pictures) -> Path:
    """Train unpacked, half of it into folders; val sorted into classes; test not unpacked."""
    halves = list(pictures["train"].items())
    _class_folders(root / "train", dict(halves[:2]))
    write_files(root / "train", class_tars(dict(halves[2:])))
    _class_folders(root / "val", pictures["val"])
    files = {"ILSVRC2012_img_test.tar": tar_of(flat(pictures["test"])), "LOC_synset_mapping.txt": mapping()}
    return write_files(root, files)


# Each with the same train, val and test, and with words.
LAYOUTS: dict[str, Callable[[Path, Pictures], Path]] = {
    function.__name__: function
    for function in (
        class_folders,
        kaggle,
        kaggle_ilsvrc,
        kaggle_cls_loc,
        flat_val_and_kit,
        flat_val_and_kit_archive,
        archives,
        train_archive,
        folder_and_archives,
    )
}


def archives_2010(root: Path, pictures: Pictures) -> Path:
    """2010's archives, kit, and the labels of its test set, which were published later."""
    files = {
        "ILSVRC2010_images_train.tar": tar_of(class_tars(pictures["train"])),
        "ILSVRC2010_images_val.tar": tar_of({f"val/{name}": data for name, data in flat(pictures["val"]).items()}),
        "ILSVRC2010_images_test.tar": tar_of({f"test/{name}": data for name, data in flat(pictures["test"]).items()}),
        "ILSVRC2010_test_ground_truth.txt": ground_truth(pictures["test"]),
    }
    return write_files(root, files | kit_archive(pictures, "2010"))


def image_folder(root: Path, pictures: Pictures) -> Path:
    """Train's class folders alone, without a train/ above them."""
    _class_folders(root, pictures["train"])
    return root


def class_archives(root: Path, pictures: Pictures) -> Path:
    """A tar for each class and nothing else, as ImageNet-21k's `winter21_whole/`."""
    return write_files(root / "winter21_whole", class_tars(pictures["train"]))


def tar_of_tars(root: Path, pictures: Pictures) -> Path:
    """All classes' tars in one tar, as ImageNet-21k's `fall11_whole.tar`, given as the file."""
    return tar_of_tars_folder(root, pictures) / "fall11_whole.tar"


def tar_of_tars_folder(root: Path, pictures: Pictures) -> Path:
    """The same, given as the folder that it lies in."""
    return write_files(root, {"fall11_whole.tar": tar_of(class_tars(pictures["train"])), "words.txt": b"n1\tentity"})


def wrapped_tar_of_tars(root: Path, pictures: Pictures) -> Path:
    """The same, wrapped in a folder of the archive's name, which says that it is compressed where it is not."""
    tars = {f"winter21_whole/{name}": data for name, data in class_tars(pictures["train"]).items()}
    return write_files(root, {"winter21_whole.tar.gz": tar_of(tars)}) / "winter21_whole.tar.gz"


# Each with the same train, and nothing else.
TRAIN_ALONE: dict[str, Callable[[Path, Pictures], Path]] = {
    function.__name__: function
    for function in (image_folder, class_archives, tar_of_tars, tar_of_tars_folder, wrapped_tar_of_tars)
}
