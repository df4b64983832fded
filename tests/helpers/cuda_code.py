"""benchmarks/cuda_code.py, run in its own environment; tests that use it are skipped where that is not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from paths import ROOT

ENVIRONMENT: Final = Path(os.environ.get("CUDA_CODE_ENV", "~/.cache/cuda-code")).expanduser()
needs_environment: Final = pytest.mark.skipif(
    not (ENVIRONMENT / "bin/python").exists(),
    reason=f"{ENVIRONMENT} has no CUDA build of torch: benchmarks/cuda_code.py --help says how to make it",
)


def figures(out: Path, *options: str) -> dict[str, Any]:
    """What `--json` says; about a minute and a half on one core."""
    command = [sys.executable, str(ROOT / "benchmarks/cuda_code.py"), "--env", str(ENVIRONMENT), "--json", str(out)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())
