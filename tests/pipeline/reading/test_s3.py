"""A data set in an object store, by its real protocol: read, trained on, and gone on with."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem

from object_store import s3_bucket
from pictures import tree_bytes
from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset
from pipeline.reading import fetch
from pipeline.reading.place import open_place
from processes import command, losses, run


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


def upload(root: Path, url: str) -> str:
    folder = folder_at(url)
    for name, data in tree_bytes(root).items():
        folder.write(name, data)
    return url


def test_samples_of_a_bucket_are_those_of_the_disk(root: Path, bucket: str, tmp_path: Path) -> None:
    folder = open_place(upload(root, f"{bucket}/set"), tmp_path)
    for split in ("train", "val"):
        far, near = (SampleStore(place, load_dataset(place), split) for place in (folder, root))
        locations = far.locate(np.random.default_rng(0).permutation(len(far)))
        far.prefetch(locations)
        for mine, theirs in zip(far.read(locations), near.read(locations), strict=True):
            assert np.array_equal(mine, theirs)


def test_a_store_that_refuses_is_an_input_error(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PATIENCE_SECONDS", 0.5)

    async def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(S3FileSystem, "_cat_file", refuse)
    S3FileSystem.clear_instance_cache()  # an instance keeps the methods that it was made with
    with pytest.raises(InputError, match=r"dataset\.json cannot be read \(Access Denied; \d+ tries\).*credentials"):
        open_place(f"{bucket}/set", tmp_path)
    S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_a_run_trains_from_a_bucket_as_from_the_disk_and_goes_on(shards: Path, bucket: str, tmp_path: Path) -> None:
    url, cache = upload(shards, f"{bucket}/shards"), ("--data.cache", str(tmp_path / "cache"))
    options = ("--checkpoint-every", "3", "--data.cache-bytes", "20000")  # less than the data set
    near, far = tmp_path / "near", tmp_path / "far"
    status, output = run(command(shards, near, "--max-steps", "8"))
    assert status == 0, output
    for steps in ("4", "8"):
        status, output = run([*command(Path("x"), far, "--max-steps", steps, *cache, *options), "--data.shards", url])
        assert status == 0, output
    assert losses(far) == losses(near) and len(losses(far)) == 8
    assert json.loads((far / "run.json").read_text())["data"]["shards"] == url
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.segment")) <= 20_000
