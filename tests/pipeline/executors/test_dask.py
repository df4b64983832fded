"""Sharding by a real Dask cluster on this host: a scheduler, and workers that may die."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paths import ROOT
from pictures import tree_bytes
from pipeline.command import InputError
from pipeline.shard import shard
from processes import PATIENCE, wait_until
from sharding import command, finished, options


class Cluster:
    """A scheduler and two workers of one thread each, as processes."""

    def __init__(self, folder: Path):
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_until(self.file.exists, self.scheduler)
        self.workers: list[subprocess.Popen[str]] = []
        for _ in range(2):
            self.add_worker()

    def add_worker(self) -> None:
        place = "--local-directory", str(self.file.parent)
        self.workers.append(self._start("worker", "--no-nanny", "--nthreads", "1", "--no-dashboard", *place))

    def _start(self, role: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dask", role, "--scheduler-file", str(self.file), *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)

    @property
    def executor(self) -> str:
        """What --executor takes, once both workers are there."""
        from distributed import Client

        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
        return json.loads(self.file.read_text())["address"].replace("tcp://", "dask://")

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def at_work(source: Path, out: Path, executor: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has finished a shard, and not yet all."""
    given = command(source, out, "--executor", executor)
    with subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: finished(out), run)
        yield run


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_processes_writes_the_same_bytes(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    assert shard(options(source, tmp_path / "out", workers=workers)) == 0
    assert tree_bytes(tmp_path / "out") == undisturbed


def test_a_cluster_writes_the_same_bytes_also_when_a_worker_dies(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, cluster: Cluster
) -> None:
    executor = cluster.executor
    whole = subprocess.run(command(source, tmp_path / "whole", "--executor", executor), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert tree_bytes(tmp_path / "whole") == undisturbed
    out = tmp_path / "out"
    with at_work(source, out, executor) as run:
        cluster.workers[0].kill()
        _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, errors
    assert tree_bytes(out) == undisturbed


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_run_and_others_go_on(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, cluster: Cluster
) -> None:
    out = tmp_path / "out"
    with at_work(source, out, cluster.executor) as run:
        cluster.scheduler.kill()
        _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 2, errors
    assert errors.count("\n") == 1 and "the Dask scheduler was lost" in errors
    cluster.stop()  # else a worker may still be at a shard
    assert shard(options(source, out)) == 0
    assert tree_bytes(out) == undisturbed


@pytest.mark.slow
def test_a_cluster_that_loses_all_its_workers_says_so_and_goes_on_with_new_ones(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, cluster: Cluster
) -> None:
    out = tmp_path / "out"
    with at_work(source, out, cluster.executor) as run:
        for worker in cluster.workers:
            worker.kill()
        assert run.stderr is not None
        assert "has no workers; waiting" in run.stderr.readline()
        cluster.add_worker()
        _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, errors
    assert tree_bytes(out) == undisturbed


def test_a_cluster_that_is_not_there_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.executors.dask._CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 within"):
        shard(options(source, tmp_path / "out", executor="dask://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("distributed", ["--executor", "dask://127.0.0.1:1"]), ("s3fs", ["--out", "s3://bucket/prefix"])],
)
def test_an_extra_that_is_not_installed_is_named(
    source: Path, tmp_path: Path, module: str, arguments: list[str]
) -> None:
    code = f"import sys, runpy; sys.modules[{module!r}] = None; runpy.run_module('pipeline.shard', run_name='__main__')"
    command = [sys.executable, "-c", code, str(source), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 2
    *_, line = run.stderr.splitlines()
    assert line.startswith("error: ") and "pip install -e '.[" in line


@pytest.mark.parametrize("executor", ["dask", "dask://", "dask://host", "ray://host:1", "local:1", "dask://host:port"])
def test_an_executor_nobody_knows_is_one_line(source: Path, tmp_path: Path, executor: str) -> None:
    with pytest.raises(InputError, match="expected local or dask://HOST:PORT"):
        options(source, tmp_path / "out", executor=executor)
