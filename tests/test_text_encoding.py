"""Text files are UTF-8 in every locale: whoever opens one says so."""

import ast
from collections.abc import Iterator

import pytest

from paths import ROOT

FILES = [path for package in ("pipeline", "model", "service") for path in sorted((ROOT / package).rglob("*.py"))]


def left_to_the_locale(source: str) -> Iterator[int]:
    """The lines that open a text file without naming an encoding."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            continue
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            yield call.lineno
        if isinstance(call.func, ast.Name) and call.func.id == "open":
            modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
            if not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes):
                yield call.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_to_the_locale(path) -> None:
    assert list(left_to_the_locale(path.read_text(encoding="utf-8"))) == []


def test_it_would_be_found() -> None:
    wrong = "open(a)\nopen(a, 'w')\np.read_text()\np.write_text(b)\nopen(a, mode='r')\n"
    assert list(left_to_the_locale(wrong)) == [1, 2, 3, 4, 5]
    right = "open(a, 'rb')\nopen(a, encoding='utf-8')\np.read_text(encoding='utf-8')\np.read_bytes()\n"
    assert list(left_to_the_locale(right)) == []
