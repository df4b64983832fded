"""The status page as a file: whole, small, and with nothing in it that its policy would refuse."""

import re
from html.parser import HTMLParser

from page_server import PAGE


class Tags(HTMLParser):
    """Collects the start tags, and what is wrong in how they are closed."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"{tag} at {self.getpos()}")


def test_the_file_is_small_whole_and_well_formed() -> None:
    text = PAGE.read_text()
    tags = Tags()
    tags.feed(text)
    assert (tags.wrong, tags.open) == ([], [])
    assert not [name for name, _ in tags.attributes if name == "style" or name.startswith("on")]
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= set(ids)
    assert set(re.findall(r"https?://[^'\" ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write|\beval\b|localStorage", text)
    assert len(text.encode()) < 61 * 1024
