"""docs/library.md's training loop as it stands there, but for names and numbers: interrupted, resumed, on two ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paths import ROOT
from pipeline.manifest import load_dataset
from processes import PATIENCE

TEXT = (ROOT / "docs/library.md").read_text()

# Ends the process, as if the plug was pulled, after as many checkpoints as its second argument says, and names at the
# end libraries that users of the loader should not need. A torchvision for CUDA has operators that do not load beside a
# torch for the CPU, and registering their shapes fails there; no network needs them.
RUNNER = """
import os, runpy, sys
from types import ModuleType

sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
checkpoints, replace = int(sys.argv[2]), os.replace

def counted(*paths):
    global checkpoints
    replace(*paths)
    checkpoints -= 1
    if not checkpoints:
        os._exit(9)

os.replace = counted
runpy.run_path(sys.argv[1], run_name="__main__")
needless = "fastapi uvicorn prometheus_client tyro matplotlib safetensors webdataset service model".split()
print("needless:", [name for name in needless if name in sys.modules])
"""


def test_the_readmes_loop_is_an_epoch(shards: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(from pipeline import .*?)```", readme, re.S)
    for written, instead in {'"shards/imagenet"': f"{str(shards)!r}, crop=32", "...": "print(len(labels))"}.items():
        assert program.count(written) == 1
        program = program.replace(written, instead)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sum(map(int, done.stdout.split())) == load_dataset(shards).splits["train"].samples


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)
    return found


def made_small(script: str, shards: Path) -> str:
    """The script for a tiny data set and one epoch, of three steps."""
    small = {
        '"shards/imagenet"': f"{str(shards)!r}, crop=32, threads=1",
        "batch_size=256": "batch_size=8",
        "step % 1000": "step % 2",
        "train.epoch < 90": "train.epoch < 1",
    }
    for written, instead in small.items():
        assert written in script
        script = script.replace(written, instead)
    return script


def patched(script: str, diff: str) -> str:
    """The script with a diff's lines taken out and put in; its other lines say where."""
    lines, at = script.splitlines(), 0
    for line in diff.splitlines():
        if line[0] == "+":
            lines.insert(at, line[1:])
            at += 1
        else:
            at = lines.index(line[1:], at)
            if line[0] == "-":
                del lines[at]
            else:
                at += 1
    return "\n".join(lines) + "\n"


def start(folder: Path, script: str, checkpoints: int = 0, ranks: int = 1) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "resnet.py").write_text(script)
    (folder / "runner.py").write_text(RUNNER)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, "runner.py", "resnet.py", str(checkpoints)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe)


def finished(process: subprocess.Popen[str], status: int = 0) -> str:
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, errors
    return said


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "resnet.pt")


def test_the_documents_loop_resumes_exactly(shards: Path, tmp_path: Path) -> None:
    script = made_small(block("python"), shards)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    both = start(whole, script), start(cut, script, checkpoints=1)
    said = finished(both[0])
    assert re.fullmatch(r"epoch 1: .*% right\nneedless: \[\]\n", said)
    assert not finished(both[1], status=9)
    assert checkpoint(cut)["train"]["position"] == 2 * 8
    assert finished(start(cut, script)) == said  # by the third step alone
    expected, found = checkpoint(whole), checkpoint(cut)
    assert found["train"] == expected["train"] and found["train"]["position"] == 30
    assert all(torch.equal(found["model"][name], value) for name, value in expected["model"].items())


@pytest.mark.slow
def test_the_documents_loop_runs_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    script = made_small(patched(block("python"), block("diff")), shards)
    said = finished(start(tmp_path / "ranks", script, ranks=2))
    assert said.count("epoch 1: ") == 2
    assert checkpoint(tmp_path / "ranks")["train"]["position"] == 30


def test_nothing_of_the_pipeline_uses_torch_distributed() -> None:
    assert not [path for path in (ROOT / "pipeline").rglob("*.py") if "torch.distributed" in path.read_text()]
