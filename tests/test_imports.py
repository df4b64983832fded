"""Who may import whom, read from the source: docs/architecture.md has the same rules in words."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from paths import ROOT

MOST_FILES = 12  # of a room, beside its __init__.py

# Rooms from the top down: a file imports from its own room and from those below. A package's own name stands for the
# files at its top: the commands, which nobody imports, and what all its rooms share.
ROOMS = (
    "service commands",
    "service.ablation",
    "service.diagnostics",
    "service.web",
    "service.evaluation",
    "service.retrieval",
    "service.faults",
    "service.training",
    "service.telemetry",
    "service.results",
    "service.network",
    "service.run",
    "model",
    "model.layers",
    "pipeline commands",
    "pipeline.check",
    "pipeline.write",
    "pipeline.measure",
    "pipeline.inspection",
    "pipeline.load",
    "pipeline.reading",
    "pipeline.synthetic",
    "pipeline.source",
    "pipeline.picture",
    "pipeline.executors",
    "pipeline",
    "pipeline.host",
)
COMMANDS = (
    "pipeline.bench",
    "pipeline.look",
    "pipeline.sample",
    "pipeline.shard",
    "pipeline.verify",
    "service.ablate",
    "service.compare",
    "service.doctor",
    "service.evaluate",
    "service.export",
    "service.launch",
    "service.predict",
    "service.retrieve",
    "service.train",
    "service.visualise",
)
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("pipeline", "model", "service")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules that a file names in its imports, anywhere in it, whole dotted names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path} imports relatively"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def uses(module: str, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imported(FILES[module]))


def room(module: str) -> str:
    package = module.rpartition(".")[0]
    return f"{package} commands" if module in COMMANDS else package


def needed(module: str) -> set[str]:
    """The project's own modules that a module imports."""
    return set(FILES) & imported(FILES[module])


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    place = ROOMS.index(room(module))
    assert not [other for other in needed(module) if other in COMMANDS]
    assert not [other for other in needed(module) if ROOMS.index(room(other)) < place]
    if module.startswith("model."):
        assert not uses(module, "pipeline")
        assert not [name for name in ("os", "time", "pathlib") if uses(module, name)]


def test_no_imports_go_in_a_circle() -> None:
    TopologicalSorter({module: needed(module) for module in FILES}).prepare()  # raises CycleError, which names them


def test_a_room_has_a_dozen_files_at_most_and_says_what_each_is() -> None:
    for folder in {path.parent for path in FILES.values()}:
        files = {path.name for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"}
        assert len(files) <= MOST_FILES, folder
        described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        lines = set(re.findall(r"^ *(\w+\.(?:py|html))  ", described, re.M))
        assert lines == files, folder


def test_some_libraries_are_each_known_to_few() -> None:
    assert {module for module in FILES if uses(module, "matplotlib")} == {
        "pipeline.measure.chart",
        "service.ablation.report",
        "service.evaluation.reliability",
        "service.network.panels",
        "service.results.curves",
        "service.results.filter_indexes",
    }
    assert {module for module in FILES if uses(module, "nvidia")} == {
        "pipeline.load.graph",
        "pipeline.load.feed",
        "pipeline.load.batch_loader",
        "pipeline.load.probe",
    }
    assert {module for module in FILES if uses(module, "prometheus_client")} == {
        "pipeline.write.metrics",
        "service.telemetry.metrics",
        "service.train",  # which makes the registry
    }


def test_sharding_and_sample_pictures_need_neither_torch_nor_dali() -> None:
    code = (
        "import sys, pipeline.shard, pipeline.sample; print([m for m in ('torch', 'nvidia.dali') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


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
