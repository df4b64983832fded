import errno
import fcntl
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from collections import namedtuple
from pathlib import Path
from typing import Any, cast

import numpy as np
import nvidia.dali.fn as fn
import PIL
import pytest
from nvidia.dali.pipeline import Pipeline
from wds2idx import IndexCreator  # DALI's own index writer
from webdataset.compat import WebDataset

from paths import REAL_PICTURES
from pictures import decoded, encoded, photo, tree_bytes, write_tree
from pipeline.command import InputError
from pipeline.manifest import load_dataset, load_mean, load_samples
from pipeline.picture.jpeg import to_jpeg
from pipeline.shard import ShardOptions, main, shard
from processes import wait_until

SIZE = 32
QUALITY = 95


def options(source: Path, out: Path, **changes: Any) -> ShardOptions:
    given: dict[str, Any] = {"size": SIZE, "workers": 1, "shard_samples": 10, "quality": QUALITY, **changes}
    return ShardOptions(source=source, out=str(out), **given)


def command(source: Path, out: Path, *arguments: str) -> list[str]:
    given = [str(source), "--out", str(out), "--size", str(SIZE), "--quality", str(QUALITY), "--shard-samples", "10"]
    return [sys.executable, "-m", "pipeline.shard", *given, *arguments]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 23 pictures to train and 7 to validate, and a file that is no picture."""
    root = tmp_path_factory.mktemp("source")
    write_tree(root, {"train": {"a": 9, "b": 8, "c": 6}, "val": {"a": 3, "b": 2, "c": 2}})
    (root / "train/b/notes.txt").write_text("not a picture")
    return root


@pytest.fixture(scope="module")
def shards(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source sharded in this process."""
    out = tmp_path_factory.mktemp("shards") / "out"
    assert shard(options(source, out)) == 0
    return out


def tars(shards: Path, split: str) -> list[Path]:
    return sorted((shards / split).glob("*.tar"))


