"""tuned.json: written for several machines, taken where nothing is given, and never trusted."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.host.machine import Machine
from pipeline.load.config import DataConfig
from pipeline.manifest import TUNED_FILE
from pipeline.measure.tuned import Tuned, apply_tuned, check_writable, flags_of, read_tuned, save_tuned
from pipeline.verify import verify

HERE = Machine(processor="A", cores=8, memory_gib=16)
THERE = Machine(processor="B", cores=4, gpu="G", memory_gib=64)
TUNED = Tuned(threads=6, prefetch=4, hw_decoder_load=0.3, images_per_second=1000.0, gain=1.2, batch_size=128)


def test_several_machines_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / TUNED_FILE
    assert read_tuned(path) == {}
    save_tuned(path, HERE, TUNED)
    save_tuned(path, THERE, Tuned(threads=3, prefetch=1))
    save_tuned(path, HERE, replace(TUNED, threads=7))
    assert read_tuned(path) == {HERE: replace(TUNED, threads=7), THERE: Tuned(threads=3, prefetch=1)}
    assert os.listdir(tmp_path) == [TUNED_FILE]


SAVE_IN_TURN = """
import sys
from pathlib import Path
from pipeline.host.machine import Machine
from pipeline.measure.tuned import Tuned, save_tuned

for each in range(20):
    machine = Machine(processor=sys.argv[2], cores=1, memory_gib=1)
    save_tuned(Path(sys.argv[1]), machine, Tuned(threads=each + 1, prefetch=1))
"""


def test_machines_that_save_at_the_same_time_keep_each_others(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").touch()  # by which they wait for one another
    path = tmp_path / TUNED_FILE
    writers = [subprocess.Popen([sys.executable, "-c", SAVE_IN_TURN, str(path), name]) for name in "AB"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert {machine.processor: tuned.threads for machine, tuned in read_tuned(path).items()} == {"A": 20, "B": 20}


def test_what_is_given_wins_and_what_is_taken_is_said(tmp_path: Path) -> None:
    path = tmp_path / TUNED_FILE
    save_tuned(path, HERE, TUNED)
    config, said = apply_tuned(DataConfig(), path, HERE)
    assert (config.threads, config.prefetch, config.hw_decoder_load) == (6, 4, 0.3)
    assert said == f"{path}: threads 6, prefetch 4, hw_decoder_load 0.3"
    config, said = apply_tuned(DataConfig(threads=2, hw_decoder_load=0.0), path, HERE)
    assert (config.threads, config.prefetch, config.hw_decoder_load) == (2, 4, 0.0)
    assert said == f"{path}: prefetch 4"
    for nothing in (DataConfig(tuned=False), DataConfig(threads=1, prefetch=1, hw_decoder_load=0.5)):
        assert apply_tuned(nothing, path, HERE) == (nothing, "")
    assert apply_tuned(DataConfig(), path, THERE) == (DataConfig(), "")
    assert apply_tuned(DataConfig(), tmp_path / "none", HERE) == (DataConfig(), "")


def test_a_process_takes_its_share_of_the_threads(tmp_path: Path) -> None:
    path = tmp_path / TUNED_FILE
    save_tuned(path, HERE, TUNED)
    assert [apply_tuned(DataConfig(), path, HERE, share=1 / n)[0].threads for n in (1, 2, 100)] == [6, 3, 1]


def test_fast_decoding_is_named_and_not_taken(tmp_path: Path) -> None:
    path = tmp_path / TUNED_FILE
    save_tuned(path, HERE, replace(TUNED, decoding="fast"))
    config, said = apply_tuned(DataConfig(), path, HERE)
    assert config.decoding == "exact" and "--data.decoding fast is faster and changes pixels" in said
    assert "changes pixels" not in apply_tuned(DataConfig(decoding="fast"), path, HERE)[1]


GOOD: dict[str, Any] = {"threads": 2, "prefetch": 2}
WRONG = {
    "empty": b"",
    "cut": b'{"version": 1, "machines": [{"machine',
    "another program's": b'{"learning_rate": 0.1}',
    "a list": b"[]",
    "a later version's": b'{"version": 2, "machines": []}',
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
} | {
    f"{name} {value!r}": json.dumps(
        {"version": 1, "machines": [{"machine": vars(HERE), "tuned": GOOD | {name: value}}]}
    ).encode()
    for name, value in (
        ("threads", 0),
        ("threads", True),
        ("threads", "2"),
        ("threads", 10**9),
        ("prefetch", 2.5),
        ("hw_decoder_load", 7),
        ("decoder_hint", 2**17),
        ("decoder_padding", 0.5),
        ("decoder_padding", 3000),
        ("hw_decoder_load", "x"),
        ("images_per_second", float("nan")),
        ("decoding", "faster"),
        ("unknown", 1),
    )
}


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_or_foreign_file_is_told_and_ignored(tmp_path: Path, what: str) -> None:
    path = tmp_path / TUNED_FILE
    path.write_bytes(WRONG[what])
    config, said = apply_tuned(DataConfig(), path, HERE)
    assert config == DataConfig()
    assert said.startswith(f"notice: {path} is damaged") and "\n" not in said and "not taken" in said
    save_tuned(path, HERE, TUNED)
    assert read_tuned(path) == {HERE: TUNED}


def test_where_it_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    check_writable(tmp_path / TUNED_FILE)
    for path in (tmp_path / "none" / TUNED_FILE, tmp_path):
        with pytest.raises(InputError, match="give --save FILE"):
            check_writable(path)
        with pytest.raises(InputError, match="give --save FILE"):
            save_tuned(path, HERE, TUNED)


def test_flags_say_the_same() -> None:
    assert flags_of(TUNED) == "--data.threads 6 --data.prefetch 4 --data.hw-decoder-load 0.3"
    assert flags_of(Tuned(threads=1, prefetch=2, decoding="fast")).endswith("--data.prefetch 2 --data.decoding fast")


def test_it_is_no_fault_of_the_data_set(shards: Path, tmp_path: Path) -> None:
    here = tmp_path / "shards"
    shutil.copytree(shards, here)
    save_tuned(here / TUNED_FILE, HERE, TUNED)
    assert not verify(folder_at(here)).faults
    (here / "other.json").write_text("{}")
    assert ["other.json" in str(fault) for fault in verify(folder_at(here)).faults] == [True]
