"""The dashboard's JSON as tests look at it, and variables put in as Grafana puts them in."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from paths import DOCKER

BOARD: Final = DOCKER / "grafana" / "dashboards" / "training.json"


class Query(NamedTuple):
    """One of a panel's queries, or an annotation's."""

    where: str  # unique, for people
    expr: str
    instant: bool


def board() -> dict[str, Any]:
    """The dashboard that Grafana is given."""
    return json.loads(BOARD.read_text())


def panels(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All panels but rows, those of folded rows too."""
    return [
        each
        for panel in found["panels"]
        for each in (panels({"panels": panel.get("panels", ())}) if panel["type"] == "row" else [panel])
    ]


def queries(found: Mapping[str, Any]) -> list[Query]:
    """Every query of every panel and annotation."""
    of_panels = [
        Query(f"{panel['id']} {panel['title']} {target['refId']}", target["expr"], target["instant"])
        for panel in panels(found)
        for target in panel["targets"]
    ]
    marks = found["annotations"]["list"]
    return of_panels + [Query(f"annotation {mark['name']}", mark["target"]["expr"], False) for mark in marks]


def chosen(value: str) -> str:
    """A variable's chosen value within a matcher: Grafana escapes it as a regular expression, and that as a string."""
    return re.sub(r"([\\^$*+?.()|{}\[\]/])", r"\\\\\1", value)


def filled(expr: str, variables: Mapping[str, str]) -> str:
    """A query with its variables put in; what is not known stays, as $1 of label_replace must."""
    return re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), expr)
