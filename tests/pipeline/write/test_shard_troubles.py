"""A source with troubles, sharded whole: strange names, unusable files, and files that go away meanwhile."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from jpeg_files import HARMLESS, UNNAMED_LAYOUTS, interleaved
from picture_files import UNUSABLE
from pictures import encoded, photo, tree_bytes, write_tree
from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.manifest import load_dataset, load_samples
from pipeline.shard import ShardOptions, shard
from pipeline.verify import verify
from pipeline.write.dataset import count_by_reason
from pipeline.write.record import Reject
from processes import wait_until

SIZE = 32
STRANGE = [  # names as bytes: a file's may be any but "/" and NUL
    b"with a space.JPEG",
    b"two..dots.and.more.JPEG",
    b"no suffix",
    b"line\nbreak.JPEG",
    "großer Hai (Weiß).JPEG".encode(),
    "ホホジロザメ.JPEG".encode(),
    b"latin-1 \xe9.JPEG",
    b"'quoted' \"twice\" \\ $HOME.JPEG",
    b"-rf.JPEG",
]


def rejects(out: Path) -> dict[str, str]:
    """Reason by place."""
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return {f"{line['split']}/{line['class']}/{line['name']}": line["reason"] for line in lines}


def test_names_may_be_anything(tmp_path: Path) -> None:
    """Two trees, one with plain names in the same order: the same shards."""
    names = sorted(STRANGE)
    for tree, chosen in {"strange": names, "plain": [b"%02d.JPEG" % number for number in range(len(names))]}.items():
        folder = os.fsencode(tmp_path / tree / "train/a class, with.dots and ß")
        os.makedirs(folder)
        for seed, name in enumerate(chosen):
            Path(os.fsdecode(os.path.join(folder, name))).write_bytes(encoded(photo(seed), quality=95))
        out = str(tmp_path / f"{tree} shards")
        assert shard(ShardOptions(source=tmp_path / tree, out=out, size=SIZE, shard_samples=4, workers=2)) == 0
    strange, plain = tree_bytes(tmp_path / "strange shards"), tree_bytes(tmp_path / "plain shards")
    assert load_dataset(tmp_path / "strange shards").splits["train"].samples == len(STRANGE)
    assert {name for name in strange if strange[name] != plain[name]} == {"dataset.json"}  # of another source


def test_a_rejected_file_is_named_whatever_its_name(tmp_path: Path) -> None:
    write_tree(tmp_path / "source", {"train": {"a": 1}})
    for name in STRANGE:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "source/train/a"), name))).write_bytes(b"")
    shard(ShardOptions(source=tmp_path / "source", out=str(tmp_path / "out"), size=SIZE, workers=1))
    named = {os.fsencode(path) for path in rejects(tmp_path / "out")}
    assert named == {b"train/a/" + name for name in STRANGE}
    assert (tmp_path / "out/rejects.jsonl").read_bytes().count(b"\n") == len(STRANGE)


@pytest.mark.parametrize("size", [SIZE, 0])
def test_unusable_files_are_left_out_with_their_reasons_and_the_rest_is_kept(tmp_path: Path, size: int) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 5}})
    for name, (data, _) in UNUSABLE.items():
        (root / f"train/a/{name}").write_bytes(data)
    with open(root / "train/a/larger than memory", "wb") as sparse:
        sparse.truncate(2**40)
    assert shard(ShardOptions(source=root, out=str(tmp_path / "out"), size=size, workers=2, shard_samples=5)) == 0
    found = rejects(tmp_path / "out")
    assert found.keys() == {f"train/a/{name}" for name in (*UNUSABLE, "larger than memory")}
    assert all(reason in found[f"train/a/{name}"] for name, (_, reason) in UNUSABLE.items())
    assert found["train/a/larger than memory"].startswith("the file has 1,099,511,627,776 bytes, expected at most")
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.rejected, len(load_samples(tmp_path / "out", dataset, "train"))) == (len(found), 5)


def test_a_jpeg_that_other_decoders_stumble_over_is_kept_and_shown(tmp_path: Path) -> None:
    """The shortest JFIF segment that libjpeg reads; Pillow takes the file for no picture."""
    root = write_tree(tmp_path / "source", {"train": {"a": 0}})
    whole = encoded(photo(0), quality=95)
    assert whole[2:4] == b"\xff\xe0"
    after = 4 + int.from_bytes(whole[4:6], "big")
    (root / "train/a/0.JPEG").write_bytes(whole[:2] + b"\xff\xe0\0\7JFIF\0" + whole[after:])
    assert shard(ShardOptions(source=root, out=str(tmp_path / "out"), size=0, workers=1)) == 0
    assert load_dataset(tmp_path / "out").rejected == 0
    assert verify(folder_at(tmp_path / "out"), decode=True).faults == ()


def test_a_file_that_cannot_be_read_ends_the_run_unless_it_may_be_left_out(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 4}})
    (root / "train/a/01.JPEG").unlink()
    (root / "train/a/01.JPEG").symlink_to("/proc/self/mem")  # opens, and fails to read
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"failed 3 times \(train/a/01\.JPEG cannot be read"):
        shard(ShardOptions(source=root, out=str(out), size=SIZE, workers=1))
    assert shard(ShardOptions(source=root, out=str(out), size=SIZE, workers=1, reject_unreadable=True)) == 0
    assert rejects(out) == {"train/a/01.JPEG": "cannot be read (Input/output error)"}
    assert load_dataset(out).splits["train"].samples == 3


@dataclass
class Run:
    """How a process ended."""

    status: int = -1
    output: str = ""


@contextmanager
def held(source: Path, out: Path, *arguments: str) -> Iterator[Run]:
    """A run that has made a shard and no more than a few, stopped while the block lasts; then it goes on to its end."""
    given = [str(source), "--out", str(out), "--size", str(SIZE), "--shard-samples", "1", "--workers", "1"]
    command = [sys.executable, "-m", "pipeline.shard", *given, *arguments]
    ended = Run()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        wait_until(lambda: any(out.glob("train/*.tar")), run)
        run.send_signal(signal.SIGSTOP)
        try:
            yield ended
        finally:
            run.send_signal(signal.SIGCONT)
            ended.output, _ = run.communicate()
            ended.status = run.returncode


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Forty pictures, large enough that a run can be caught at work; those to validate on come last."""
    return write_tree(tmp_path / "large", {"train": {"a": 40}, "val": {"a": 4}}, width=512, height=512)