def samples_by_tarfile(shards: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """Key -> JPEG bytes and label, by the standard library alone."""
    files: dict[str, bytes] = {}
    for path in tars(shards, split):
        with tarfile.open(path) as tar:
            files |= {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    keys = [name.removesuffix(".jpg") for name in files if name.endswith(".jpg")]
    return {key: (files[f"{key}.jpg"], int(files[f"{key}.cls"])) for key in keys}


# What is written


def test_every_picture_is_there_with_its_label(source: Path, shards: Path) -> None:
    dataset = load_dataset(shards)
    assert [each.id for each in dataset.classes] == ["a", "b", "c"]
    for split, counts in {"train": [9, 8, 6], "val": [3, 2, 2]}.items():
        samples = samples_by_tarfile(shards, split)
        assert dataset.splits[split].samples == len(samples) == sum(counts)
        assert np.bincount([label for _, label in samples.values()]).tolist() == counts
        expected = {
            to_jpeg(path.read_bytes(), SIZE, QUALITY)[0]: label
            for label, name in enumerate("abc")
            for path in (source / split / name).glob("*.JPEG")
        }
        assert dict(samples.values()) == expected


def test_samples_are_shuffled_over_the_shards(shards: Path) -> None:
    labels = [label for _, label in samples_by_tarfile(shards, "train").values()]
    assert labels != sorted(labels)
    keys = list(samples_by_tarfile(shards, "train"))
    assert keys == sorted(keys)
    assert all(len(key) == 8 and key.isdigit() for key in keys)


def test_manifest_names_every_shard_with_size_and_hash(shards: Path) -> None:
    for split, written in load_dataset(shards).splits.items():
        assert [each.name for each in written.shards] == [path.name for path in tars(shards, split)]
        assert sum(each.samples for each in written.shards) == written.samples
        for each in written.shards:
            data = (shards / split / each.name).read_bytes()
            assert (each.bytes, each.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_sample_table_points_at_the_jpeg_bytes(shards: Path) -> None:
    dataset = load_dataset(shards)
    for split, written in dataset.splits.items():
        found = []
        for row in load_samples(shards, dataset, split):
            data = (shards / split / written.shards[row["shard"]].name).read_bytes()
            jpeg = data[row["offset"] : row["offset"] + row["size"]]
            assert zlib.crc32(jpeg) == row["crc32"]
            found.append((jpeg, int(row["label"])))
        assert found == list(samples_by_tarfile(shards, split).values())


def test_index_is_what_dali_would_write(shards: Path, tmp_path: Path) -> None:
    for path in tars(shards, "train"):
        with IndexCreator(str(path), str(tmp_path / "idx"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_bytes() == (tmp_path / "idx").read_bytes()


def test_tars_are_plain_and_carry_no_time_or_owner(shards: Path) -> None:
    for path in tars(shards, "train"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert member.type == tarfile.REGTYPE
                assert not member.pax_headers


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the library leaves its files to the garbage collector
def test_webdataset_reads_the_same(shards: Path) -> None:
    urls = [str(path) for path in tars(shards, "train")]
    read = WebDataset(urls, shardshuffle=False, empty_check=False)
    assert {each["__key__"]: (each["jpg"], int(each["cls"])) for each in read} == samples_by_tarfile(shards, "train")
    gc.collect()


def test_dali_reads_the_same_through_the_index(shards: Path) -> None:
    pipe = Pipeline(batch_size=23, num_threads=1, device_id=None)
    with pipe:
        read = fn.readers.webdataset(
            paths=[str(path) for path in tars(shards, "train")],
            index_paths=[str(path.with_suffix(".idx")) for path in tars(shards, "train")],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        jpegs, labels = cast(list[Any], read)
        pipe.set_outputs(jpegs, labels, fn.decoders.image(jpegs))
    jpegs, labels, pictures = pipe.run()
    read = [(bytes(np.array(jpegs[i])), int(bytes(np.array(labels[i])))) for i in range(23)]
    assert read == list(samples_by_tarfile(shards, "train").values())
    for i, (jpeg, _) in enumerate(read):
        # Two decoders may round differently.
        assert np.abs(np.array(pictures[i]).astype(int) - decoded(jpeg)).max() <= 3


def test_statistics_are_of_the_written_training_pictures(shards: Path) -> None:
    dataset = load_dataset(shards)
    pictures = np.stack([decoded(jpeg) for jpeg, _ in samples_by_tarfile(shards, "train").values()])
    mean = load_mean(shards, dataset)
    np.testing.assert_array_equal(mean, pictures.mean(axis=0).astype(np.float32))
    np.testing.assert_array_equal(decoded((shards / "mean.png").read_bytes()), np.rint(mean))
    pixels = pictures.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(dataset.colour.mean, pixels.mean(axis=0))
    vectors = np.array(dataset.colour.eigenvectors)
    np.testing.assert_allclose(vectors @ np.diag(dataset.colour.eigenvalues) @ vectors.T, np.cov(pixels.T, bias=True))


def test_rejects_are_listed_with_reasons_and_counted(shards: Path) -> None:
    lines = [json.loads(line) for line in (shards / "rejects.jsonl").read_text().splitlines()]
    assert [(line["split"], line["class"], line["name"]) for line in lines] == [("train", "b", "notes.txt")]
    assert "not a picture" in lines[0]["reason"]
    assert load_dataset(shards).rejected == 1


def test_a_class_keeps_its_index_when_all_its_pictures_are_rejected(tmp_path: Path) -> None:
    write_tree(tmp_path / "source", {"train": {"a": 2, "b": 1, "c": 2}})
    (tmp_path / "source/train/b/00.JPEG").write_bytes(b"")
    # One sample a shard: the rejected one's shard would be empty, and is not there.
    shard(options(tmp_path / "source", tmp_path / "out", shard_samples=1))
    dataset = load_dataset(tmp_path / "out")
    assert [each.id for each in dataset.classes] == ["a", "b", "c"]
    samples = load_samples(tmp_path / "out", dataset, "train")
    assert sorted(samples["label"].tolist()) == [0, 0, 2, 2]
    assert samples["shard"].tolist() == [0, 1, 2, 3]
    assert len(tars(tmp_path / "out", "train")) == len(list((tmp_path / "out/train").glob("*.idx"))) == 4


# Reproducible, whatever happens


def test_two_worker_processes_write_the_same_bytes(source: Path, shards: Path, tmp_path: Path) -> None:
    run = subprocess.run(command(source, tmp_path / "out", "--workers", "2"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert tree_bytes(tmp_path / "out") == tree_bytes(shards)
    assert "1 rejected" in run.stdout
    assert run.stderr == ""


def test_another_seed_is_another_order_of_the_same_pictures(source: Path, shards: Path, tmp_path: Path) -> None:
    shard(options(source, tmp_path / "out", seed=1))
    other, first = samples_by_tarfile(tmp_path / "out", "train"), samples_by_tarfile(shards, "train")
    assert list(other.values()) != list(first.values())
    assert sorted(other.values()) == sorted(first.values())


def test_a_finished_data_set_is_left_alone(source: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    assert shard(options(source, shards)) == 0
    assert "already sharded" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == times


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"size": 16}, "size 32 there, 16 here"), ({"seed": 9}, "seed"), ({"quality": 50}, "quality"), ({}, "encoder")],
)
def test_another_data_set_is_not_overwritten(
    source: Path, shards: Path, changes: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named == "encoder":
        monkeypatch.setattr(PIL, "__version__", "1.0")
    before = tree_bytes(shards)
    with pytest.raises(InputError, match=named):
        shard(options(source, shards, **changes))
    assert tree_bytes(shards) == before


def test_a_changed_source_is_another_data_set(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 2}})
    shard(options(root, tmp_path / "out"))
    (root / "train/a/new.JPEG").write_bytes(encoded(photo(99)))
    with pytest.raises(InputError, match="source_sha256"):
        shard(options(root, tmp_path / "out"))


def test_ctrl_c_ends_a_run_without_a_trace(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 60, "b": 60}}, width=512, height=512)
    out = tmp_path / "out"
    arguments = command(root, out, "--workers", "2", "--shard-samples", "1")
    arguments = ["env", "--default-signal=INT", *arguments]  # a shell's background jobs, tests too, ignore it
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        wait_until(lambda: any(out.glob("train/*.tar")), run)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)  # the pipes end only when the workers too are gone
    assert run.returncode == 130
    assert "Traceback" not in errors
    with pytest.raises(InputError, match=r"has no dataset\.json"):
        load_dataset(out)


def test_a_marker_left_by_the_last_moment_is_taken_off(source: Path, shards: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shards, tmp_path / "out"))
    (out / "unfinished").touch()
    assert shard(options(source, out)) == 0
    assert tree_bytes(out) == tree_bytes(shards)


def test_two_runs_do_not_write_one_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out/unfinished", "w") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run"):
            shard(options(source, tmp_path / "out"))


