"""What service.doctor looks at in torch, its compiler and DALI."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pipeline.load.probe import decoder_failure
from service.diagnostics.disk import existing_parent
from service.diagnostics.environment import variables
from service.diagnostics.finding import Finding
from service.diagnostics.probes import LOAD_SECONDS, Outcome, last_words, run_probe

OLDEST_TORCH: Final = (2, 11)
COMPILE_SECONDS: Final = 60.0
REINSTALL: Final = "make clean, then make demo; or pip install -c constraints.txt -e ."

# Like what Inductor generates: Python's headers, OpenMP, a shared object.
SOURCE: Final = """\
#include <Python.h>
#include <omp.h>
#include <vector>
extern "C" long total(long n) {
    std::vector<long> numbers(n);
    long sum = 0;
    #pragma omp parallel for reduction(+:sum)
    for (long i = 0; i < n; i++) { numbers[i] = i; sum += numbers[i]; }
    return sum + 0 * omp_get_max_threads();
}
"""


def judge_torch(outcome: Outcome) -> Finding:
    """outcome: of probes.probe_torch."""
    if outcome.why:
        return Finding("failed", "torch", f"cannot be used ({outcome.why})", "nothing trains without it", REINSTALL)
    version, cuda = outcome.value["version"], outcome.value["cuda"]
    found = f"{version}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Finding("failed", "torch", found, f"{oldest} or newer is needed", REINSTALL)
    return Finding("ok", "torch", found)


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """The compilers that torch.compile would use; empty where there is none, or no complaint."""

    cpp: str  # the command that Inductor takes
    version: str = ""
    folder: str = ""  # the cache of what is compiled
    complaint: str = ""  # why it does not compile, or what it compiled does not load
    c: str = ""  # the command that Triton takes, for GPUs


def find_compiler(torch: dict[str, Any]) -> Compiler:
    """Compile and load a few lines where Inductor would. torch: what probes.probe_torch returned."""
    cpp, complaint = torch.get("compiler", ""), torch.get("complaint", "torch does not answer")
    folder = Path(variables().get("TORCHINDUCTOR_CACHE_DIR") or torch.get("cache") or tempfile.gettempdir())
    named = variables().get("CC")
    c = shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")
    there = {"cpp": cpp, "folder": str(folder), "c": c or ""}
    if complaint:
        return Compiler(**there, complaint=complaint)
    return Compiler(**there, version=version_of(cpp), complaint=compile_failure(cpp, folder))


def version_of(cpp: str) -> str:
    """A compiler's first line about itself; empty where it says nothing."""
    try:
        said = subprocess.run(
            [cpp, "--version"], capture_output=True, text=True, errors="replace", timeout=LOAD_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (said.stdout.strip().splitlines() or [""])[0]


def compile_failure(cpp: str, folder: Path) -> str:
    """Why a few lines do not compile or load in a folder, which need not exist; empty if they do. Leaves no files."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing_parent(folder)) as place:
            source, library = Path(place) / "trial.cpp", Path(place) / "trial.so"
            source.write_text(SOURCE, encoding="utf-8")
            headers = sysconfig.get_path("include")
            command = [cpp, "-shared", "-fPIC", "-fopenmp", f"-I{headers}", str(source), "-o", str(library), "-lgomp"]
            made = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS)
            if made.returncode:
                errors = [line for line in made.stderr.splitlines() if "error" in line]
                return (errors[0] if errors else last_words(made.stderr, made.returncode)).replace(f"{place}/", "")
            loaded = run_probe("load", str(library), seconds=LOAD_SECONDS)
            return loaded.why.replace(f"{place}/", "") if loaded.value.get("sum") != 499_500 else ""
    except subprocess.TimeoutExpired:
        return f"no answer in {COMPILE_SECONDS:g} s"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"


def judge_compiler(compiler: Compiler, on_gpu: bool = False) -> Finding:
    """on_gpu: training uses Triton's kernels, whose launchers need a C compiler."""
    flags = ("--no-compile",)
    remedy = f"{_compilers_remedy(compiler)}; or use --no-compile"
    if on_gpu and not compiler.c:
        found = "no C compiler, which Triton needs"
        return Finding("failed", "compiler", found, "torch.compile fails at the first step", remedy, flags)
    if compiler.complaint:
        found = f"{compiler.cpp} does not do: {compiler.complaint}" if compiler.cpp else compiler.complaint
        follows = "torch.compile fails at the first step"
        return Finding("failed", "compiler", found, follows, remedy, flags)
    return Finding("ok", "compiler", f"{compiler.version or compiler.cpp}; compiles and loads, with OpenMP")


def _compilers_remedy(there: Compiler) -> str:
    headers = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    for sign, remedy in (
        ("Python.h", f"install Python's headers ({headers} or python3-dev)"),
        ("omp", "install the compiler's OpenMP (libgomp, libomp-dev)"),
        ("failed to map", "let TORCHINDUCTOR_CACHE_DIR name a folder that is not mounted noexec"),
        ("No space left", f"make room in {there.folder}, or let TORCHINDUCTOR_CACHE_DIR name another folder"),
        (f"{there.folder}", "let TORCHINDUCTOR_CACHE_DIR name a folder that can be written"),
    ):
        if sign and there.cpp and sign in there.complaint:
            return remedy
    return "install g++ (apt-get install g++), or name a compiler in CXX"


def judge_dali(version: str, failure: str) -> Finding:
    """failure: what find_decoder returned for the CPU."""
    if failure:
        found = f"{version or 'not installed'}: a picture is not decoded ({failure})"
        return Finding("failed", "DALI", found, "no batch is read", REINSTALL)
    return Finding("ok", "DALI", f"{version}; decodes JPEG")


def dali_version() -> str:
    """The version of the installed package, for CUDA 13 or 12; empty where there is none."""
    for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return ""


def find_decoder(device: str) -> str:
    """Why JPEG is not decoded on `cpu` or `gpu`; empty where it is."""
    return decoder_failure("gpu" if device == "gpu" else "cpu")
