"""Samples of a store: the same bytes as on a disk, whatever the store does, through a cache that is bounded."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from odd_store import Answer, odd_url, ruled_by
from paths import ROOT
from pipeline.command import InputError
from pipeline.load.storage import NAME_BYTES, SampleStore
from pipeline.manifest import load_dataset
from pipeline.reading import fetch, samples
from pipeline.reading.cache import INDEX_FILE, SEGMENT_SUFFIX
from pipeline.reading.mapping import open_shards
from pipeline.reading.place import CACHE_BYTES, open_place, remote_place

SAMPLES = 150  # of the split train


def opened(root: Path, cache: Path, most: int = CACHE_BYTES, split: str = "train") -> SampleStore:
    folder = open_place(odd_url(root), cache, most)
    return SampleStore(folder, load_dataset(folder), split)


def on_disk(root: Path) -> SampleStore:
    return SampleStore(root, load_dataset(root), "train")


def everything(store: SampleStore) -> list[bytes]:
    """All samples in a random order, asked for ten at a time, by their place in the table."""
    order = np.random.default_rng(0).permutation(len(store))
    found: dict[int, bytes] = {}
    for part in np.split(order, len(store) // 10):
        locations = store.locate(part)
        store.prefetch(locations)
        found |= {sample: data.tobytes() for sample, data in zip(part.tolist(), store.read(locations), strict=True)}
    return [found[sample] for sample in range(len(store))]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is made a second time because this host is slow: for tests that count them."""
    monkeypatch.setattr(samples, "SLOW_SECONDS", 60.0)


def kept(cache: Path) -> int:
    """Bytes of samples in a cache."""
    return sum(path.stat().st_size for path in cache.rglob(f"*{SEGMENT_SUFFIX}"))


@pytest.mark.usefixtures("unhurried")
def test_samples_are_those_of_the_disk_and_each_comes_once(root: Path, tmp_path: Path) -> None:
    with ruled_by() as requests:
        store = opened(root, tmp_path)
        assert everything(store) == everything(on_disk(root))
        assert all(store.is_intact(location) for location in store.locate(np.arange(SAMPLES)))
        assert kept(tmp_path) == int(store.table["size"].sum()) and 0 < len(requests) <= SAMPLES
        requests.clear()
        assert everything(store) == everything(on_disk(root)) and not requests
        assert store.keys().tolist() == on_disk(root).keys().tolist()


@pytest.mark.usefixtures("unhurried")
def test_samples_that_follow_one_another_come_by_one_request(root: Path, tmp_path: Path) -> None:
    with ruled_by() as requests:
        store = opened(root, tmp_path)
        locations = store.locate(np.arange(SAMPLES))
        store.prefetch(locations)
        assert [data.tobytes() for data in store.read(locations)] == everything(on_disk(root))
        assert len(requests) == len(load_dataset(root).splits["train"].shards)


def test_a_header_is_read_by_itself_and_all_of_them_by_few_requests(root: Path, tmp_path: Path) -> None:
    store, shards = opened(root, tmp_path), load_dataset(root).splits["train"].shards
    with ruled_by() as requests:
        assert store.key(70) == on_disk(root).key(70)
        ((_, start, stop),) = requests
        assert stop - start == NAME_BYTES
        requests.clear()
        assert store.keys().tolist() == on_disk(root).keys().tolist() and len(requests) <= 2 * len(shards)


def test_another_opening_of_a_data_set_shares_its_samples_whatever_its_bound(root: Path, tmp_path: Path) -> None:
    everything(opened(root, tmp_path))
    shards, descriptors = [], len(os.listdir("/proc/self/fd"))
    for most in (CACHE_BYTES, 500_000, 400_000):
        folder = open_place(odd_url(root), tmp_path, most)
        shards.append(
            [shard.data for shard in open_shards(folder, "train", load_dataset(folder).splits["train"].shards)]
        )
        assert (place := remote_place(folder)) and place.bound <= most
    assert shards[0] == shards[1] == shards[2]
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # what other tests left may close meanwhile


