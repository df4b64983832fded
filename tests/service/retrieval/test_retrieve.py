"""The command: an index that survives any interruption, and what is found in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from networks import saved_network
from pictures import encoded, photo, write_tree
from pipeline.command import InputError
from pipeline.files import sha256_of
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset
from pipeline.picture import contact_sheet
from pipeline.picture.contact_sheet import GAP, SIDE, tile_place
from pipeline.shard import ShardOptions, shard
from processes import start, wait_until
from service import retrieve
from service.evaluation.evaluate import open_pictures
from service.network.read import load
from service.network.trained import CHUNK_ROWS
from service.retrieval import writing
from service.retrieval.features import FEATURES_FILE, INDEX_FILE, as_float16, open_index
from service.retrieval.writing import PROGRESS_FILE, feature_chunks, write_index

ROWS, WIDTH = 300, 64  # three chunks, the last one short


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ROWS training pictures in two classes, and four of no class."""
    folder = tmp_path_factory.mktemp("many")
    source = write_tree(folder / "source", {"train": {"a": ROWS // 2, "b": ROWS // 2}}, 80, 72)
    (source / "test").mkdir()
    for number in range(4):
        (source / "test" / f"{number}.JPEG").write_bytes(encoded(photo(1000 + number, 80, 80)))
    assert shard(ShardOptions(source=source, out=str(folder / "shards"), size=72, workers=1)) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def network(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_network(tmp_path_factory.mktemp("run"), many)


@pytest.fixture(scope="module")
def index(many: Path, network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished index, by the command as a process of its own."""
    out = tmp_path_factory.mktemp("index") / "train"
    done = subprocess.run(index_command(many, network, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def index_command(shards: Path, checkpoint: Path, out: Path, *options: str) -> list[str]:
    words = [sys.executable, "-m", "service.retrieve", "index", str(checkpoint), "--shards", str(shards)]
    return [*words, "--out", str(out), *options]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command in this process, which keeps its own way to end."""
    monkeypatch.setattr("sys.argv", ["retrieve", *map(str, arguments)])
    monkeypatch.setattr(retrieve, "end_on_signals", lambda: None)
    return retrieve.main()


def make(monkeypatch: pytest.MonkeyPatch, shards: Path, checkpoint: Path, out: Path, *options: str) -> int:
    return run(monkeypatch, *index_command(shards, checkpoint, out, *options)[3:])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_index_holds_the_features_of_every_picture(many: Path, network: Path, index: Path) -> None:
    assert contents(index).keys() == {FEATURES_FILE, INDEX_FILE}
    rows = np.load(index / FEATURES_FILE, mmap_mode="r")
    assert (rows.shape, rows.dtype) == ((ROWS, WIDTH), np.float16)
    trained = load(network, "cpu")
    batches = open_pictures(many, "cpu").pictures("train", range(ROWS), 50)
    expected = torch.cat([trained.features(batch.pictures) for batch in batches]).numpy()
    # float16's rounding is half of 2^-10; sums of other batches differ in the last bits of float32, far less than that.
    np.testing.assert_allclose(rows, expected, rtol=2**-10, atol=1e-6)
    assert np.unique(rows, axis=0).shape == rows.shape  # all pictures differ
    facts = json.loads((index / INDEX_FILE).read_text())
    assert facts["features_sha256"] == sha256_of(index / FEATURES_FILE)
    assert facts["checkpoint_sha256"] == trained.sha256 and facts["checkpoint"] == str(network)
    assert (facts["split"], facts["samples"], facts["width"]) == ("train", ROWS, WIDTH)


@pytest.mark.parametrize("batch_size", ["1", "7"])
def test_the_batch_changes_no_byte(
    many: Path, network: Path, index: Path, batch_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(monkeypatch, many, network, tmp_path / "index", "--batch-size", batch_size) == 0
    assert contents(tmp_path / "index") == contents(index)


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from service.evaluation.evaluate import open_pictures
from service.network.read import load
from service.retrieval.writing import feature_chunks, write_index
from service.retrieve import index_facts

shards, checkpoint, out, rows = sys.argv[1:]
loader, network, done = open_pictures(Path(shards), "cpu"), load(checkpoint, "cpu"), 0

def advance(count, remark="", *, size=0, before=False):
    global done
    done += count
    if done >= int(rows):
        os.kill(os.getpid(), signal.SIGKILL)

facts = index_facts(network, loader, "train")
write_index(Path(out), facts, lambda first: feature_chunks(network, loader, "train", 128, first), advance,
            save_seconds=0)
"""


def killed(shards: Path, checkpoint: Path, out: Path, rows: int) -> None:
    """Index in a process that is killed as soon as so many rows are written, and not yet said to be durable."""
    words = [sys.executable, "-c", KILLED_WHILE_WRITING, *map(str, (shards, checkpoint, out, rows))]
    assert subprocess.run(words, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL


def test_after_a_kill_the_same_command_ends_with_the_same_bytes(
    many: Path, network: Path, index: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    killed(many, network, out, 2 * CHUNK_ROWS)
    assert json.loads((out / PROGRESS_FILE).read_text())["rows"] == CHUNK_ROWS
    with pytest.raises(InputError, match="unfinished"):
        open_index(out)
    with (out / FEATURES_FILE).open("r+b") as features:  # as a pulled plug may leave what was not flushed
        features.seek(-WIDTH, os.SEEK_END)
        features.write(bytes(WIDTH))
    (out / f".{INDEX_FILE}.1234.tmp").write_bytes(b"half")
    seen: list[tuple[int, bool]] = []
    loader, trained = open_pictures(many, "cpu"), load(network, "cpu")
    facts = retrieve.index_facts(trained, loader, "train")

    def advance(count: int, remark: str = "", *, size: int = 0, before: bool = False) -> None:
        seen.append((count, before))

    assert write_index(out, facts, lambda first: feature_chunks(trained, loader, "train", 9, first), advance)
    assert seen == [(CHUNK_ROWS, True), (CHUNK_ROWS, False), (ROWS - 2 * CHUNK_ROWS, False)]
    assert contents(out) == contents(index)


def interrupted(shards: Path, checkpoint: Path, out: Path, rows: int) -> None:
    """Index in this process until so many rows are written, then Ctrl-C."""
    loader, trained, done = open_pictures(shards, "cpu"), load(checkpoint, "cpu"), [0]

    def advance(count: int, remark: str = "", *, size: int = 0, before: bool = False) -> None:
        done.append(done[-1] + count)
        if done[-1] >= rows:
            raise KeyboardInterrupt

    facts = retrieve.index_facts(trained, loader, "train")
    with pytest.raises(KeyboardInterrupt):
        write_index(out, facts, lambda first: feature_chunks(trained, loader, "train", 128, first), advance)


def test_ctrl_c_loses_nothing(
    many: Path, network: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    interrupted(many, network, out, 2 * CHUNK_ROWS)
    assert json.loads((out / PROGRESS_FILE).read_text())["rows"] == 2 * CHUNK_ROWS  # though it was not yet time to save
    interrupted(many, network, out, 0)  # at once
    assert make(monkeypatch, many, network, out) == 0
    assert contents(out) == contents(index)


def test_sigterm_ends_the_command_and_the_next_goes_on(
    many: Path, network: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    process = start(index_command(many, network, out))
    wait_until((out / PROGRESS_FILE).exists, process)
    process.terminate()
    output, _ = process.communicate()
    assert process.returncode in (128 + signal.SIGTERM, 0), output  # 0: it was faster
    assert "Traceback" not in output
    assert make(monkeypatch, many, network, out) == 0
    assert contents(out) == contents(index)


def test_a_damaged_sample_does_not_come_into_an_index(
    many: Path, network: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(many, shards)
    row = np.load(shards / "train/samples.npy")[ROWS - 1]
    tar = shards / "train" / load_dataset(shards).splits["train"].shards[row["shard"]].name
    sound = tar.read_bytes()
    damaged = bytearray(sound)
    damaged[int(row["offset"] + row["size"] // 2)] ^= 1
    tar.write_bytes(damaged)
    with pytest.raises(InputError, match=r"a sample is damaged \(train/.*, byte"):
        make(monkeypatch, shards, network, tmp_path / "index", "--batch-size", "32")
    assert not (tmp_path / "index" / INDEX_FILE).exists()
    tar.write_bytes(sound)
    assert make(monkeypatch, shards, network, tmp_path / "index") == 0
    assert (tmp_path / "index" / FEATURES_FILE).read_bytes() == (index / FEATURES_FILE).read_bytes()


def test_a_finished_index_is_there_already(
    many: Path, network: Path, index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat() for path in index.iterdir()}
    assert make(monkeypatch, many, network, index) == 0
    assert "is there already" in capsys.readouterr().err
    assert {path.name: path.stat() for path in index.iterdir()} == before


def test_another_index_is_refused_and_nothing_changed(
    many: Path, network: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = saved_network(tmp_path / "other", many, seed=1)
    unfinished, foreign = tmp_path / "unfinished", tmp_path / "foreign"
    interrupted(many, network, unfinished, CHUNK_ROWS)
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    calls: list[tuple[Path, Path, list[str], str]] = [
        (index, other, [], "holds a finished index of another checkpoint"),
        (unfinished, other, [], "holds an unfinished index of another checkpoint"),
        (unfinished, network, ["--split", "test"], "holds an unfinished index of another split (train there, test"),
        (foreign, network, [], "holds thesis.txt, expected a new folder"),
        (tmp_path / "file", network, [], "is a file, expected a folder"),
        (tmp_path / "new", network, ["--split", "val"], "has no split val, expected one of: train, test"),
        (tmp_path / "new", network, ["--batch-size", "0"], "batch_size is 0"),
    ]
    for out, checkpoint, options, message in calls:
        before = contents(out) if out.is_dir() else out.exists()
        with pytest.raises(InputError) as error:
            make(monkeypatch, many, checkpoint, out, *options)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert (contents(out) if out.is_dir() else out.exists()) == before


def test_a_disk_without_room_is_one_line(
    many: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 1000))
    with pytest.raises(InputError, match="has 1,000 bytes free, expected 1,087,104 for 300 x 64 features"):
        make(monkeypatch, many, network, tmp_path / "index")


def test_another_process_is_not_disturbed(
    many: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    with writing._locked(out), pytest.raises(InputError, match="another process is writing"):
        make(monkeypatch, many, network, out)


def test_pictures_without_labels_have_an_index_too(
    many: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(monkeypatch, many, network, tmp_path / "test", "--split", "test") == 0
    out, sheet = tmp_path / "found.json", tmp_path / "sheet.png"
    assert run(monkeypatch, "find", tmp_path / "test", "--query", 0, "--k", 9, "--json", out, "--out", sheet) == 0
    (query,) = json.loads(out.read_text())["queries"]
    assert query["label"] is None and [each["label"] for each in query["nearest"]] == [None] * 3
    assert sorted(each["row"] for each in query["nearest"]) == [1, 2, 3]  # fewer than k: itself does not count
    with Image.open(sheet) as picture:
        assert picture.size == tile_place(1, 4, 3, apart=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, 65_536.0, -1e9])
def test_features_beyond_float16_are_one_line(value: float) -> None:
    features = np.zeros((3, 4), np.float32)
    features[1, 2] = value
    with pytest.raises(InputError, match=r"features of train 129 reach"):
        as_float16(features, lambda place: f"train {128 + place}")
    assert as_float16(np.full((1, 1), 65_504, np.float32), str)[0, 0] == 65_504


def expected_rows(index: Path, vector: Any, k: int, own: int = -1) -> list[int]:
    rows = np.load(index / FEATURES_FILE).astype(np.float64)
    squares = ((rows - vector.astype(np.float64)) ** 2).sum(1)
    return [row for row in np.argsort(squares, kind="stable").tolist() if row != own][:k]


@pytest.mark.parametrize("engine", ["auto", "blocks", "faiss"])
def test_find_lists_and_draws_the_nearest(
    many: Path,
    index: Path,
    tmp_path: Path,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SampleStore(many, load_dataset(many), "train")
    jpegs = [bytes(each) for each in store.read(store.locate(np.arange(ROWS)))]
    picture = tmp_path / "b" / "itself.png"  # in a folder that is called as its class
    picture.parent.mkdir()
    shutil.copy(many.parent / "source/train/b/07.JPEG", picture)
    Path("12").write_bytes(picture.read_bytes())  # a file that is called as a row
    (tmp_path / "bad.jpg").write_text("no picture")
    out, sheet = tmp_path / "found.json", tmp_path / "sheet.png"
    words = ["--query", picture, "7", "bad.jpg", "12", "--k", 3, "--engine", engine, "--json", out, "--out", sheet]
    assert run(monkeypatch, "find", index, *words) == 1
    printed = capsys.readouterr()
    assert "bad.jpg is no picture: " in printed.err
    found = json.loads(out.read_text())["queries"]
    assert [(each["query"], each["row"], each["words"]) for each in found] == [
        (str(picture), None, "b"), ("7", 7, "ab"[store.labels[7]]), ("12", None, None),
    ]  # fmt: skip
    nearest = [[each["row"] for each in query["nearest"]] for query in found]
    assert nearest[0] == nearest[2]
    # The picture itself is in the index; it was computed in another chunk, so float16 may have rounded it otherwise.
    first = found[0]["nearest"][0]
    assert first["distance"] < 0.01 * found[0]["nearest"][1]["distance"] and first["words"] == "b"
    rows = np.load(index / FEATURES_FILE)
    assert nearest[1] == expected_rows(index, rows[7], 3, own=7)
    assert [line.split()[:2] for line in printed.out.splitlines()[6:9]] == [
        [str(rank + 1), str(row)] for rank, row in enumerate(nearest[1])
    ]
    with Image.open(sheet) as drawn:
        assert drawn.size == tile_place(3, 4, 3, apart=True)
        for column, row in enumerate([7, *nearest[1]]):
            left, top = tile_place(1, column, 3, apart=True)
            tile = drawn.crop((left, top, left + SIDE, top + SIDE))
            assert np.array_equal(np.asarray(tile), np.asarray(contact_sheet._thumbnail(jpegs[row])))
        # Apart from the others: the rule between them.
        between = np.asarray(drawn.crop((2 * GAP + SIDE, 0, 3 * GAP + SIDE, GAP + 1)))
        assert len(np.unique(between.reshape(-1, 3), axis=0)) == 2


def test_an_index_and_shards_that_have_moved(
    many: Path, network: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, shards = tmp_path / "moved", tmp_path / "shards"
    shutil.copytree(index, moved)
    shutil.copytree(many, shards)
    facts = json.loads((moved / INDEX_FILE).read_text())
    facts |= {"shards": str(tmp_path / "none"), "checkpoint": str(tmp_path / "gone")}
    (moved / INDEX_FILE).write_text(json.dumps(facts))
    picture = many.parent / "source/train/a/00.JPEG"
    other = saved_network(tmp_path / "other", many, seed=1)
    wrong: list[tuple[list[object], str]] = [
        (["--query", 1], "none is not there, expected the shards of"),
        (["--query", picture, "--shards", shards], "gone is not there, expected the checkpoint of"),
        (["--query", picture, "--shards", shards, "--checkpoint", other], "is an index of another checkpoint"),
    ]
    for words, message in wrong:
        with pytest.raises(InputError) as error:
            run(monkeypatch, "find", moved, *words)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert run(monkeypatch, "find", moved, "--query", 1, "--shards", shards) == 0
    assert run(monkeypatch, "find", moved, "--query", picture, "--shards", shards, "--checkpoint", network) == 0


def test_wrong_calls_of_find_are_one_line(
    many: Path, shards: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(change: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(index, folder)
        change(folder)
        return folder

    def replace(folder: Path, array: Any) -> None:
        np.save(folder / FEATURES_FILE, array)

    rows = np.load(index / FEATURES_FILE)
    longer = (index / FEATURES_FILE).read_bytes() + b"\0"
    row: list[object] = ["--query", "1"]
    too_many: list[object] = ["--query", *["1"] * 1001, "--k", "1", "--out", tmp_path / "x.png"]
    calls: list[tuple[Path, list[object], str]] = [
        (index, ["--query", ROWS], f"query {ROWS} is no row of {index}, expected a picture or 0 to {ROWS - 1}"),
        (index, ["--query", "none.jpg"], "none.jpg is not there"),
        (index, [*row, "--k", "0"], "k is 0, expected at least 1"),
        (index, [*row, "--shards", shards], "has another train than"),
        (index, [*row, "--out", tmp_path], "give another --out"),
        (index, too_many, "leave out --out or ask for fewer"),
        (many, row, "is no index, expected one with features.json"),
        (tmp_path / "none", row, "is not a folder, expected an index"),
        (damaged(lambda folder: (folder / INDEX_FILE).unlink()), row, "is unfinished"),
        (damaged(lambda folder: (folder / INDEX_FILE).write_text("{")), row, "features.json is damaged"),
        (damaged(lambda folder: (folder / FEATURES_FILE).write_bytes(longer)), row, f"has {len(longer):,} bytes"),
        (damaged(lambda folder: (folder / FEATURES_FILE).write_bytes(longer[:-2])), row, "features.npy has"),
        (damaged(lambda folder: (folder / FEATURES_FILE).unlink()), row, "features.npy is damaged (No such file"),
        (damaged(lambda folder: replace(folder, rows[1:])), row, "holds 299 x 64 float16, expected 300 x 64"),
        (damaged(lambda folder: replace(folder, rows.astype(np.float32))), row, "holds 300 x 64 float32"),
        (damaged(lambda folder: replace(folder, np.asfortranarray(rows))), row, "column by column"),
    ]  # fmt: skip
    for folder, words, message in calls:
        with pytest.raises(InputError) as error:
            run(monkeypatch, "find", folder, *words)
        assert message in str(error.value) and "\n" not in str(error.value), error.value
    assert not (tmp_path / "x.png").exists()
