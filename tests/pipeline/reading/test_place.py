"""The small files of a data set in a store, and which data sets a cache has."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from odd_store import OddStore, odd_url
from pipeline.command import InputError
from pipeline.load.config import DataConfig
from pipeline.load.storage import SampleStore
from pipeline.manifest import encode_dataset, load_dataset, load_mean
from pipeline.reading import fetch
from pipeline.reading.place import default_cache, open_place, remote_place


def test_paths_stay_what_they_are_and_a_file_url_is_one(root: Path, tmp_path: Path) -> None:
    assert open_place("a/b") == Path("a/b") == open_place(Path("a/b"))
    assert open_place(f"file://{root}", tmp_path) == root and not list(tmp_path.iterdir())
    assert remote_place(root) is None


def test_a_path_that_was_a_url_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected the URL as text: 's3://bucket/set'"):
        DataConfig(shards=Path("s3://bucket/set"))
    assert DataConfig(shards=Path("/a/b")).shards == Path("/a/b")


def test_small_files_are_copied_and_copied_again_where_they_are_damaged(root: Path, tmp_path: Path) -> None:
    folder = open_place(odd_url(root), tmp_path)
    dataset = load_dataset(folder)
    assert dataset == load_dataset(root)
    assert np.array_equal(load_mean(folder, dataset), load_mean(root, dataset))
    assert {path.suffix for path in folder.rglob("*.tar")} == set()
    (folder / "train/samples.npy").write_bytes(b"")
    (folder / "mean.npy").unlink()
    assert open_place(odd_url(root), tmp_path) == folder
    assert len(SampleStore(folder, dataset, "train")) == 150 and (folder / "mean.npy").is_file()


def test_another_data_set_at_the_same_place_has_a_cache_of_its_own(root: Path, tmp_path: Path) -> None:
    place = shutil.copytree(root, tmp_path / "place")
    first = open_place(odd_url(place), tmp_path / "cache")
    dataset = load_dataset(place)
    (place / "dataset.json").write_bytes(encode_dataset(replace(dataset, seed=dataset.seed + 1)))
    second = open_place(odd_url(place), tmp_path / "cache")
    assert first != second and load_dataset(second).seed == load_dataset(first).seed + 1
    (place / "dataset.json").write_bytes(encode_dataset(dataset))
    assert open_place(odd_url(place), tmp_path / "cache") == first


@pytest.mark.parametrize("name", ["train/samples.npy", "mean.npy"])
def test_small_files_that_stay_wrong_are_named(root: Path, tmp_path: Path, name: str) -> None:
    place = shutil.copytree(root, tmp_path / "place")
    (place / name).write_bytes(b"\0" + (place / name).read_bytes()[1:])
    with pytest.raises(InputError, match=rf"{name} is damaged, expected SHA-256 [0-9a-f]{{64}}; copy"):
        open_place(odd_url(place), tmp_path / "cache")


def test_a_small_file_that_was_wrong_once_is_asked_for_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lied: set[str] = set()
    read = OddStore.cat_file

    def lie_once(store: OddStore, path: str, **options: object) -> bytes:
        if path in lied:
            return read(store, path, **options)  # type: ignore[arg-type]
        lied.add(path)
        return b"<html>Service Unavailable</html>"

    monkeypatch.setattr(OddStore, "cat_file", lie_once)
    assert load_dataset(open_place(odd_url(root), tmp_path)) == load_dataset(root) and len(lied) > 3


def test_no_data_set_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"dataset\.json is not there, expected a file of the data set; copy"):
        open_place(odd_url(tmp_path / "none"), tmp_path / "cache")
    with pytest.raises(InputError, match=r"nonsense://x cannot be opened"):
        open_place("nonsense://x", tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_an_input_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\).*give another --data\.cache"):
        open_place(odd_url(root), tmp_path / "file")


def idle_cache(root: Path, cache: Path, name: str, *, age: int, kept: int) -> Path:
    """A cache that nobody reads, of a data set that this one was copied to be."""
    folder = cache / f"{name}-{hashlib.sha256((root / 'dataset.json').read_bytes()).hexdigest()[:16]}"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "remote.json").write_text(json.dumps({"url": f"odd:///{name}", "bound": 10**6}))
    (folder / "dataset.json").write_bytes((root / "dataset.json").read_bytes())
    (folder / "000000.segment").write_bytes(bytes(kept))
    os.utime(folder / "lock", (10**9 - age, 10**9 - age))
    return folder


def wanted_of(root: Path) -> int:
    """Bytes that a cache may come to take."""
    return sum(shard.bytes for split in load_dataset(root).splits.values() for shard in split.shards) * 5 // 4


def folders(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_data_sets_that_nobody_reads_make_room(root: Path, tmp_path: Path) -> None:
    """The one that was opened longest ago goes first, and none that frees nothing."""
    empty, _, newer = (
        idle_cache(root, tmp_path, name, age=age, kept=kept)
        for name, age, kept in (("empty", 400, 0), ("old", 300, 50_000), ("newer", 200, 50_000))
    )
    folder = open_place(odd_url(root), tmp_path, wanted_of(root) + 60_000)
    assert folders(tmp_path) == {empty.name, newer.name, folder.name}
    place = remote_place(folder)
    assert place and place.bound == wanted_of(root) and place.url == odd_url(root)


def test_folders_that_are_no_caches_stay_whatever_they_hold(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, content in (("text", "a person's"), ("list", "[]"), ("fields", '{"url": 1}')):
        folder = idle_cache(root, cache, name, age=300, kept=50_000)
        (folder / "remote.json").write_text(content)
    idle_cache(root, cache, "named", age=300, kept=50_000).rename(cache / "my results")
    (idle_cache(root, cache, "without", age=300, kept=50_000) / "remote.json").unlink()
    (idle_cache(root, cache, "other", age=300, kept=50_000) / "dataset.json").write_bytes(b"{}")
    link = cache / idle_cache(root, tmp_path / "elsewhere", "link", age=300, kept=50_000).name
    link.symlink_to(tmp_path / "elsewhere" / link.name)
    before = folders(cache)
    folder = open_place(odd_url(root), cache, 0)
    assert folders(cache) == {*before, folder.name} and len(before) == 7
    assert len(list(cache.glob("*/000000.segment"))) == 7


def test_the_cache_is_where_such_things_are_meant_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == Path("/x/alexnet-trainer/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache/alexnet-trainer/shards"
