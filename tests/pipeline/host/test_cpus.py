"""How many cores are counted on, by affinity and by cgroups' quota; and that everything that counts cores does so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from pipeline.host.cpus import cpu_quota, usable_cores, whole_cores
from pipeline.sample import SampleConfig
from pipeline.shard import ShardOptions
from pipeline.verify import VerifyOptions

V1 = "5:memory:/pod\n4:cpu,cpuacct:/pod/box\n1:name=systemd:/pod\n0::/elsewhere\n"


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 2.0001, 3), (8, 0.1, 1), (8, 8.0, 8), (8, 64.0, 8), (1, 0.5, 1)],
)
def test_a_quota_is_rounded_up_and_never_adds_cores(cores: int, quota: float | None, expected: int) -> None:
    assert whole_cores(cores, quota) == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "250000 100000", "a/b/cpu.max": "300000 100000"}, 2.5),
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),  # a container with a namespace of its own
        ("0::/../../other\n", {"cpu.max": "150000 50000"}, 3.0),
        ("0::/host/path/of/it\n", {"cpu.max": "200000 100000"}, 2.0),  # of which only the last part is mounted
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        ("0::/a\n", {"a/memory.max": "1"}, None),
        (V1, {"cpu/pod/box/cpu.cfs_quota_us": "150000", "cpu/pod/box/cpu.cfs_period_us": "100000"}, 1.5),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4.0),  # no link
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "100000 100000"}, None),
        (V1, {"cpu/pod/box/cpu.cfs_quota_us": "1000"}, None),
        ("", {}, None),
        ("of another kind\n", {"cpu.max": "of another kind"}, None),
    ],
)
def test_the_tightest_group_counts_of_either_version(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    for name, text in {"self": membership, **{f"sys/{name}": f"{text}\n" for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path / "sys", tmp_path / "self") == expected


def test_what_counts_cores_heeds_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))

    def counted() -> tuple[int, ...]:
        workers = ShardOptions(source=Path()).workers, VerifyOptions(dir="").workers
        return usable_cores(), *workers, SampleConfig(dir=Path()).workers

    monkeypatch.setattr("pipeline.host.cpus.cpu_quota", lambda: 2.5)
    assert counted() == (3, 3, 3, 3)
    monkeypatch.setattr("pipeline.host.cpus.cpu_quota", lambda: None)
    assert counted() == (64, 64, 64, 16)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_a_process_reads_the_groups_that_it_is_in(tmp_path: Path) -> None:
    """Both versions' files in the place of the machine's own, whichever it has."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    asked = "from pipeline.host.cpus import usable_cores; print(usable_cores())"
    script = 'mount --bind "$1" /sys/fs/cgroup && exec "$2" -c "$3"'
    arguments = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, asked]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT).stdout == "1\n"