# A validation split where the source has none


def test_without_val_there_is_a_notice_and_no_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 2}})
    shard(options(root, tmp_path / "out"))
    assert "has no val/" in capsys.readouterr().err
    assert list(load_dataset(tmp_path / "out").splits) == ["train"]
    assert not (tmp_path / "out/val").exists()


def test_a_share_held_out_is_disjoint_and_in_every_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 10, "b": 5}})
    shard(options(root, tmp_path / "out", val_fraction=0.2))
    assert capsys.readouterr().err == ""
    train, val = (samples_by_tarfile(tmp_path / "out", split).values() for split in ("train", "val"))
    assert np.bincount([label for _, label in val]).tolist() == [2, 1]
    assert np.bincount([label for _, label in train]).tolist() == [8, 4]
    assert not set(train) & set(val)


# Wrong calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["source", "--size", "5"],
        ["source", "--size", "-1"],
        ["source", "--quality", "101"],
        ["source", "--workers", "0"],
        ["source", "--shard-samples", "-1"],
        ["source", "--val-fraction", "1"],
        ["source", "--val-fraction", "0.01"],
        ["source", "--seed", "-1"],
        ["source", "--out", "source"],
        ["source", "--out", "file"],
        ["source", "--out", "file/below"],
        ["unusable"],
    ],
    ids=" ".join,
)
def test_wrong_calls_are_one_line(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "source", {"train": {"a": 2}})
    write_tree(tmp_path / "unusable", {"train": {"a": 1}})
    (tmp_path / "unusable/train/a/00.JPEG").write_bytes(b"x")
    (tmp_path / "file").touch()
    before = tree_bytes(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shard", *arguments, *([] if "--workers" in arguments else ["--workers", "1"])])
    with pytest.raises(InputError, match="expected") as raised:
        main()
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("dataset.json"))
    assert before.items() <= tree_bytes(tmp_path).items()


