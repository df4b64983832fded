"""An environment of its own for each peer: a venv with pinned packages, made once.

    python benchmarks/peers/environments.py [--environments build/peers] [--only ffcv spdl]

FFCV 1.0.2 has no wheel and is compiled; with numpy 2 and this torch it builds and runs on Python 3.11 and 3.12. What
pip cannot bring is named by `SYSTEM` and looked for first. `run.py` calls this for the sides that it is asked for.
"""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import tyro

from pipeline.command import InputError, run_command

ENVIRONMENTS: Final = Path("build/peers")
TORCH: Final = ("torch==2.13.0", "numpy==2.4.6", "pillow==13.0.0")
# torchvision is built against the CUDA build of torch, which `===` insists on where pip also finds another.
TORCHVISION: Final = ("torch===2.13.0", "torchvision==0.28.0", "pillow==13.0.0")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a peer needs."""

    packages: tuple[str, ...]
    compiled: str = ""  # a package that is built here, against the others
    system: tuple[str, ...] = ()  # names in SYSTEM


# Debian's package -> the command that succeeds where it is installed
SYSTEM: Final = {
    "build-essential": ["g++", "--version"],
    "pkg-config": ["pkg-config", "--version"],
    "libopencv-dev": ["pkg-config", "--exists", "opencv4"],
    "libturbojpeg0-dev": ["pkg-config", "--exists", "libturbojpeg"],
    "ffmpeg": ["ffmpeg", "-version"],
}
NEEDED: Final = {
    "torchvision": Environment(packages=(*TORCHVISION, "numpy==2.4.6")),
    "webdataset": Environment(packages=(*TORCHVISION, "numpy==2.4.6", "webdataset==1.0.2")),
    "ffcv": Environment(
        packages=(*TORCH, "setuptools==79.0.1", "wheel==0.45.1", "opencv-python-headless==5.0.0.93", "numba==0.68.1"),
        compiled="ffcv==1.0.2",
        system=("build-essential", "pkg-config", "libopencv-dev", "libturbojpeg0-dev"),
    ),
    "spdl": Environment(packages=(*TORCH, "spdl==0.8.0"), system=("ffmpeg",)),
    "streaming": Environment(packages=(*TORCHVISION, "numpy==2.1.3", "mosaicml-streaming==0.13.0")),
    "litdata": Environment(packages=(*TORCHVISION, "numpy==2.4.6", "litdata==0.2.76")),
    "dali": Environment(packages=(*TORCH, "nvidia-dali-cuda120==2.4.0")),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which environments to make."""

    environments: Path = ENVIRONMENTS
    """Folder that they are made in."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = tuple(NEEDED)
    """Names of those to make."""
    python: Path = Path(sys.executable)
    """Python that they get: 3.11 or 3.12, because FFCV's dependencies have no wheels for others."""


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    for name in options.only:
        print(f"{name}: {made(name, options.environments, options.python)}", flush=True)
    return 0


def made(name: str, folder: Path, python: Path = Path(sys.executable)) -> Path:
    """The interpreter of a peer's environment, which is made first where it is not there or has other pins."""
    if name not in NEEDED:
        raise InputError(f"there is no peer {name!r}, expected one of: {', '.join(NEEDED)}")
    environment = NEEDED[name]
    place = (folder / name).absolute()
    interpreter, stamp = place / "bin/python", place / "pins"
    pins = hashlib.sha256(repr(environment).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == pins:
        return interpreter
    require(name, environment.system)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([python, "-m", "venv", place], check=True)
    install(interpreter, *environment.packages)
    if environment.compiled:
        install(interpreter, "--no-build-isolation", environment.compiled)
    stamp.write_text(pins)
    return interpreter


def require(name: str, packages: tuple[str, ...]) -> None:
    """InputError unless these Debian packages, or what they bring, are there."""
    missing = [package for package in packages if not succeeds(SYSTEM[package])]
    if missing:
        raise InputError(
            f"{name} needs {', '.join(missing)} to be built, found none; "
            f"apt-get install --no-install-recommends {' '.join(packages)}, or leave {name} out"
        )


def succeeds(command: list[str]) -> bool:
    """Whether a command exists and ends well."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def install(interpreter: Path, *arguments: str) -> None:
    """pip install, quietly; its own words and an InputError where it fails."""
    command = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode:
        raise InputError(f"pip could not install {' '.join(arguments)}, expected it to; see its words above")


if __name__ == "__main__":
    run_command(main)