LIES: dict[str, Callable[[Answer, str, int, int], bytes]] = {
    "another byte": lambda answer, path, start, stop: answer(path, start, stop)[:-1] + b"\xff",
    "short": lambda answer, path, start, stop: answer(path, start, stop)[:-5],
    "nothing": lambda answer, path, start, stop: b"",
    "another range": lambda answer, path, start, stop: answer(path, start + 512, stop + 512),
    "an error page": lambda answer, path, start, stop: b"<html>Service Unavailable</html>",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_store_lies_about_is_asked_for_again(root: Path, tmp_path: Path, lie: str) -> None:
    lied: set[tuple[str, int]] = set()

    def rule(answer: Answer, path: str, start: int, stop: int) -> bytes:
        if (path, start) in lied:
            return answer(path, start, stop)
        lied.add((path, start))
        return LIES[lie](answer, path, start, stop)

    with ruled_by(rule):
        store = opened(root, tmp_path)
        assert everything(store) == everything(on_disk(root)) and lied


def test_a_server_that_knows_no_ranges_will_do(root: Path, tmp_path: Path) -> None:
    with ruled_by(lambda answer, path, start, stop: answer(path, 0, os.path.getsize(path))):
        assert everything(opened(root, tmp_path)) == everything(on_disk(root))


@pytest.mark.usefixtures("unhurried")
def test_a_sample_that_stays_wrong_is_damaged_and_the_others_are_not(root: Path, tmp_path: Path) -> None:
    shard, offset, size, _ = on_disk(root).locate(np.array([7]))[0]
    name = f"{shard:06d}.tar"

    def rule(answer: Answer, path: str, start: int, stop: int) -> bytes:
        data = bytearray(answer(path, start, stop))
        if path.endswith(f"train/{name}") and start <= offset < stop:
            data[offset - start] ^= 1
        return bytes(data)

    with ruled_by(rule) as requests:
        store = opened(root, tmp_path)
        locations = store.locate(np.arange(SAMPLES))
        store.prefetch(locations)
        assert [store.is_intact(location) for location in locations] == [sample != 7 for sample in range(SAMPLES)]
        alone = [request for request in requests if request == (name, offset, offset + size)]
        assert len(alone) == samples.TRIES - 1
        assert not store.is_intact(locations[7])  # not asked for again at once
        assert len([request for request in requests if request == (name, offset, offset + size)]) == len(alone)


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "503 Slow Down"),
        PermissionError(13, "403 Forbidden"),
        TimeoutError("timed out"),
        ConnectionResetError(104, "Connection reset by peer"),
        RuntimeError("of the store's library"),
    ],
    ids=["500", "403", "timeout", "reset", "library"],
)
def test_a_store_that_fails_for_a_while_is_asked_again(root: Path, tmp_path: Path, error: Exception) -> None:
    failed: set[str] = set()

    def rule(answer: Answer, path: str, start: int, stop: int) -> bytes:
        if path not in failed:
            failed.add(path)
            raise error
        return answer(path, start, stop)

    with ruled_by(rule):
        store = opened(root, tmp_path)
        locations = store.locate(np.arange(SAMPLES))
        store.prefetch(locations)
        assert [data.tobytes() for data in store.read(locations)] == everything(on_disk(root)) and failed


def test_a_store_that_keeps_failing_is_an_input_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PATIENCE_SECONDS", 0.3)

    def rule(answer: Answer, path: str, start: int, stop: int) -> bytes:
        raise PermissionError(13, "Forbidden")

    store = opened(root, tmp_path)
    with (
        ruled_by(rule),
        pytest.raises(InputError, match=r"tar cannot be read \(Forbidden; \d+ tries\), expected a file"),
    ):
        store.read(store.locate(np.array([3])))
    with ruled_by():  # and it may work again
        assert store.is_intact(store.locate(np.array([3]))[0])


def test_a_slow_request_stops_no_other_and_is_made_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SLOW_SECONDS", 0.1)
    slow, free = on_disk(root).locate(np.array([3]))[0], threading.Event()
    stuck: list[int] = []

    def rule(answer: Answer, path: str, start: int, stop: int) -> bytes:
        if path.endswith(f"train/{slow[0]:06d}.tar") and start <= slow[1] < stop and not stuck:
            stuck.append(start)
            free.wait(30)
        return answer(path, start, stop)

    with ruled_by(rule):
        store = opened(root, tmp_path)
        for location in store.locate(np.arange(SAMPLES)):
            store.prefetch([location])
        assert everything(store) == everything(on_disk(root))
        assert stuck and not free.is_set()
        free.set()


