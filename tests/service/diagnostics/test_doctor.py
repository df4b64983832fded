"""service.doctor: real troubles in real processes where this machine can have them, forged facts where it cannot."""

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT
from pipeline.command import InputError
from processes import command, run
from service.diagnostics.cgroup import Limits, limits
from service.diagnostics.checks import DEMO_CROP, Options
from service.diagnostics.data import find_data, judge_data
from service.diagnostics.disk import KEPT, Disk, find_disk, judge_disk
from service.diagnostics.environment import judge_python
from service.diagnostics.finding import Finding, blocking_checks, with_flags, worst
from service.diagnostics.gpu import (
    Docker,
    Driver,
    judge_cuda,
    judge_decoding,
    judge_docker,
    judge_driver,
    judge_nccl,
    runs_on,
)
from service.diagnostics.memory import (
    BATCH,
    Memory,
    SharedMemory,
    find_shared_memory,
    judge_memory,
    judge_shared_memory,
)
from service.diagnostics.network import Descriptors, Ports, find_ports, judge_descriptors, judge_ports
from service.diagnostics.probes import Outcome, last_words, run_probe
from service.diagnostics.processor import Cores, Processor, judge_cores, judge_processor
from service.diagnostics.software import Compiler, judge_compiler, judge_dali, judge_torch
from service.run.config import RECIPES, Run
from service.run.lock import lock_run
from service.web.listener import listen

PARAMETERS = {"paper": 60_965_224, "demo": 3_634_536}


