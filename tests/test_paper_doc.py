"""docs/paper.md names what there is: tests, modules, options, headings of other pages."""

import re

import pytest

from paths import ROOT

TEXT = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
OPTIONS = (ROOT / "service/run/config.py", ROOT / "model/alexnet.py", ROOT / "model/optim.py", ROOT / "pipeline/load")


def slug(heading: str) -> str:
    """The anchor that a heading has."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_its_tests_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TEXT)
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_its_modules_and_files_are_there() -> None:
    for path in re.findall(r"`((?:model|pipeline|service)/[\w/]+(?:\.py)?)/?`", TEXT):
        assert (ROOT / path).exists(), path
    for dotted in re.findall(r"`((?:model|pipeline|service)\.\w+)[ `.]", TEXT):
        assert list(ROOT.glob(dotted.replace(".", "/") + "*")), dotted


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w.]*#[\w-]+|\w+\.md)\)", TEXT))))
def test_its_links_lead_somewhere(link: str) -> None:
    file, _, anchor = link.partition("#")
    page = (ROOT / "docs" / file).read_text(encoding="utf-8") if file else TEXT
    headings = [slug(heading) for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)]
    assert not anchor or anchor in headings, link


def test_its_options_are_there() -> None:
    source = "".join(
        file.read_text(encoding="utf-8")
        for place in OPTIONS
        for file in (place.glob("*.py") if place.is_dir() else [place])
    )
    for option in re.findall(r"--(?:model|optim|data)\.([a-z0-9.-]+)", TEXT):
        field = option.rpartition(".")[2].removeprefix("no-").replace("-", "_")
        assert re.search(rf"^    {field}: ", source, re.MULTILINE), option
