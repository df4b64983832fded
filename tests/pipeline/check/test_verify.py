import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from damaged import (
    KINDS,
    SIZE,
    command,
    flipped,
    lines,
    make_data_set,
    members,
    named,
    seal,
    swap,
    write_fields,
    write_split,
)
from pictures import tree_bytes
from pipeline.check.faults import MAX_FAULTS
from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.manifest import load_dataset
from pipeline.verify import main, verify

FLIPS = 500


# Sound data sets


@pytest.mark.parametrize("size", [SIZE, 0])
def test_a_data_set_as_written_has_no_faults(tmp_path: Path, size: int) -> None:
    root = make_data_set(tmp_path, size=size)
    before = tree_bytes(root)
    report = verify(folder_at(root), decode=True)
    assert report.faults == ()
    assert report.samples == 23 + 7 + 5
    assert report.bytes == sum(path.stat().st_size for path in root.rglob("*.tar"))
    assert tree_bytes(root) == before


def test_a_data_set_without_rejects_or_other_splits_has_no_faults(out: Path) -> None:
    for split in ("val", "test"):
        shutil.rmtree(out / split)
    (out / "rejects.jsonl").write_bytes(b"")
    dataset = load_dataset(out)
    files = {name: sha256 for name, sha256 in dataset.files.items() if not name.startswith(("val/", "test/"))}
    write_fields(out, ["splits"], {"train": json.loads((out / "dataset.json").read_text())["splits"]["train"]})
    write_fields(out, ["files"], files)
    write_fields(out, ["rejected"], 0)
    seal(out)
    assert lines(out) == []


# Every byte counts