def diagnosed(*options: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a doctor's process, on a free port unless options say otherwise."""
    port = () if "--port" in options else ("--port", "0")
    done = subprocess.run(
        [sys.executable, "-m", "service.doctor", *port, *options],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=240,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def as_json(*options: str, **environment: str) -> tuple[int, dict[str, Any]]:
    status, output, errors = diagnosed("--json", "-", *options, **environment)
    assert not errors
    return status, json.loads(output)


def of(report: dict[str, Any], check: str) -> dict[str, str]:
    """The only finding of a check."""
    (finding,) = (each for each in report["findings"] if each["check"] == check)
    return finding


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.mark.slow
def test_the_screen_of_a_machine_that_trains(shards: Path, tmp_path: Path) -> None:
    """Every check has its line, the last line is a command that can be called, and nothing is left behind."""
    (tmp_path / "tmp").mkdir()
    before = files(tmp_path, shards)
    place = "--data.shards", str(shards), "--out", str(tmp_path / "runs" / "new")
    status, screen, errors = diagnosed(*place, TMPDIR=str(tmp_path / "tmp"))
    assert (status, errors) == (0, ""), screen
    assert screen.isascii() and "\x1b" not in screen
    assert files(tmp_path, shards) == before
    rows = [line for line in screen.partition("\n\n")[0].splitlines() if line[0] != " "]
    found = {line[6:16].strip(): line[:6].strip() for line in rows}
    expected = {"python", "torch", "processor", "cores", "memory", "GPU", "compiler", "DALI", "disk", "shm", "files"}
    assert found.keys() >= expected | {"port", "data set", "reading"}
    assert set(found.values()) <= {"ok", "warn"}
    assert {found[check] for check in ("torch", "compiler", "DALI", "port", "data set", "reading")} == {"ok"}
    last = screen.splitlines()[-1]
    assert "service.train demo --data.shards" in last and "--data.crop 72" in last
    assert str(tmp_path / "runs" / "new") in last  # so that the command writes where the disk was looked at


def test_no_compiler(tmp_path: Path) -> None:
    """PATH without one; a warning would let a run fail at its first step."""
    status, screen, _ = diagnosed(PATH=str(tmp_path), CXX="")
    assert status == 1
    lines = screen.splitlines()
    row = next(number for number, line in enumerate(lines) if line[6:].startswith("compiler"))
    assert lines[row].startswith("FAIL")
    assert "first step" in lines[row + 1] and "g++" in lines[row + 2] and "--no-compile" in lines[row + 2]
    assert any("service.train demo" in line and line.endswith("--no-compile") for line in lines[row + 3 :])


def test_no_room_no_port_and_no_data_are_said_at_once_as_json(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "file"
        file.write_text("in the way")
        options = "--port", str(port), "--out", str(file / "run"), "--data.shards", str(tmp_path / "none")
        place = tmp_path / "report.json"
        status, screen, errors = diagnosed(*options, "--json", str(place), CXX="/nonexistent/g++")
    report = json.loads(place.read_text())
    assert status == 1 and not errors
    assert report.keys() == {"schema_version", "status", "findings", "command", "facts"}
    assert report["schema_version"] == 1 and report["status"] == "failed" and report["command"] == ""
    for finding in report["findings"]:
        assert finding.keys() == {"check", "status", "found", "follows", "remedy"}
        assert finding["status"] in ("ok", "warning", "failed")
        assert finding["status"] == "ok" or (finding["follows"] and finding["remedy"])
    failed = {each["check"] for each in report["findings"] if each["status"] == "failed"}
    assert failed == {"port", "disk", "data set", "compiler"}
    assert f"port {port}" in of(report, "port")["found"] and "use --port" in of(report, "port")["remedy"]
    assert "/nonexistent/g++" in of(report, "compiler")["found"]
    assert "expected shards" in of(report, "data set")["found"]
    assert screen.splitlines()[-1].endswith("Mend first: disk, data set.")  # a flag helps against the others
    assert report["facts"]["port"]["free"] != port


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_a_full_disk(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], check=True)
    try:
        with open(tmp_path / "filler", "wb") as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(2**16))
                filler.flush()
        there = find_disk(tmp_path / "run")
        assert os.listdir(tmp_path) == ["filler"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert there.full and there.tried == str(tmp_path)
    finding = judge_disk(there, PARAMETERS["paper"])
    assert finding.status == "failed" and "No space left" in finding.found and "--out" in finding.remedy
    assert blocking_checks([finding]) == ["disk"]


def test_no_shared_memory(tmp_path: Path) -> None:
    missing = find_shared_memory(tmp_path / "shm")
    finding = judge_shared_memory(missing)
    assert finding.status == "warning" and "is not there" in finding.found and "--shm-size" in finding.remedy
    several = judge_shared_memory(missing, gpus=2)
    assert several.status == "failed" and several.flags
    there = find_shared_memory(tmp_path)
    assert not there.trouble and there.free > 0 and not list(tmp_path.iterdir())
    assert judge_shared_memory(SharedMemory(path="/dev/shm", trouble="", free=64 * 2**20)).status == "ok"


def test_dali_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "__init__.py").write_text("raise ImportError('no such luck')")
    failure = subprocess.run(
        [sys.executable, "-c", "from service.diagnostics.software import find_decoder; print(find_decoder('cpu'))"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        check=True,
    ).stdout.strip()
    assert "no such luck" in failure
    finding = judge_dali("2.4.0", failure)
    assert finding.status == "failed" and "no such luck" in finding.found and finding.remedy


def test_an_environment_that_is_not_the_projects_gets_one_line() -> None:
    """Python without what pip installs."""
    answer = subprocess.run([sys.executable, "-S", "-m", "service.doctor"], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 2 and not answer.stdout
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ") and ".venv/bin/python" in line


def test_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: wrong ELF class')")
    status, report = as_json(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert status == 1 and "wrong ELF class" in of(report, "torch")["found"] and report["command"] == ""
    assert of(report, "DALI")["status"] == "ok"  # the other checks go on


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--port", "65536"), "port is 65536"), (("--json", "/nonexistent/x.json"), "expected a file in a folder")],
)
def test_wrong_calls_get_one_line(options: tuple[str, ...], words: str) -> None:
    status, output, errors = diagnosed(*options)
    assert status == 2 and not output
    assert len(errors.splitlines()) == 1 and words in errors


def driver(version: str = "580.65.06", cuda: tuple[int, int] = (13, 0)) -> Driver:
    return Driver(on_bus=1, version=version, cuda=cuda, gpus=("NVIDIA H100",), free=(80 * 10**9,))


NO_ANSWER = Driver(complaint="Driver/library version mismatch", on_bus=1)
NO_DRIVER = Driver(complaint="NVML Shared Library Not Found", on_bus=1)
NO_GPU = Driver(complaint="NVML Shared Library Not Found")


@pytest.mark.parametrize(
    ("there", "torch_cuda", "wanted", "status", "words"),
    [
        (driver(), "13.0", "auto", "ok", "driver 580.65.06, CUDA 13.0"),
        (driver("570.1", (12, 8)), "12.9", "auto", "ok", ""),  # minor version compatibility
        (
            driver("535.183.01", (12, 2)),
            "13.0",
            "auto",
            "warning",
            "driver 535 supports CUDA 12.2, this torch needs 13.0",
        ),
        (driver("535.183.01", (12, 2)), "13.0", "gpu", "failed", "580 or newer"),
        (driver("535.183.01", (12, 2)), "13.0", "gpu", "failed", "PIP_ARGS='--extra-index-url ...' for a cu12 build"),
        (driver(), "14.1", "gpu", "failed", "a newer driver"),
        (driver(), None, "auto", "warning", "built without CUDA"),
        (NO_ANSWER, "13.0", "auto", "warning", "reboot"),
        (NO_DRIVER, "13.0", "gpu", "failed", "install NVIDIA's driver"),
        (NO_GPU, "13.0", "auto", "ok", "none"),
        (NO_GPU, None, "gpu", "failed", "--device cpu"),
    ],
)
def test_drivers(there: Driver, torch_cuda: str | None, wanted: Any, status: str, words: str) -> None:
    finding = judge_driver(there, torch_cuda, wanted)
    assert finding.status == status and words in " ".join(finding[2:5])
    assert bool(finding.flags) == (status == "failed")  # auto falls back by itself


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80", "sm_90"], True),
        ((7, 5), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((10, 0), ["sm_90a", "sm_100"], True),
        ((9, 1), ["sm_90a"], False),
    ],
)
def test_architectures(capability: tuple[int, int], built_for: list[str], runs: bool) -> None:
    assert runs_on(capability, built_for) == runs
    gpu = {"name": "GPU", "capability": list(capability), "bfloat16": "", "precision": "float32"}
    finding = judge_cuda(Outcome({"gpus": [gpu], "built_for": built_for}), "auto")
    assert finding.status == ("ok" if runs else "warning")


def test_cuda_that_does_not_start_or_hides_its_gpus() -> None:
    broken = judge_cuda(Outcome({}, "no answer in 120 s"), "auto")
    assert broken.status == "failed" and broken.flags == ("--device cpu",) and "no answer" in broken.found
    hidden = judge_cuda(Outcome({"gpus": []}), "auto", hidden="")
    assert hidden.status == "warning" and "unset CUDA_VISIBLE_DEVICES" in hidden.remedy
    assert judge_decoding("ended by SIGSEGV").flags == ("--data.decoder cpu",)
    assert judge_decoding("").status == "ok"
    apart = judge_nccl(Outcome({}, "no answer in 120 s"), 2)
    assert apart.status == "failed" and apart.flags == ("CUDA_VISIBLE_DEVICES=0",)


@pytest.mark.parametrize(
    ("there", "gpus", "status", "words"),
    [
        (Docker(complaint="Is the daemon running?"), 0, "warning", "Is the daemon running?"),
        (Docker(version="28.2"), 0, "ok", "compose.cpu.yml"),
        (Docker(version="28.2", runtimes=("runc",)), 1, "warning", "nvidia-ctk"),
        (Docker(version="28.2", runtimes=("nvidia", "runc")), 1, "ok", "28.2"),
        (Docker(version="28.2", devices=("nvidia.com/gpu=0",)), 1, "ok", "28.2"),
    ],
)
def test_docker(there: Docker, gpus: int, status: str, words: str) -> None:
    finding = judge_docker(there, gpus)
    assert finding and finding.status == status and words in " ".join(finding[2:5])
    assert judge_docker(None, gpus) is None


def write(files: dict[str, str], root: Path) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    """The tightest group counts; files that can be read again are not in use."""
    write(
        {
            "membership": "0::/pod/container\n",
            "sys/pod/container/cpu.max": "max 100000\n",
            "sys/pod/cpu.max": "150000 100000\n",
            "sys/pod/container/memory.max": "4000\n",
            "sys/pod/container/memory.current": "3000\n",
            "sys/pod/container/memory.stat": "anon 2000\ninactive_file 500\n",
            "sys/pod/memory.max": "max\n",
        },
        tmp_path,
    )
    assert limits(tmp_path / "sys", tmp_path / "membership") == Limits(1.5, 4000, 1500)
    (tmp_path / "sys/pod/cpu.max").write_text("max 100000\n")
    assert limits(tmp_path / "sys", tmp_path / "membership").cores is None


def test_cgroups_of_version_1_whose_path_is_the_hosts(tmp_path: Path) -> None:
    write(
        {
            "membership": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/cpu/cpu.cfs_period_us": "100000\n",
            "sys/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        tmp_path,
    )
    assert limits(tmp_path / "sys", tmp_path / "membership") == Limits(2.0, None, None)
    (tmp_path / "sys/cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert limits(tmp_path / "sys", tmp_path / "membership") == Limits(None, None, None)
    assert limits(tmp_path / "none", tmp_path / "none") == Limits(None, None, None)


def cores(**facts: Any) -> Finding:
    base: dict[str, Any] = {"cores": 8, "machine": 8, "quota": None, "omp_num_threads": None, "torch_threads": 8}
    return judge_cores(Cores(**base | facts))


def memory(available: int, **facts: Any) -> Finding:
    return judge_memory(Memory(total=64 * 10**9, available=available, parameters=PARAMETERS, **facts))


def ports(troubles: dict[int, str], free: int | None, host: str = "127.0.0.1") -> Finding:
    return judge_ports(Ports(host=host, port=8000, troubles=troubles, free=free))


def disk(**facts: Any) -> Finding:
    base: dict[str, Any] = {"out": "run", "tried": "/data", "free": 10**12, "bytes_per_second": 1e8}
    return judge_disk(Disk(**base | facts), PARAMETERS["paper"])


def processor(**facts: str) -> Finding:
    base = {"name": "EPYC", "machine": "x86_64", "instructions": "AVX2", "precision": "float32"}
    return judge_processor(Processor(**base | facts))


def compiler(complaint: str, cpp: str = "g++", c: str = "/usr/bin/gcc", on_gpu: bool = False) -> Finding:
    return judge_compiler(Compiler(cpp=cpp, complaint=complaint, c=c, folder="/cache"), on_gpu)


@pytest.mark.parametrize(
    ("judge", "status", "words"),
    [
        (lambda: cores(), "ok", "8"),
        (lambda: cores(torch_threads=4), "ok", "4 threads"),  # two hardware threads a core
        (lambda: cores(quota=2.0, torch_threads=2), "ok", "8; a cgroup gives the time of 2; torch computes in 2 thr"),
        (lambda: cores(quota=0.5, torch_threads=1), "ok", "torch computes in 1 thread"),
        (lambda: cores(quota=1.5), "warning", "OMP_NUM_THREADS=2"),  # as many as an operator has set
        (lambda: cores(quota=6.0, torch_threads=2, omp_num_threads="2"), "warning", "unset OMP_NUM_THREADS"),
        (lambda: cores(quota=2.0, torch_threads=None), "ok", "a cgroup gives the time of 2"),
        (lambda: cores(quota=8.0), "ok", "8"),
        (lambda: cores(torch_threads=16), "warning", "OMP_NUM_THREADS=8"),
        (lambda: cores(torch_threads=1, omp_num_threads="1"), "warning", "unset OMP_NUM_THREADS"),
        (lambda: memory(16 * 10**9), "ok", "4.4 GB"),
        (lambda: memory(3 * 10**9), "warning", "--batch-size 32"),
        (lambda: memory(2 * 10**9), "warning", "use demo"),
        (lambda: memory(5 * 10**8), "failed", "demo"),
        (lambda: memory(16 * 10**9, limit=2 * 10**9, limit_left=5 * 10**8), "failed", "cgroup"),
        (lambda: judge_descriptors(Descriptors(soft=1024, hard=4096)), "ok", "1,024"),
        (lambda: judge_descriptors(Descriptors(soft=256, hard=256)), "warning", "nofile"),
        (
            lambda: judge_descriptors(Descriptors(soft=32, hard=4096)),
            "failed",
            "ulimit -n 4096",
        ),
        (lambda: judge_descriptors(Descriptors(soft=128, hard=4096)), "warning", "ulimit -n"),
        (lambda: ports({}, None), "ok", "free"),
        (lambda: ports({8000: "Address already in use"}, 8001), "failed", "use --port 8001"),
        (lambda: ports({8000: "Cannot assign requested address"}, None, "192.0.2.1"), "failed", "--host 127.0.0.1"),
        (lambda: disk(), "ok", "100 MB/s"),
        (lambda: disk(free=10**9), "warning", "--keep-checkpoints 2"),
        (lambda: disk(free=10**8), "failed", "488 MB"),
        (lambda: disk(bytes_per_second=1e6), "warning", "488 s"),
        (lambda: disk(files_left=7), "warning", "df -i"),
        (lambda: disk(unlockable="Function not implemented"), "failed", "noflock"),
        (lambda: disk(unflushed=True), "warning", "flushed"),
        (lambda: disk(busy=True), "failed", "another --out"),
        (lambda: disk(trouble="Read-only file system"), "failed", "Read-only file system"),
        (lambda: processor(), "ok", "--model.precision auto is float32"),
        (lambda: processor(instructions="DEFAULT"), "warning", "AVX2"),
        (lambda: processor(machine="aarch64", instructions="DEFAULT"), "ok", "EPYC"),
        (lambda: compiler(""), "ok", "OpenMP"),
        (lambda: compiler("fatal error: Python.h: No such file"), "failed", "Python's headers"),
        (lambda: compiler("trial.so: failed to map segment from shared object"), "failed", "noexec"),
        (lambda: compiler("no C++ compiler", cpp=""), "failed", "install g++"),
        (lambda: compiler("", c="", on_gpu=True), "failed", "Triton"),
        (lambda: judge_torch(Outcome({"version": "2.10.1", "cuda": None})), "failed", "2.11 or newer"),
        (lambda: judge_torch(Outcome({"version": "2.13.0+cu130", "cuda": "13.0"})), "ok", "CUDA 13.0"),
        (lambda: judge_python((3, 10, 1), "python"), "failed", "3.11"),
    ],
)
def test_judgements(judge: Callable[[], Finding], status: str, words: str) -> None:
    finding = judge()
    assert finding.status == status and words in " ".join(finding[2:5])
    assert status == "ok" or (finding.follows and finding.remedy)
    assert all(flag.split(" ")[0] in finding.remedy + finding.found for flag in finding.flags)  # each is said, too


def test_data_sets_at_a_glance(shards: Path, tmp_path: Path) -> None:
    sound = find_data(shards)
    assert sound.pictures == 30 and sound.classes == 3 and sound.side == 72
    assert judge_data(sound).status == "ok"
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    (copy / "train/000000.tar").write_bytes(b"short")
    (copy / "mean.npy").unlink()
    finding = judge_data(find_data(copy))
    assert finding.status == "failed" and "mean.npy is missing, and 1 more" in finding.follows
    small = judge_data(replace(sound, side=50))
    assert small.status == "failed" and "--size" in small.remedy
    (copy / "dataset.json").write_text("{}")
    assert judge_data(find_data(copy)).status == "failed"
    assert run_probe("read", str(copy), "72", "cpu", seconds=60).why  # in a process of its own: this one goes on


def test_a_folder_that_a_worker_holds_is_told_apart(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        assert find_disk(tmp_path).busy
    assert not find_disk(tmp_path).busy
    with lock_run(tmp_path):  # the doctor holds nothing
        pass


def test_ports_are_let_go() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = find_ports("127.0.0.1", port)
        assert found.troubles == {port: os.strerror(98)} and found.free != port
    assert not find_ports("127.0.0.1", port).troubles
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.slow
def test_trials_end_in_time_and_say_why() -> None:
    assert run_probe("exchange", "cpu", "2", seconds=60).value == {"ranks": 2}  # as NCCL is tried, by gloo
    assert run_probe("load", "/nonexistent.so", seconds=60).why.startswith("OSError")
    assert run_probe("torch", seconds=0.01).why == "no answer in 0.01 s"
    assert last_words("", -signal.SIGSEGV) == "ended by SIGSEGV"
    assert last_words("one\ntwo\n\n", 1) == "two" and last_words("", 3) == "exit status 3"


def test_commands_take_what_findings_want_once() -> None:
    findings = [
        Finding("warning", "cores", "", flags=("OMP_NUM_THREADS=2", "--data.threads 2")),
        Finding("failed", "port", "", flags=("--port 8001",)),
        Finding("failed", "again", "", flags=("--port 8001",)),
    ]
    line = ["OMP_NUM_THREADS=2", "python", "--data.threads", "2", "--port", "8001"]
    assert with_flags(["python"], findings) == line
    assert worst(findings) == "failed" and not blocking_checks(findings) and worst([]) == "ok"


def test_defaults_are_service_trains() -> None:
    """The doctor cannot import them: torch and DALI may be missing."""
    ours, theirs = Options(), Run()
    for name in ("out", "host", "port", "device"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert theirs.keep_checkpoints == KEPT
    demo = RECIPES["demo"][1]
    assert (demo.data.crop, demo.batch_size) == (DEMO_CROP, BATCH["demo"])
    assert theirs.batch_size == BATCH["paper"]


def test_what_the_doctor_imports_first_comes_with_python() -> None:
    tree = ast.parse((ROOT / "service/doctor.py").read_text())
    names = [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
    names += [alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names]
    assert all(name.split(".")[0] in sys.stdlib_module_names or name == "pipeline.command" for name in names)


WITH_LITTLE_TO_COMPILE = """
import torch
from pipeline.command import run_command
from service import train
from service.training import worker

worker.compiled_train_step = lambda: torch.compile(lambda *parts: torch.ones(8).sin())
run_command(train.main)
"""


@pytest.mark.slow
def test_a_run_without_a_compiler_ends_with_one_line(shards: Path, tmp_path: Path) -> None:
    """The compiler is missed by the first thing that is compiled; that need not be the whole step."""
    arguments = command(shards, tmp_path / "run", "--max-steps", "1")
    arguments = [
        arguments[0],
        "-c",
        WITH_LITTLE_TO_COMPILE,
        *(each for each in arguments[3:] if each != "--no-compile"),
    ]
    status, output = run(arguments, CXX="/nonexistent/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert status == 2, output
    line = output.splitlines()[-1]
    assert line.startswith("error: the step cannot be compiled") and "Traceback" not in output
    assert "--no-compile" in line and "python -m service.doctor" in line


def test_starts_that_fail_for_the_machine_name_the_doctor(shards: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(InputError, match=r"service\.doctor"):
            listen("127.0.0.1", taken.getsockname()[1])
