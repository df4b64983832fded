"""Checks of the Python environment: the interpreter, and the few environment variables that matter."""

import os
from typing import Final

from service.diagnostics.finding import Finding

OLDEST_PYTHON: Final = (3, 11)
VARIABLES: Final = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_CACHE_DIR", "CC")


def variables() -> dict[str, str]:
    """The few environment variables that affect the checks; no other code of the doctor reads any."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def judge_python(version: tuple[int, ...], executable: str) -> Finding:
    """version: as sys.version_info has it."""
    found = f"{'.'.join(map(str, version[:3]))}, {executable}"
    if version[:2] < OLDEST_PYTHON:
        return Finding("failed", "python", found, "3.11 or newer is needed", "make demo PYTHON=python3.11")
    return Finding("ok", "python", found)
