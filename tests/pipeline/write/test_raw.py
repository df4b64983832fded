"""Raw squares: the pixels that the JPEG shards of the same options decode to, in files that others read too."""

import gc
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import nvidia.dali.fn as fn
import pytest
from nvidia.dali.pipeline import Pipeline
from wds2idx import IndexCreator  # DALI's own index writer
from webdataset.compat import WebDataset

from pictures import decoded, encoded, photo, tree_bytes, write_tree
from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.manifest import Dataset, encode_dataset, load_dataset, load_samples, pictures_sha256
from pipeline.picture.jpeg import encoder_version
from pipeline.picture.raw import HEADER_BYTES, npy_bytes, npy_header, npy_square, to_npy
from pipeline.shard import ShardOptions, shard
from pipeline.source.ilsvrc import find_pictures
from pipeline.write.plan import ShardingPlan, jpeg_maker, shard_tasks
from pipeline.write.record import is_shard_done, read_record
from pipeline.write.shard import ShardTask, write_shard
from sharding import finished

SIZE = 32
CACHE_LINE = 64  # bytes


def options(source: Path, out: Path, **changes: Any) -> ShardOptions:
    given: dict[str, Any] = {"size": SIZE, "workers": 1, "shard_samples": 5, "store": "raw", **changes}
    return ShardOptions(source=source, out=str(out), **given)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in all splits, those to test without labels, of other sizes and kinds; and what is no picture."""
    root = write_tree(tmp_path_factory.mktemp("source"), {"train": {"a": 7, "b": 6}, "val": {"a": 2, "b": 2}})
    (root / "train/b/notes.txt").write_text("not a picture")
    (root / "train/a/grey.JPEG").write_bytes(encoded(photo(90, 61, 40).convert("L"), quality=90))
    (root / "test").mkdir()
    for number in range(3):
        (root / f"test/{number}.JPEG").write_bytes(encoded(photo(70 + number), quality=90))
    return root


@pytest.fixture(scope="module")
def raw(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "out"
    assert shard(options(source, out)) == 0
    return out


@pytest.fixture(scope="module")
def jpeg(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jpeg") / "out"
    assert shard(options(source, out, store="jpeg")) == 0
    return out


def files(shards: Path, split: str) -> dict[str, bytes]:
    """Name -> bytes of all files in a split's tars, by the standard library alone."""
    found: dict[str, bytes] = {}
    for path in sorted((shards / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    return found


# One file


@pytest.mark.parametrize("side", [8, 99, 256, 1000])
def test_the_file_of_a_square_is_what_numpy_writes(side: int) -> None:
    square = np.zeros((side, side, 3), np.uint8)
    square[-1, :, 1] = 7
    stream = io.BytesIO()
    np.lib.format.write_array(stream, square, version=(1, 0))
    assert to_npy(square) == stream.getvalue()
    assert npy_bytes(side) == len(stream.getvalue()) and len(npy_header(side)) == HEADER_BYTES
    view = npy_square(np.frombuffer(stream.getvalue(), np.uint8), side)
    np.testing.assert_array_equal(view, square)
    assert view.base is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        to_npy(np.zeros((SIZE, SIZE, 3), np.uint8))[:-1],
        to_npy(np.zeros((SIZE, SIZE, 3), np.uint8)) + b"\0",
        to_npy(np.zeros((SIZE // 2, SIZE // 2, 3), np.uint8)),
        to_npy(np.zeros((SIZE, SIZE, 3), np.uint8)).replace(b"|u1", b"|i1"),
        encoded(photo(1, SIZE, SIZE)),
    ],
)
def test_what_is_no_such_square_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=f"expected .*{SIZE} x {SIZE}"):
        npy_square(data, SIZE)


# The data set


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_raw_squares_are_what_the_jpegs_decode_to(raw: Path, jpeg: Path, split: str) -> None:
    squares, jpegs = files(raw, split), files(jpeg, split)
    assert [name.replace(".npy", ".jpg") for name in squares] == list(jpegs)
    for name, data in squares.items():
        if name.endswith(".npy"):
            np.testing.assert_array_equal(np.load(io.BytesIO(data)), decoded(jpegs[name.replace(".npy", ".jpg")]))
        else:
            assert data == jpegs[name]


def test_all_that_is_of_the_pictures_is_the_same(raw: Path, jpeg: Path) -> None:
    """Mean, colours, rejects, contact sheet, classes and order; the storage alone differs."""
    squares, jpegs = load_dataset(raw), load_dataset(jpeg)
    for name in ("mean.npy", "mean.png", "rejects.jsonl", "contact-sheet.png"):
        assert (raw / name).read_bytes() == (jpeg / name).read_bytes()
    assert squares.rejected == jpegs.rejected == 1
    stored = {"store": "jpeg", "jpeg_sha256": "", "splits": jpegs.splits, "files": jpegs.files}
    assert replace(squares, **stored) == jpegs
    for split in squares.splits:
        table, other = (load_samples(*each, split) for each in ((raw, squares), (jpeg, jpegs)))
        assert table["label"].tolist() == other["label"].tolist()
        assert table["shard"].tolist() == other["shard"].tolist()


def test_runs_know_both_by_the_hash_of_one(raw: Path, jpeg: Path) -> None:
    """Of the JPEGs' dataset.json, which runs of earlier versions have recorded."""
    recorded = hashlib.sha256((jpeg / "dataset.json").read_bytes()).hexdigest()
    assert pictures_sha256(load_dataset(raw)) == pictures_sha256(load_dataset(jpeg)) == recorded


def test_a_data_set_of_jpegs_does_not_mention_the_store(raw: Path, jpeg: Path) -> None:
    assert json.loads((raw / "dataset.json").read_text())["store"] == "raw"
    assert not {"store", "jpeg_sha256"} & json.loads((jpeg / "dataset.json").read_text()).keys()


def test_pixels_begin_where_a_cache_line_does(raw: Path) -> None:
    """In the tar, and so in memory, where it is mapped from a page's start."""
    dataset = load_dataset(raw)
    offsets = np.concatenate([load_samples(raw, dataset, split)["offset"] for split in dataset.splits])
    assert not ((offsets + np.uint64(HEADER_BYTES)) % CACHE_LINE).any()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the library leaves its files to the garbage collector
def test_webdataset_decodes_it(raw: Path) -> None:
    urls = [str(path) for path in sorted((raw / "train").glob("*.tar"))]
    read = list(cast(Any, WebDataset(urls, shardshuffle=False, empty_check=False).decode()))
    by_hand = files(raw, "train")
    assert len(read) == load_dataset(raw).splits["train"].samples
    for each in read:
        np.testing.assert_array_equal(each["npy"], np.load(io.BytesIO(by_hand[f"{each['__key__']}.npy"])))
        assert each["cls"] == int(by_hand[f"{each['__key__']}.cls"])
    gc.collect()


def test_dali_reads_and_decodes_it_through_its_index(raw: Path, tmp_path: Path) -> None:
    tars = [str(path) for path in sorted((raw / "train").glob("*.tar"))]
    for path in tars:
        with IndexCreator(path, str(tmp_path / "idx"), verbose=False) as creator:
            creator.create_index()
        assert Path(path).with_suffix(".idx").read_bytes() == (tmp_path / "idx").read_bytes()
    samples = load_dataset(raw).splits["train"].samples
    pipe = Pipeline(batch_size=samples, num_threads=1, device_id=None)
    with pipe:
        read = fn.readers.webdataset(
            paths=tars,
            index_paths=[path.replace(".tar", ".idx") for path in tars],
            ext=["npy", "cls"],
            missing_component_behavior="error",
        )
        squares, _ = cast(list[Any], read)
        pipe.set_outputs(fn.decoders.numpy(squares))
    (pictures,) = pipe.run()
    by_hand = [np.load(io.BytesIO(data)) for name, data in files(raw, "train").items() if name.endswith(".npy")]
    assert len(by_hand) == samples
    for number, square in enumerate(by_hand):
        np.testing.assert_array_equal(np.array(pictures[number]), square)


# Sharding


def test_two_workers_write_the_same_bytes(source: Path, raw: Path, tmp_path: Path) -> None:
    assert shard(options(source, tmp_path / "out", workers=2)) == 0
    assert tree_bytes(tmp_path / "out") == tree_bytes(raw)


def test_an_object_store_gets_the_same_bytes(source: Path, raw: Path, bucket: str) -> None:
    assert shard(replace(options(source, raw), out=f"{bucket}/raw")) == 0
    folder = folder_at(f"{bucket}/raw")
    assert {name: folder.read(name) for name in folder.sizes()} == tree_bytes(raw)


def test_an_interrupted_run_goes_on(
    source: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the shards that are made, and what is known of them as JPEGs."""

    def interrupted(*_: Any) -> Dataset:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pipeline.shard.write_dataset", interrupted)
        shard(options(source, tmp_path / "out"))
    assert len(finished(tmp_path / "out")) == sum(len(each.shards) for each in load_dataset(raw).splits.values())
    assert shard(options(source, tmp_path / "out")) == 0
    assert "were done by an earlier run" in capsys.readouterr().out
    assert tree_bytes(tmp_path / "out") == tree_bytes(raw)


def test_a_record_keeps_what_the_shard_is_as_jpegs(source: Path, jpeg: Path, tmp_path: Path) -> None:
    def first_task(**changes: Any) -> ShardTask:
        plan = ShardingPlan(**{"size": SIZE, "quality": 92, "seed": 0, "shard_samples": 5, "store": "raw", **changes})
        return next(shard_tasks(plan, find_pictures(source), str(tmp_path), encoder_version(), False))

    task = first_task()
    assert task.digest() != first_task(store="jpeg").digest()
    assert not write_shard(task) and write_shard(task)
    folder = folder_at(tmp_path)
    made = read_record(folder, task.name)
    assert is_shard_done(folder, task.name, task.digest()) and not is_shard_done(folder, task.name, "other")
    assert made.twin and made.twin.shard == load_dataset(jpeg).splits["train"].shards[0]
    expected = load_samples(jpeg, load_dataset(jpeg), "train")[: made.twin.shard.samples]
    np.testing.assert_array_equal(made.twin.rows, expected)


def test_one_store_is_not_the_other(source: Path, raw: Path, jpeg: Path) -> None:
    with pytest.raises(InputError, match="store jpeg there, raw here"):
        shard(options(source, jpeg))
    with pytest.raises(InputError, match="store raw there, jpeg here"):
        shard(options(source, raw, store="jpeg"))


def test_what_an_earlier_version_began_goes_on_as_jpegs(source: Path, tmp_path: Path) -> None:
    """Its marker does not name the store."""
    out = tmp_path / "out"
    assert shard(options(source, out, store="jpeg")) == 0
    fields = json.loads((out / "dataset.json").read_text())
    names = ("encoder", "size", "quality", "seed", "shard_samples", "val_fraction", "source_sha256")
    (out / "dataset.json").unlink()
    (out / "unfinished").write_text(json.dumps({name: fields[name] for name in names}))
    with pytest.raises(InputError, match="store jpeg there, raw here"):
        shard(options(source, out))
    assert shard(options(source, out, store="jpeg")) == 0


def test_the_room_is_said_before_it_starts(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.shard.free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match=r"has 1\.0 kB free, expected about"):
        shard(options(source, tmp_path / "out"))
    said = capsys.readouterr().out
    assert "--store raw: the data set will take about " in said
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_raw_needs_one_size(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--size is 0, expected 8 to 4096 pixels, which --store raw needs"):
        options(source, tmp_path, size=0)


def test_a_picture_that_changes_before_the_contact_sheet_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = encoded(photo(1, SIZE, SIZE))
    monkeypatch.setattr("pipeline.shard.jpeg_maker", lambda *_: lambda _: other)
    with pytest.raises(InputError, match="has changed since it was sharded"):
        shard(options(source, tmp_path / "out"))
    monkeypatch.undo()
    made = jpeg_maker(ShardingPlan(size=SIZE, quality=92, seed=0, shard_samples=5, store="raw"), find_pictures(source))
    monkeypatch.setattr("pipeline.write.plan.read_picture", lambda *_: b"")
    with pytest.raises(InputError, match="the file is empty, but was read before"):
        made(0)
    assert not (tmp_path / "out/dataset.json").exists()


def test_another_store_is_no_data_set(raw: Path, tmp_path: Path) -> None:
    dataset = replace(load_dataset(raw), store=cast(Any, "webp"))
    (tmp_path / "dataset.json").write_bytes(encode_dataset(dataset))
    with pytest.raises(InputError, match=r"store: .* not 'webp'"):
        load_dataset(tmp_path)