def test_the_cache_is_bounded_and_keeps_what_it_has(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_READ_BYTES", 0)
    with ruled_by() as requests:
        store = opened(root, tmp_path, most=most_of(root))
        for _ in range(2):
            assert everything(store) == everything(on_disk(root))
            assert 0 < kept(tmp_path) <= most_of(root)
        monkeypatch.setattr(samples.RemoteSamples, "ask", lambda self, samples: None)
        everything(store)  # what has come and was never read
        (index,) = tmp_path.glob(f"*/train/{INDEX_FILE}")
        here = np.count_nonzero(np.fromfile(index, np.uint64))
        assert 0 < here < SAMPLES
        for _ in range(2):  # in whatever order: as many are found as are kept
            requests.clear()
            assert everything(store) == everything(on_disk(root))
            assert SAMPLES - here - 1 <= len(requests) <= SAMPLES - here  # what was read last is still there


def most_of(root: Path) -> int:
    """A bound that is half of what the samples are."""
    return int(on_disk(root).table["size"].sum()) // 2


def test_no_room_at_all_is_enough(root: Path, tmp_path: Path) -> None:
    assert everything(opened(root, tmp_path, most=0)) == everything(on_disk(root)) and kept(tmp_path) == 0


def test_what_the_disk_has_lost_or_changed_comes_again(root: Path, tmp_path: Path) -> None:
    store = opened(root, tmp_path)
    everything(store)
    segments = sorted(tmp_path.rglob(f"*{SEGMENT_SUFFIX}"))
    for number, path in enumerate(segments):
        data = bytearray(path.read_bytes())
        os.truncate(path, len(data) // 2)
        if number % 2:
            path.write_bytes(bytes(len(data)))
    with ruled_by() as requests:
        assert everything(store) == everything(on_disk(root)) and requests


READ = """
import sys
from pathlib import Path
import numpy as np
import odd_store
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset
from pipeline.reading.place import open_place

url, cache, most, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
root = open_place(url, cache, most)
store = SampleStore(root, load_dataset(root), "train")
print("open", flush=True)
for sample in np.random.default_rng(seed).permutation(len(store)):
    (location,) = store.locate(np.array([sample]))
    assert store.is_intact(location)
    if seed == 99:
        print("read", flush=True)
print(len(odd_store.OddStore.requests), flush=True)
"""


def reader(root: Path, cache: Path, most: int, seed: int) -> subprocess.Popen[str]:
    """A process that reads all samples, each by itself, and prints how many requests it has made."""
    command = [sys.executable, "-c", READ, odd_url(root), str(cache), str(most), str(seed)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def requests_of(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return int(output.split()[-1])


def test_processes_share_a_cache_and_its_bound_and_a_restart_uses_it(root: Path, tmp_path: Path) -> None:
    both = [reader(root, tmp_path / "whole", CACHE_BYTES, seed) for seed in (1, 2)]
    bounded = [reader(root, tmp_path / "half", most_of(root), seed) for seed in (1, 2)]
    for process in (*both, *bounded):
        requests_of(process)
    assert 0 < kept(tmp_path / "half") <= most_of(root)
    assert requests_of(reader(root, tmp_path / "whole", CACHE_BYTES, 3)) == 0
    smaller = most_of(root) // 2
    assert 0 < requests_of(reader(root, tmp_path / "half", smaller, 3)) and kept(tmp_path / "half") <= smaller


def test_a_killed_process_leaves_no_lie(root: Path, tmp_path: Path) -> None:
    process = reader(root, tmp_path, CACHE_BYTES, 99)
    assert process.stdout
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert kept(tmp_path) > 0
    assert requests_of(reader(root, tmp_path, CACHE_BYTES, 1)) < SAMPLES


HANGING = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import odd_store
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset
from pipeline.reading import workers
from pipeline.reading.place import open_place

workers.LAST_SECONDS = 0.1
asked = threading.Event()

def hang(answer, path, start, stop):
    asked.set()
    threading.Event().wait()

odd_store.OddStore.rule = staticmethod(hang)
root = open_place(sys.argv[1], Path(sys.argv[2]))
store, pool = SampleStore(root, load_dataset(root), "train"), ThreadPoolExecutor(2)
for location in store.locate(np.arange(20)):
    pool.submit(store.read, [location])
asked.wait()
print("done", flush=True)
"""


def test_a_process_that_ends_does_not_wait_for_a_store_that_hangs(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, odd_url(root), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
