"""Who may import whom, read from the source: the layers of DESIGN."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("pipeline", "model", "service") for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file names in its imports, whole dotted names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imported(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    package = path.parent.name
    forbidden = {"pipeline": ("model", "service"), "model": ("pipeline", "service"), "service": ()}[package]
    assert not [name for name in forbidden if uses(path, name)]
    if path.name not in ("loader.py", "probe.py"):
        assert not uses(path, "nvidia")
    if path.parent.name == "model":
        assert not [name for name in ("os", "time", "pathlib", "nvidia") if uses(path, name)]


def test_sharding_and_sample_pictures_need_neither_torch_nor_dali() -> None:
    code = (
        "import sys, pipeline.shard, pipeline.sample; print([m for m in ('torch', 'nvidia.dali') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


COMMANDS = (
    "pipeline.sample",
    "pipeline.shard",
    "pipeline.verify",
    "service.doctor",
    "service.launch",
    "service.train",
    "service.visualise",
)


ASKED_IN_TURN = """
import runpy, sys

for module in sys.argv[1:]:
    print("asked", flush=True)
    sys.modules.pop(module, None)  # which another command has imported
    sys.argv[1:] = ["--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, f"{module}: {end.code}"
"""


def test_every_command_has_help() -> None:
    """Asked by one process, which imports torch once."""
    answer = subprocess.run([sys.executable, "-c", ASKED_IN_TURN, *COMMANDS], capture_output=True, text=True)
    assert answer.returncode == 0 and not answer.stderr
    _, *helps = answer.stdout.split("asked\n")
    assert len(helps) == len(COMMANDS)
    for module, help in zip(COMMANDS, helps, strict=True):
        assert "usage:" in help and module.rpartition(".")[2] in help.partition("\n\n")[0]