def test_a_file_that_vanishes_ends_the_run_which_goes_on_when_it_is_back(large: Path, tmp_path: Path) -> None:
    picture, out = large / "val/a/01.JPEG", tmp_path / "out"
    with held(large, out) as run:
        picture.rename(tmp_path / "away")
    *_, line = run.output.splitlines()
    assert run.status == 2
    assert "val/a/01.JPEG cannot be read (No such file or directory)" in line and "--reject-unreadable" in line
    (tmp_path / "away").rename(picture)
    again = ShardOptions(source=large, out=str(out), size=SIZE, shard_samples=1, workers=1)
    assert shard(again) == 0
    undisturbed = tmp_path / "undisturbed"
    assert shard(ShardOptions(source=large, out=str(undisturbed), size=SIZE, shard_samples=1, workers=1)) == 0
    assert tree_bytes(out) == tree_bytes(undisturbed)


def test_files_that_vanish_or_change_may_be_left_out(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(large, out, "--reject-unreadable") as run:
        (large / "val/a/00.JPEG").unlink()
        (large / "val/a/01.JPEG").write_bytes(encoded(photo(9), quality=95))
    assert run.status == 0
    found = rejects(out)
    assert found.pop("val/a/00.JPEG") == "cannot be read (No such file or directory)"
    assert found.pop("val/a/01.JPEG").startswith("has changed: ") and not found
    splits = load_dataset(out).splits
    assert (splits["train"].samples, splits["val"].samples) == (40, 2)


def test_every_whole_jpeg_is_used_whatever_its_header_and_layout(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 0}})
    odd = {**HARMLESS, **{name: interleaved(layout) for name, layout in UNNAMED_LAYOUTS.items()}}
    for number, jpeg in enumerate(odd.values()):
        (root / f"train/a/{number}.JPEG").write_bytes(jpeg)
    assert shard(ShardOptions(source=root, out=str(tmp_path / "out"), size=0, workers=1)) == 0
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.splits["train"].samples, dataset.rejected) == (len(odd), 0)
    assert verify(folder_at(tmp_path / "out"), decode=True).faults == ()


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "source", {"train": {"a": 3}})
    whole = encoded(photo(0, 64, 64), "TIFF")
    bad = [b"", b"", b"", whole[:500], whole[:700], b"<html>", b"a\nb"]
    for number, data in enumerate(bad):
        (root / f"train/a/bad{number}").write_bytes(data)
    options = ShardOptions(source=root, out=str(tmp_path / "out"), size=SIZE, workers=1)
    assert shard(options) == 0
    *_, empty, truncated, no_picture, warning = capsys.readouterr().out.splitlines()
    assert empty == "left out 3: the file is empty"
    assert no_picture.startswith("left out 2: not a picture in any of the formats")
    assert truncated.startswith("left out 2: ") and not set("0123456789") & set(truncated.removeprefix("left out 2"))
    assert warning.startswith("warning: 7 of 10 pictures (70.00%) are left out, expected at most 0.1%; see why in ")


def test_a_few_that_are_left_out_are_no_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.shard.MOST_REJECTED", 0.25)
    root = write_tree(tmp_path / "source", {"train": {"a": 3}})
    for name, at_most in {"one": True, "two": False}.items():
        (root / f"train/a/{name}").write_bytes(b"")
        assert shard(ShardOptions(source=root, out=str(tmp_path / name), size=SIZE, workers=1)) == 0
        assert ("warning: " not in capsys.readouterr().out) == at_most


def test_reasons_differ_by_their_words() -> None:
    numbers = ["at 0x1f", "at 7", "1,024 x 1.5e+09", "3 x -2"]
    reasons = [*numbers, "header b'\\x00a\\'b' no", 'header b"it\'s" no', "b", "b", "a"]
    rejects = [("train", Reject(0, "name", reason, unreadable=False)) for reason in reasons]
    assert count_by_reason(rejects) == [("N x N", 2), ("at N", 2), ("b", 2), ("header N no", 2), ("a", 1)]
    assert count_by_reason(rejects[::-1]) == count_by_reason(rejects)
