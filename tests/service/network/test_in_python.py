"""The programs in the README and in docs/networks.md, run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

from networks import saved_network
from paths import ROOT
from pictures import encoded, photo

SQUARES = "import numpy as np\nsquares = np.zeros((2, 72, 72, 3), np.uint8)\n"


def test_the_programs_run(shards: Path, tmp_path: Path) -> None:
    texts = [(ROOT / document).read_text() for document in ("README.md", "docs/networks.md")]
    programs = [re.findall(r"```python\n(from service import load\n.*?)```", text, re.S) for text in texts]
    assert [len(found) for found in programs] == [1, 1]
    assert all(found[0].count("\n") <= 10 for found in programs)
    saved_network(tmp_path / "runs/paper", shards)
    (tmp_path / "dog.jpg").write_bytes(encoded(photo(1, 90, 80)))
    (tmp_path / "cat.png").write_bytes(encoded(photo(2, 80, 90), "PNG"))
    words = [sys.executable, "-W", "error", "-c", SQUARES + "".join(found[0] for found in programs)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["dog.jpg", "cat.png"] * 2 and lines[:2] == lines[2:]
    assert all(line[1] in "abc" and line[2].endswith("%") for line in lines)