def test_a_val_fraction_beside_val_is_a_wrong_call(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has val/"):
        shard(options(source, tmp_path / "out", val_fraction=0.1))


def test_a_folder_with_other_files_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/thesis.txt").write_text("mine")
    run = subprocess.run(command(source, tmp_path, "--workers", "1"), capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert tree_bytes(tmp_path) == {"train/thesis.txt": b"mine"}


def test_no_room_is_seen_before_the_start(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 9999, 9999))
    with pytest.raises(InputError, match=r"has 10\.0 kB free, expected about [0-9.]+ kB more"):
        shard(options(source, tmp_path / "out"))
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_fills_up_midway_is_one_line(source: Path, tmp_path: Path, workers: str) -> None:
    # A limit on a file's size fails a write in the same way; every process of the run inherits it.
    limited = f"ulimit -f 8; trap '' XFSZ; exec {' '.join(command(source, tmp_path / 'out', '--workers', workers))}"
    run = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "out/dataset.json").exists()
    assert not list((tmp_path / "out/train").glob("*.tar"))


def test_a_full_disk_is_called_that(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(sys, "argv", command(source, tmp_path / "out", "--workers", "1")[2:])
    with pytest.raises(InputError, match=r"the disk of .*out is full, expected room"):
        main()
    assert not list(tmp_path.rglob("*.tar"))


def test_an_unreadable_file_stops_the_run(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 2}})
    found = options(root, tmp_path / "out")
    (root / "train/a/01.JPEG").unlink()
    (root / "train/a/01.JPEG").symlink_to("/proc/self/mem")  # opens, and fails to read
    with pytest.raises(InputError, match=r"000000\.tar failed 3 times \(train/a/01\.JPEG cannot be read"):
        shard(found)


# Real pictures


@pytest.mark.skipif(
    not REAL_PICTURES.exists(), reason="the sample of real ImageNet pictures is not beside the repository"
)
def test_real_pictures_are_all_taken(tmp_path: Path) -> None:
    with tarfile.open(REAL_PICTURES) as tar:
        members = [member for member in tar if member.isfile()][:60]
        tar.extractall(tmp_path / "source", members=members, filter="data")
    assert shard(options(tmp_path / "source", tmp_path / "out", size=64)) == 0
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.splits["train"].samples, dataset.rejected) == (60, 0)
    # Natural pictures: one component, brightness, dominates and points the same way in all channels.
    assert dataset.colour.eigenvalues[0] > 5 * dataset.colour.eigenvalues[1]
    assert min(row[0] for row in dataset.colour.eigenvectors) > 0.4


def test_sharding_needs_neither_torch_nor_dali() -> None:
    check = "import sys, pipeline.shard; print({'torch', 'nvidia.dali'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stderr
