"""Whatever a mutation leaves of files is read, or refused in one line; and what fuzzing has found, each by itself."""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fuzz import TARGETS, files_of, fuzz, mutated_json, seed_of
from pipeline.command import InputError
from pipeline.manifest import array_bytes, load_dataset, load_samples
from service.network.read import load

EXECUTIONS = 300  # of each target, in about two seconds
REFUSED_AT_LEAST = {"data set verified": 1}  # which reports faults in place of refusing


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_are_read_or_refused_in_one_line(target: str) -> None:
    found = fuzz(target, EXECUTIONS, seed=0)
    assert not found.findings, found.findings[:3]
    assert found.executions == found.refused + found.read == EXECUTIONS
    assert found.refused >= REFUSED_AT_LEAST.get(target, EXECUTIONS // 4) and found.read >= 3


def test_an_execution_is_repeated_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draws from its own number, whatever was done before."""
    seen: list[dict[str, bytes]] = []

    def note(root: Path, random: Any) -> None:
        seen.append({path.name: path.read_bytes() for path in files_of(root) if path.is_file()})

    target = TARGETS["run compared"]
    monkeypatch.setitem(TARGETS, "run compared", type(target)(target.make, note, target.reseal))
    fuzz("run compared", 6, seed=5)
    fuzz("run compared", 1, seed=5, first=4)
    assert seen[4] == seen[6] and seen[4] != seen[3]


def test_exceptions_slowness_and_lines_too_long_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: readers that do what none may."""

    def endless(root: Path, random: Any) -> None:
        raise InputError("x" * 3000)

    def slow(root: Path, random: Any) -> None:
        while True:
            pass

    def greedy(root: Path, random: Any) -> None:
        np.ones(2**30)

    def broken(root: Path, random: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr("fuzz.SECONDS", 0.1)
    target = TARGETS["run compared"]
    for read, said in ((endless, "no line"), (slow, "longer"), (greedy, "MemoryError"), (broken, "KeyError")):
        monkeypatch.setitem(TARGETS, "run compared", type(target)(target.make, read, target.reseal))
        (finding,) = fuzz("run compared", 1).findings
        assert said in finding


# What was found, and would be again on the code from before. Each names a target and does one thing to its folder.


def put(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Another value of a JSON file."""

    def do(root: Path) -> None:
        values = json.loads((root / name).read_bytes())
        write(root / name, (json.dumps(change(values), indent=1) + "\n").encode())

    return do


def write(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def file(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: write(root / name, data)


def link(name: str, to: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(to)

    return do


def pipe(name: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)

    return do


def listed(name: str, entry: Any = (0, "0" * 64)) -> Callable[[Path], None]:
    return put("manifest.json", lambda values: {**values, "files": {**values["files"], name: entry}})


def line(**record: Any) -> bytes:
    return (json.dumps(record) + "\n").encode()


def appended(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: write(root / name, (root / name).read_bytes() + data)


def pickled(last: torch.Tensor, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    """A file as torchvision's, of its last layer alone."""

    def do(root: Path) -> None:
        torch.save({"classifier.6.weight": last}, root / "w.pth")
        (root / "w.pth.json").unlink()
        if compression != zipfile.ZIP_STORED:
            with zipfile.ZipFile(root / "w.pth") as plain:
                parts = {name: plain.read(name) for name in plain.namelist()}
            with zipfile.ZipFile(root / "w.pth", "w", compression) as squeezed:
                for name, data in parts.items():
                    squeezed.writestr(name, data)

    return do


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def rows(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Another sample table of the training split."""

    def do(root: Path) -> None:
        table = np.array(load_samples(root, load_dataset(root), "train"))
        write(root / "train/samples.npy", array_bytes(change(table)))

    return do


def cell(column: str, value: int) -> Callable[[Path], None]:
    def change(table: Any) -> Any:
        table[column][1] = value
        return table

    return rows(change)


TORCHVISION = {"layout": "torchvision", "lrn": {}}
NULL = b'{"__metadata__":null}'
MEMORY = b'{"a":{"dtype":"memory","shape":[1],"data_offsets":[0,4]}}'
TENSORS = "network.safetensors"
STEP = {"step": 9, "epoch": 2.25, "loss": 1.0, "learning_rate": 0.1, "images_per_second": 1.0}
EVENT = {"step": 2, "epoch": 0.5}

CORPUS: dict[str, list[tuple[Callable[[Path], None], str]]] = {
    "checkpoint": [
        (listed("/dev/zero"), "manifest does not hold"),  # of no bytes, and hashed for ever
        (listed(".."), "manifest does not hold"),
        (file("manifest.json", deep(100_000)), "manifest does not hold"),
        (file("manifest.json", b'{"files": "\xff' + b"x" * 9999), "manifest does not hold"),
        (link("manifest.json", "/dev/zero"), "manifest.json cannot be read"),
        (pipe("manifest.json"), "manifest.json cannot be read"),
        (file("state.json", deep(100_000)), "state is of another kind"),
        (put("state.json", lambda values: None), "state is of another kind"),
        (put("state.json", lambda values: {**values, "step": -1}), "state is of another kind"),
        (put("state.json", lambda values: {**values, "position": 2**70}), "state is of another kind"),
        (put("state.json", lambda values: {**values, "position": "8"}), "state is of another kind"),
        (put("state.json", lambda values: {**values, "unknown": 1}), "state is of another kind"),
        (put("state.json", lambda values: {**values, "history": [1] * 10_000}), "state is of another kind"),
        (put("state.json", lambda values: {**values, "events": [{"kind": "learning-rate", **EVENT}]}), "another kind"),
        (put("state.json", lambda values: {**values, "events": [{"kind": [], **EVENT}]}), "state is of another kind"),
        (put("run.json", lambda values: []), "state is of another kind"),
        (file(TENSORS, b""), "damaged"),
        (file(TENSORS, (2**40).to_bytes(8, "little") + b"{}"), "damaged"),
        (file(TENSORS, save({"conv1.weight": torch.zeros(3)})), "expected"),
        (file(TENSORS, save({"x": torch.zeros(3)})), "lacks"),
        (put("preprocessing.json", lambda values: []), "preprocessing.json is damaged"),
        (put("preprocessing.json", lambda values: {**values, "classes": [{}]}), "preprocessing.json is damaged"),
        (put("preprocessing.json", lambda values: {**values, "size": 10**9}), "preprocessing.json is damaged"),
        (put("preprocessing.json", lambda values: {**values, "pictures": {f"{n}": n for n in range(10**5)}}), "names"),
        (
            put("preprocessing.json", lambda values: {**values, "pictures": {"a\nb": -1}}),
            "preprocessing.json is damaged",
        ),
        (file("mean.npy", array_bytes(np.zeros(7))), "mean.npy is damaged"),
        (file("mean.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "mean.npy is damaged"),
    ],
    "checkpoint forked": [
        (put("run.json", lambda values: optim(values, drop_epochs="abc")), "of another version"),
        (put("run.json", lambda values: optim(values, drop_epochs=[None])), "of another version"),
        (put("run.json", lambda values: optim(values, drop_factor=None)), "of another version"),
        (put("run.json", lambda values: optim(values, unknown=1)), "of another version"),
        (put("run.json", lambda values: {**optim(values, schedule="cosine"), "epochs": 0}), "of another kind"),
        (put("run.json", lambda values: {**values, "model": {**values["model"], "layout": "x" * 10**6}}), "go on as"),
        (put("run.json", lambda values: {**values, "model": {**values["model"], "x" * 10**6: 1}}), "go on as"),
        (
            put(
                "run.json",
                lambda values: {**values, "model": {**values["model"], **dict.fromkeys(map(str, range(1000)), 1)}},
            ),
            r"and [\d,]+ more",
        ),
        (put("run.json", lambda values: {**values, "model": {**values["model"], "a\nb": 1}}), r"model.a\\nb 1 there"),
    ],
    "data set": [
        (file("dataset.json", b'"\xff' + b"x" * 9999), "dataset.json is damaged"),
        (put("dataset.json", lambda values: {**values, "size": -1}), "dataset.json is damaged"),
        (put("dataset.json", lambda values: {**values, "rejected": "1"}), "dataset.json is damaged"),
        (put("dataset.json", lambda values: {**values, "schema_version": "x\n" * 999}), "schema version"),
        (put("dataset.json", lambda values: {**values, "files": {}}), "dataset.json is damaged"),
        (
            put("dataset.json", lambda values: {**values, "files": {**values["files"], "../../mean.npy": "0" * 64}}),
            "dataset.json is damaged",  # a copy of a store's would be written there
        ),
        (put("dataset.json", lambda values: shards(values, name="../../x.tar")), "dataset.json is damaged"),
        (put("dataset.json", lambda values: shards(values, samples=-1)), "dataset.json is damaged"),
        (put("dataset.json", lambda values: shards(values, samples=10**18)), "dataset.json is damaged"),
        (put("dataset.json", lambda values: {**values, "splits": {f"{n}": n for n in range(10**5)}}), "names"),
        (pipe("remote.json"), "remote.json is damaged"),
        (link("remote.json", "remote.json"), "remote.json is damaged"),
        (link("remote.json", "/dev/zero"), "remote.json is damaged"),
        (pipe("train/000000.tar"), "cannot be read"),
        (link("train/000000.tar", "/dev/zero"), "cannot be read"),
        (rows(lambda table: table[:-1]), "samples.npy is damaged"),
        (rows(lambda table: np.zeros(len(table))), "samples.npy is damaged"),
        (rows(lambda table: table[:, None]), "samples.npy is damaged"),
        (file("train/samples.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "samples.npy is damaged"),
        (cell("shard", 9), "row 1, shard 9"),
        (cell("offset", 2**64 - 1), "row 1, offset"),
        (cell("offset", 0), "row 1, offset"),
        (cell("size", 2**32 - 1), "row 1, offset"),
        (cell("label", 3), "row 1, label 3"),
        (cell("label", -2), "row 1, label -2"),
        (file("mean.npy", array_bytes(np.zeros((2, 2, 3), np.float32))), "mean.npy is damaged"),
    ],
    "run compared": [
        (file("log.jsonl", deep(100_000) + b"\n" + line(**STEP)), "log.jsonl is damaged"),
        (file("log.jsonl", line(**{**STEP, "step": float("inf")})), "log.jsonl is damaged"),
        (file("log.jsonl", line(**{**STEP, "epoch": float("nan")})), "log.jsonl is damaged"),
        (file("log.jsonl", b" " * 2**21 + line(**STEP)), "bytes in one"),
        (appended("log.jsonl", line(validation=True, epoch="x", step=1, loss=1, top1=1, top5=1)), "log.jsonl is dam"),
        (appended("log.jsonl", line(evaluation=True, top1=10**400)), "log.jsonl is damaged"),
        (appended("events.jsonl", line(step=1, epoch=1.0)), "events.jsonl is damaged"),
        (appended("events.jsonl", line(kind="stop", step=1)), "events.jsonl is damaged"),
        (appended("events.jsonl", line(kind="stop", step=1, epoch=10**400)), "events.jsonl is damaged"),
        (appended("events.jsonl", line(kind="skip", **EVENT)), "events.jsonl is damaged"),
        (appended("events.jsonl", line(kind="learning-rate", **EVENT, manual=True)), "events.jsonl is damaged"),
        (file("run.json", deep(100_000)), ""),
        (pipe("run.json"), ""),
    ],
    "weights": [
        (lambda root: exported(root, classes=[]), "another version"),
        (file("w.safetensors", len(NULL).to_bytes(8, "little") + NULL), "has no classifier.6.weight"),
        (lambda root: exported(root, crop=67, model={"layout": "towers", "fc_width": 2**22, "lrn": {}}), "holds"),
        (lambda root: exported(root, crop=67, model={"layout": "towers", "fc_width": 2**62, "lrn": {}}), "no network"),
        (lambda root: exported(root, crop=0), "another version"),
        (lambda root: exported(root, crop=65535), "another version"),
        (file("w.safetensors", len(MEMORY).to_bytes(8, "little") + MEMORY + bytes(4)), "damaged"),
        (
            lambda root: exported(root, size=65535, model={"layout": "torchvision", "lrn": {}}, alone=True),
            "at most 4096",
        ),
        (lambda root: exported(root, step=-1), "another version"),
        (lambda root: exported(root, classes=[{"index": "0", "id": 1, "words": None}]), "another version"),
    ],
    "pickled weights": [
        (pickled(torch.zeros(1).expand(10**9, 2)), "no plain tensor"),  # of four bytes
        (pickled(torch.zeros(2, 2).to_sparse()), "no plain tensor"),
        (pickled(torch.zeros(2, 2, device="meta")), "no plain tensor"),
        (pickled(torch.zeros(2 * 10**6, 1)), "2,000,000 classes"),
        (pickled(torch.zeros(0, 1)), "0 classes"),
        (pickled(torch.zeros(2000, 1000), zipfile.ZIP_DEFLATED), "compressed"),
        (file("w.pth", b"\x80\x02X" + (2**32 - 1).to_bytes(4, "little") + b"a"), "holds no weights"),  # 4 GB of words
    ],
}


def optim(values: Any, **changes: Any) -> Any:
    return {**values, "optim": {**values["optim"], **changes}}


def shards(values: Any, **changes: Any) -> Any:
    values["splits"]["train"]["shards"][0] |= changes
    return values


def exported(root: Path, *, alone: bool = False, **changes: Any) -> None:
    """The exported file with other facts; or these alone, without tensors."""
    path = root / "w.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["alexnet-trainer"])
    header["__metadata__"]["alexnet-trainer"] = json.dumps({**facts, **changes})
    text = json.dumps({"__metadata__": header["__metadata__"]} if alone else header).encode()
    write(path, len(text).to_bytes(8, "little") + text + (b"" if alone else data[8 + length :]))


@pytest.mark.parametrize(
    ("target", "number"), [(target, number) for target, cases in CORPUS.items() for number in range(len(cases))]
)
def test_what_was_found(target: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fuzzer, which is told what to do instead of drawing it: with its bounds of time and memory."""
    change, said = CORPUS[target][number]
    refused: list[str] = []
    chosen = TARGETS[target]

    def read(root: Path, random: Any) -> None:
        try:
            chosen.read(root, random)
        except InputError as error:
            refused.append(str(error))
            raise

    def mutate(root: Path, random: Any, reseal: Callable[[Path], None]) -> None:
        change(root)
        if not (root / "manifest.json").is_fifo() and not (root / "dataset.json").is_fifo():
            try:
                reseal(root)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                pass

    monkeypatch.setitem(TARGETS, target, type(chosen)(chosen.make, read, chosen.reseal))
    monkeypatch.setattr("fuzz.mutate", mutate)
    found = fuzz(target, 1)
    assert not found.findings
    assert bool(refused) == bool(said)
    if said:
        assert re.search(said, refused[0]), refused[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [("run.json", {"model": 3}), ("run.json", {"data": []}), ("preprocessing.json", {"classes": []})],
)
def test_a_network_of_a_checkpoint_of_another_kind(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """What only who builds the network sees, found after some hundred thousand executions."""
    copy = tmp_path / "copy"
    shutil.copytree(seed_of("checkpoint"), copy)
    put(name, lambda values: {**values, **changes})(copy)
    TARGETS["checkpoint"].reseal(copy)
    with pytest.raises(InputError, match=f"another version|{name} is damaged"):
        load(copy, "cpu")


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    """A cache of a hub is made of them; what they lead to is held against its hash."""
    copy = tmp_path / "copy"
    shutil.copytree(seed_of("checkpoint"), copy)
    for path in files_of(copy):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    TARGETS["checkpoint"].read(copy, Random(0))


def test_json_that_is_mutated_differs() -> None:
    data = json.dumps({"a": [1, 2, {"b": None}], "c": "d"}).encode()
    assert sum(mutated_json(data, Random(seed)) != data for seed in range(50)) > 40
