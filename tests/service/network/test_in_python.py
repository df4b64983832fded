"""The programs in the README and in docs/networks.md, run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from networks import saved_network
from paths import ROOT
from pictures import encoded, photo

SQUARES = "import numpy as np\nsquares = np.zeros((2, 72, 72, 3), np.uint8)\n"


@pytest.mark.parametrize("document", ["README.md", "docs/networks.md"])
def test_the_program_runs(document: str, shards: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)
    assert "from service import load" in program and len(program.splitlines()) <= 10
    saved_network(tmp_path / "runs/paper", shards)
    (tmp_path / "dog.jpg").write_bytes(encoded(photo(1, 90, 80)))
    (tmp_path / "cat.png").write_bytes(encoded(photo(2, 80, 90), "PNG"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SQUARES + program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert (first[0], second[0]) == ("dog.jpg", "cat.png")
    assert first[1] in "abc" and first[2].endswith("%")