def places(root: Path, generator: np.random.Generator) -> list[tuple[str, int]]:
    """FLIPS places: half of them in tars, a quarter of these in what a tar has beside JPEGs and labels."""
    tars = [str(path.relative_to(root)) for path in sorted(root.rglob("*.tar"))]
    others = sorted(tree_bytes(root).keys() - set(tars))
    names = [*generator.choice(tars, FLIPS // 2), *(others[i % len(others)] for i in range(FLIPS - FLIPS // 2))]
    found: list[tuple[str, int]] = []
    for number, name in enumerate(map(str, names)):
        data = (root / name).read_bytes()
        candidates = np.arange(len(data))
        if number < FLIPS // 8:
            with tarfile.open(root / name) as tar:
                for member in tar:
                    candidates[member.offset_data : member.offset_data + member.size] = -1
        found.append((name, int(generator.choice(candidates[candidates >= 0]))))
    return found


def test_every_single_byte_change_is_found_in_its_file(out: Path) -> None:
    generator = np.random.default_rng(2012)
    folder = folder_at(out)
    found: list[tuple[str, int, set[str]]] = []
    chosen = places(out, generator)
    assert {name for name, _ in chosen} == tree_bytes(out).keys()
    for name, position in chosen:
        with flipped(out / name, position, int(generator.integers(1, 256))):
            found.append((name, position, {fault.file for fault in verify(folder).faults}))
    assert len(found) == FLIPS
    assert [each for each in found if each[2] != {each[0]}] == []
    assert lines(out) == []


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("change", ["cut by one", "cut in half", "emptied", "one zero more", "a block more", "deleted"])
def test_a_file_of_another_length_is_found(out: Path, name: str, change: str) -> None:
    path = out / name
    data = path.read_bytes()
    if change == "deleted":
        path.unlink()
        if name == "dataset.json":
            with pytest.raises(InputError, match=r"has no dataset\.json, expected"):
                verify(folder_at(out))
        else:
            assert lines(out) == [f"{name}: missing"]
        return
    changed = {
        "cut by one": data[:-1],
        "cut in half": data[: len(data) // 2],
        "emptied": b"",
        "one zero more": data + b"\0",
        "a block more": data + b"x" * 10240,
    }
    path.write_bytes(changed[change])
    assert named(out) == {name}


@pytest.mark.parametrize(
    "name",
    ["unfinished", ".train.tmp", "train/.000000.made.npz", "train/.000001.tar.0123abcd.tmp", "train/000003.tar", "a/b"],
)
def test_a_file_that_does_not_belong_is_found(out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).touch()
    assert lines(out) == [f"{name}: unexpected; it is no file of the data set"]


def test_odd_names_are_one_line_each(out: Path) -> None:
    (out / os.fsdecode(b"a\nb\xff")).touch()
    assert lines(out) == [r"a\nb\udcff: unexpected; it is no file of the data set"]


def test_many_faults_are_not_a_flood(out: Path) -> None:
    for number in range(MAX_FAULTS + 5):
        (out / f"{number:02d}.txt").touch()
    path = out / "train/000000.tar"
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    found = lines(out)
    assert "unexpected files: 5 more faults" in found
    assert found[-1].startswith("train/000000.tar: ") and found[-1].endswith(" more faults")
    assert len(found) <= 2 * MAX_FAULTS + 5


@pytest.mark.parametrize("name", ["dataset.json", "mean.npy", "val/samples.npy", "val/000000.tar", "val/000000.idx"])
def test_a_file_that_cannot_be_read_is_a_fault(out: Path, name: str) -> None:
    (out / name).unlink()
    (out / name).symlink_to("/proc/self/mem")  # opens, and fails to read
    (line,) = lines(out)
    assert re.fullmatch(rf"{name}: cannot be read, found (Input/output error|Invalid argument)", line)
    (out / name).unlink()
    (out / name).symlink_to("nowhere")
    assert lines(out) == [f"{name}: cannot be read, found No such file or directory"]


# Which samples a damage has reached


@pytest.mark.parametrize(
    ("member", "place", "expected"),
    [
        (4, "data", "{name}, CRC-32, expected "),
        (5, "data", "{name}, expected {label}, found "),
        (4, "padding", "{name}, padding at byte {place:,}, expected zeros"),
        (5, "padding", "{name}, padding at byte {place:,}, expected zeros"),
        (4, "name", "header of 1{tail} at byte {header:,}, name or checksum, expected b'"),
        (4, "suffix", "header of a .jpg at byte {header:,}, name, expected b'KEY.jpg', found b'"),
        (4, "mode", "header of {name} at byte {header:,}, mode, expected b'0000644', found b'1000644'"),
        (5, "size", "header of {name} at byte {header:,}, size, expected b'00000000001', found b'10000000001'"),
        (4, "checksum", "header of {name} at byte {header:,}, name or checksum, expected b'"),
        (5, "magic", "header of {name} at byte {header:,}, magic, expected b'ustar', found b'tstar'"),
        (-1, "end", "end of archive at byte {header:,}, expected zeros, found another byte at {place:,}"),
    ],
)
def test_damage_is_told_by_sample_and_place(out: Path, member: int, place: str, expected: str) -> None:
    path = out / "train/000001.tar"
    info = members(path)[member]
    label = path.read_bytes()[info.offset_data : info.offset_data + info.size].decode("latin-1")
    after = info.offset_data + info.size
    position = {"data": info.offset_data, "padding": after + 3, "end": after + 2000}.get(place, info.offset)
    position += {"suffix": 9, "mode": 100, "size": 124, "checksum": 150, "magic": 257}.get(place, 0)
    header = -(-after // 512) * 512 if place == "end" else info.offset
    text = expected.format(name=info.name, tail=info.name[1:], label=label, place=position, header=header)
    with flipped(path, position, 1):
        found = lines(out)
    assert [line.partition(", ")[0] for line in found[:1]] == ["train/000001.tar: SHA-256"]
    assert len(found) == 2
    assert found[1].startswith(f"train/000001.tar: {text}"), found[1]


def test_each_of_several_damaged_samples_is_told(out: Path) -> None:
    path = out / "train/000000.tar"
    infos = members(path)
    with open(path, "r+b") as stream:
        for number in (0, 6, 12):
            stream.seek(infos[number].offset)
            stream.write(b"\xff" * 600)  # the header and the first bytes of the JPEG
    found = "\n".join(lines(out))
    for number in (0, 6, 12):
        at = f"{infos[number].offset:,}"
        assert f"header of a .jpg at byte {at}, " in found
        assert f"the .jpg at byte {at}, CRC-32" in found
    assert found.count("CRC-32") == 3
    assert named(out) == {"train/000000.tar"}


def test_a_tar_without_a_sound_table_is_walked_by_its_headers(out: Path) -> None:
    """The table is damaged: tars that are sound are not blamed, and one that is not is still told."""
    with flipped(out / "train/samples.npy", 300, 1):
        assert named(out) == {"train/samples.npy"}
        with flipped(out / "train/000000.tar", 100, 1):
            found = lines(out)
    assert [line for line in found if not line.startswith(("train/samples.npy", "train/000000.tar"))] == []
    assert any("byte 0, expected a header of KEY.jpg" in line for line in found)


def test_swapped_tars_are_both_named(out: Path) -> None:
    one, other = out / "train/000000.tar", out / "train/000001.tar"
    swap(one, other)
    assert named(out) == {"train/000000.tar", "train/000001.tar"}
    assert any("CRC-32" in line for line in lines(out))


# Memory


def test_memory_does_not_grow_with_the_tar(out: Path) -> None:
    code = (
        "import sys; from pipeline.folder import folder_at; from pipeline.verify import verify; "
        "assert not verify(folder_at(sys.argv[1])).faults; "
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    peaks: list[int] = []
    for megabytes in (1, 40):
        write_split(out, "val", [(os.urandom(megabytes * 10**6), 0) for _ in range(8)])
        run = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout))
    assert peaks[1] - peaks[0] < 16 * 2**10, peaks  # kB; the tar has grown by 312 MB, one picture by 39


# The command


def test_the_command_is_silent_on_stdout_when_all_is_well(out: Path) -> None:
    run = command(out, "--workers", 2, "--decode")
    assert (run.returncode, run.stdout) == (0, "")
    assert "every byte is as written; 35 pictures" in run.stderr


def test_the_command_tells_each_fault_on_a_line(out: Path) -> None:
    (out / "mean.png").unlink()
    with flipped(out / "val/000000.tar", 600, 255), flipped(out / "train/000002.idx", 9, 1):
        run = command(out, "--workers", 2)
        assert run.returncode == 1
        assert run.stdout.splitlines() == lines(out)
    assert {line.partition(":")[0] for line in run.stdout.splitlines()} == {
        "mean.png",
        "val/000000.tar",
        "train/000002.idx",
    }
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("to", ["-", "report.json"])
def test_the_report_as_json(
    out: Path, tmp_path: Path, to: str, sound: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not sound:
        (out / "unfinished").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["verify", "out", "--workers", "1", "--json", to])
    assert main() == (0 if sound else 1)
    stdout = capsys.readouterr().out
    report = json.loads(stdout if to == "-" else (tmp_path / to).read_text())
    assert (stdout == "") == (sound and to != "-")
    assert report.pop("seconds") > 0
    fault = {"file": "unfinished", "what": "unexpected; it is no file of the data set", "expected": "", "found": ""}
    assert report == {
        "dir": "out",
        "sound": sound,
        "decoded": False,
        "samples": 35,
        "bytes": sum(path.stat().st_size for path in out.rglob("*.tar")),
        "faults": [] if sound else [fault],
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["file"],
        ["empty"],
        ["out", "--workers", "0"],
        ["out", "--json", "nowhere/report.json"],
        ["out", "--json", "empty"],
        ["out", "--json", "out/report.json"],
        ["nothing://bucket/x"],
    ],
    ids=" ".join,
)
def test_wrong_calls_are_one_line(
    arguments: list[str], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = tree_bytes(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["verify", *arguments, *([] if "--workers" in arguments else ["--workers", "1"])])
    with pytest.raises(InputError, match="expected") as raised:
        main()
    assert "\n" not in str(raised.value)
    assert tree_bytes(tmp_path) == before


def test_the_command_has_help() -> None:
    run = command("--help")
    assert run.returncode == 0 and "--decode" in run.stdout and not run.stderr


def test_a_wrong_call_of_the_command_exits_with_2(tmp_path: Path) -> None:
    run = command(tmp_path)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith("error: ")


def test_verifying_needs_neither_torch_nor_dali() -> None:
    check = "import sys, pipeline.verify; print({'torch', 'nvidia.dali'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stderr
